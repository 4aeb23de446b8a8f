//! Identifiers that are safe as path components and DNS-like names, as containerd's `identifiers` package accepts them.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest identifier, in bytes.
pub(crate) const MAX_LEN: usize = 76;

/// A valid identifier: runs of letters and digits joined by single `.`, `_` or `-`; at most 76 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(Box<str>);

/// A namespace's name: an [`Id`].
pub type Namespace = Id;

impl Id {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Id, InvalidId> {
        let invalid = |reason| InvalidId { text: text.chars().take(MAX_LEN + 4).collect(), reason };
        if text.is_empty() {
            return Err(invalid("must not be empty"));
        }
        if text.len() > MAX_LEN {
            return Err(invalid("longer than 76 characters"));
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(invalid("only letters, digits, `.`, `_` and `-` are allowed"));
        }
        let joined = |run: &str| !run.is_empty();
        if !text.split(['.', '_', '-']).all(joined) {
            return Err(invalid("`.`, `_` and `-` may only stand singly between letters or digits"));
        }
        Ok(Id(text.into()))
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Id, InvalidId> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0.into()
    }
}

impl Deref for Id {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Id {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// Not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid identifier {text:?}: {reason}")]
pub struct InvalidId {
    text: String,
    reason: &'static str,
}

impl crate::HasKind for InvalidId {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}
