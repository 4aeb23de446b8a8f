//! Renames and directory entries that survive a power cut; waiting callers share one fsync.
