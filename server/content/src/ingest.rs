//! The files of one ingest.
