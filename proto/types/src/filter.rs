//! containerd's filter language: `FIELD[OP VALUE][,…]`, several filters are alternatives.

use std::borrow::Cow;

/// What a filter looks at: an object's fields by path.
pub trait Fields {
    /// The value at `path` (for example `["labels", "a.b/c"]`); none where the object has no such field.
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// Parsed filters. An object matches when any alternative does; no alternatives match everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {}

impl Filter {
    /// Parses the alternatives.
    ///
    /// # Errors
    /// [`InvalidFilter`] with the text and the byte position of the first mistake.
    pub fn parse<S: AsRef<str>>(_alternatives: &[S]) -> Result<Filter, InvalidFilter> {
        todo!()
    }

    /// Whether `object` is selected.
    pub fn matches(&self, _object: &dyn Fields) -> bool {
        todo!()
    }
}

/// Not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter {text:?} at byte {position}: {reason}")]
pub struct InvalidFilter {
    text: String,
    position: usize,
    reason: &'static str,
}

impl crate::HasKind for InvalidFilter {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}
