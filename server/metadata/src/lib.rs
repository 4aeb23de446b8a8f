//! Names and records on sled, typed edges between them, and the mark of garbage collection
