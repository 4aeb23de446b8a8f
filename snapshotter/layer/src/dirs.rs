//! Directories reached by descriptor, never by a path that could leave the root.
