//! Pieces of requests that several services have in common.

use gantry_types::{Digest, Filter};
use prost_types::FieldMask;
use tonic::Status;

use crate::status;

/// The message that must be there; `what` names it.
pub(crate) fn required<T>(message: Option<T>, what: &str) -> Result<T, Status> {
    message.ok_or_else(|| Status::invalid_argument(format!("{what} is required")))
}

/// A digest.
pub(crate) fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(status::of)
}

/// A digest that may be left out.
pub(crate) fn optional_digest(text: &str) -> Result<Option<Digest>, Status> {
    if text.is_empty() { Ok(None) } else { digest(text).map(Some) }
}

/// A size that may be left out: zero and less say nothing.
pub(crate) fn optional_size(size: i64) -> Option<u64> {
    u64::try_from(size).ok().filter(|&size| size > 0)
}

/// Filters of which any may match.
pub(crate) fn filter(alternatives: &[String]) -> Result<Filter, Status> {
    Filter::parse(alternatives).map_err(status::of)
}

/// The paths of a mask; none means everything.
pub(crate) fn paths(mask: Option<FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// A number for the wire, which knows signed ones only.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
