//! A typed message that is carried, not understood (`google.protobuf.Any`).

use serde::{Deserialize, Serialize};

/// An encoded message and the name of its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Any {
    /// Type name, with or without a `type.googleapis.com/` prefix: kept as the client sent it.
    pub type_url: String,
    /// The encoded message, byte for byte.
    pub value: Vec<u8>,
}
