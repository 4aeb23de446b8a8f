//! Names of ingests that a writer holds.
