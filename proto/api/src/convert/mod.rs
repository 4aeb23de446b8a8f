//! From the wire to the vocabulary and back. What the wire leaves open (an unparsable digest, a negative size) is a
//! typed error; what the vocabulary says can always be encoded.

mod any;
mod descriptor;
mod kind;
mod labels;
mod mount;
mod platform;
mod time;

pub use any::{any_from_wire, any_to_wire, pack, unpack};
pub use descriptor::{descriptor_from_wire, descriptor_to_wire};
pub use kind::kind_of;
pub use labels::labels_from_wire;
pub use mount::{mount_from_wire, mount_to_wire, mounts_from_wire, mounts_to_wire};
pub use platform::{platform_from_wire, platform_to_wire};
pub use time::{rfc3339, time_from_wire, time_to_wire};

use gantry_types::{ErrorKind, HasKind, InvalidDigest, InvalidLabel};

/// A message that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A digest that is none.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// A label that is too long, or has no key.
    #[error(transparent)]
    Label(#[from] InvalidLabel),
    /// A size below zero.
    #[error("size {size} is negative")]
    NegativeSize {
        /// What was sent.
        size: i64,
    },
    /// A point in time that no clock of this machine can show.
    #[error("time {seconds} s {nanos} ns is out of range")]
    Time {
        /// Seconds since 1970.
        seconds: i64,
        /// Nanoseconds within the second.
        nanos: i32,
    },
    /// An `Any` of another type than is needed here.
    #[error("expected a message of type {expected}, got {got:?}")]
    Type {
        /// Full name of what is needed.
        expected: String,
        /// Type url that was sent.
        got: String,
    },
    /// An `Any` of which the bytes do not decode.
    #[error("message of type {name} does not decode: {source}")]
    Decode {
        /// Full name of the type.
        name: String,
        /// What the decoder says.
        source: prost::DecodeError,
    },
}

impl HasKind for InvalidMessage {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}
