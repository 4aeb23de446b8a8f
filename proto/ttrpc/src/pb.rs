//! Messages of the shim's and the daemon's ttrpc sockets, of events, and of the options and metrics that travel as
//! `Any`: one module a protobuf package, generated from `proto/defs`. Maps are ordered; every message knows its full
//! name ([`prost::Name`]).
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/pb.rs"));
