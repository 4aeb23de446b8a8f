//! The gRPC API: generated messages, clients and servers ([`pb`]), and their conversion from and to the vocabulary
//! of `gantry-types` ([`convert`]).
//!
//! Deliberately holds no behaviour: what a call does is decided by the daemon and its engine.
#![forbid(unsafe_code)]

pub mod convert;
pub mod pb;
pub mod status;
pub mod timeout;

/// Encoded `google.protobuf.FileDescriptorSet` of everything in [`pb`], for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");
