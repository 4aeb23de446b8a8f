//! What can be wrong with a stream.

use thiserror::Error;

/// Why a stream is no DEFLATE (RFC 1951).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// A block of the fourth kind (3.2.3).
    #[error("deflate: a block of no known kind")]
    Kind,
    /// The two lengths of a stored block contradict each other (3.2.4).
    #[error("deflate: the length of a stored block is wrong")]
    Stored,
    /// More codes are announced than there are symbols (3.2.7).
    #[error("deflate: too many codes")]
    Count,
    /// A set of codes has too many codes of its lengths, or too few (3.2.2).
    #[error("deflate: a set of codes is incomplete or has too many")]
    Codes,
    /// A length is repeated that is not there, or for more codes than there are (3.2.7).
    #[error("deflate: a repetition of code lengths without place")]
    Repeat,
    /// The end of a block has no code (3.2.7).
    #[error("deflate: a block that cannot end")]
    Endless,
    /// Bits that are no code, or the code of a symbol without meaning (3.2.5).
    #[error("deflate: an invalid code")]
    Code,
    /// A match with bytes before the first (3.2.3).
    #[error("deflate: a distance too far back")]
    Far,
}
