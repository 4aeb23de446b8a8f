//! From an error to the gRPC status that containerd's clients test for.

use std::error::Error;

use gantry_types::{ErrorKind, HasKind};
use tonic::{Code, Status};

/// Longest message, in bytes: a status travels in a header.
const MAX_MESSAGE: usize = 6 << 10;

/// The status for an error: its kind as code, its text and that of its sources as message.
pub fn of(error: impl HasKind) -> Status {
    let code = code(error.kind());
    let message = classed(message(&error), error.kind());
    if matches!(code, Code::Internal | Code::DataLoss) {
        tracing::error!(%code, "{message}");
    }
    Status::new(code, message)
}

/// The code for a kind.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unknown => Code::Unknown,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
    }
}

/// The error's text, followed by that of every source which it does not already contain.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    shortened(text)
}

/// The text, ending in the words of its class as containerd's messages do: scripts and clients look for them.
fn classed(mut text: String, kind: ErrorKind) -> String {
    let words = match kind {
        ErrorKind::InvalidArgument => "invalid argument",
        ErrorKind::NotFound => "not found",
        ErrorKind::AlreadyExists => "already exists",
        ErrorKind::FailedPrecondition => "failed precondition",
        ErrorKind::OutOfRange => "out of range",
        ErrorKind::Unimplemented => "not implemented",
        ErrorKind::Unavailable => "unavailable",
        _ => return text,
    };
    if !text.ends_with(words) {
        text.push_str(": ");
        text.push_str(words);
    }
    text
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {what}")]
    struct Unreadable {
        what: String,
        source: std::io::Error,
    }

    impl HasKind for Unreadable {
        fn kind(&self) -> ErrorKind {
            ErrorKind::of_io(&self.source)
        }
    }

    fn unreadable(what: &str) -> Unreadable {
        Unreadable { what: what.into(), source: std::io::Error::from(std::io::ErrorKind::NotFound) }
    }

    #[test]
    fn the_kind_becomes_the_code_and_sources_join_the_message() {
        let status = of(unreadable("blob"));
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "cannot read blob: entity not found");
    }

    #[test]
    fn a_giant_message_is_cut_at_a_character() {
        let status = of(unreadable(&"ü".repeat(MAX_MESSAGE)));
        assert!(status.message().len() <= MAX_MESSAGE + "…: not found".len());
        assert!(status.message().ends_with("…: not found"));
    }
}
