//! Which transitions of snapshots are legal: pure rules over an in-memory graph.
