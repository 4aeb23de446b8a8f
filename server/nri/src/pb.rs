//! Generated messages of `nri.pkg.api.v1alpha1`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/pb.rs"));
