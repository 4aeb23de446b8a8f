//! Layered directories: the Snapshotter contract, overlay, native, and their shared suite
