//! Writing an ingest: a pipeline of one job on the blocking pool at a time.
