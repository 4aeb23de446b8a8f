//! How a call fails: gRPC's status codes, which are also the workspace's error kinds.

use std::fmt;

use gantry_types::{ErrorKind, HasKind};
use prost::Message;

use crate::frame::{self, Kind};
use crate::wire::{Response, RpcStatus};

/// Longest error text that is sent; peers print it, nobody parses it.
const MAX_MESSAGE: usize = 16 << 10;

/// A failed call: the peer's answer, or what kept it from answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What programs act on.
    pub kind: ErrorKind,
    /// What people read.
    pub message: String,
}

impl Status {
    /// A failure of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Status {
        Status { kind, message: message.into() }
    }

    /// The connection is gone (or never was): nobody will answer.
    pub fn closed() -> Status {
        Status::new(ErrorKind::Unavailable, "ttrpc: closed")
    }

    /// The answer to a call of a method that the service does not have.
    pub fn unimplemented(service: &str, method: &str) -> Status {
        Status::new(ErrorKind::Unimplemented, format!("method {method} of service {service}"))
    }

    /// The answer to a call of a service that is not there, in the words of the Go implementation.
    pub fn unknown_service(service: &str) -> Status {
        Status::new(ErrorKind::Unimplemented, format!("service {service}"))
    }

    /// The gRPC status code of an error kind.
    pub const fn code(&self) -> i32 {
        code_of(self.kind)
    }

    pub(crate) fn of_rpc(status: RpcStatus) -> Result<(), Status> {
        match kind_of(status.code) {
            None => Ok(()),
            Some(kind) => Err(Status { kind, message: status.message }),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl HasKind for Status {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// The gRPC status code of an error kind.
pub const fn code_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Cancelled => 1,
        ErrorKind::Unknown => 2,
        ErrorKind::InvalidArgument => 3,
        ErrorKind::DeadlineExceeded => 4,
        ErrorKind::NotFound => 5,
        ErrorKind::AlreadyExists => 6,
        ErrorKind::PermissionDenied => 7,
        ErrorKind::ResourceExhausted => 8,
        ErrorKind::FailedPrecondition => 9,
        ErrorKind::Aborted => 10,
        ErrorKind::OutOfRange => 11,
        ErrorKind::Unimplemented => 12,
        ErrorKind::Internal => 13,
        ErrorKind::Unavailable => 14,
        ErrorKind::DataLoss => 15,
        ErrorKind::Unauthenticated => 16,
    }
}

/// The error kind of a gRPC status code; none for 0 (success), [`ErrorKind::Unknown`] for codes gRPC does not have.
pub const fn kind_of(code: i32) -> Option<ErrorKind> {
    Some(match code {
        0 => return None,
        1 => ErrorKind::Cancelled,
        3 => ErrorKind::InvalidArgument,
        4 => ErrorKind::DeadlineExceeded,
        5 => ErrorKind::NotFound,
        6 => ErrorKind::AlreadyExists,
        7 => ErrorKind::PermissionDenied,
        8 => ErrorKind::ResourceExhausted,
        9 => ErrorKind::FailedPrecondition,
        10 => ErrorKind::Aborted,
        11 => ErrorKind::OutOfRange,
        12 => ErrorKind::Unimplemented,
        13 => ErrorKind::Internal,
        14 => ErrorKind::Unavailable,
        15 => ErrorKind::DataLoss,
        16 => ErrorKind::Unauthenticated,
        _ => ErrorKind::Unknown,
    })
}

/// Appends the answer's frame; one that is too long becomes an error.
pub(crate) fn encode_response(stream: u32, answer: Result<Vec<u8>, Status>, out: &mut Vec<u8>) {
    if let Err(error) = frame::encode(stream, Kind::Response, 0, &response_bytes(answer), out) {
        let status = Status::new(ErrorKind::ResourceExhausted, error.to_string());
        // The text is bounded, so this fits.
        let _ = frame::encode(stream, Kind::Response, 0, &response_bytes(Err(status)), out);
    }
}

/// The envelope of an answer, encoded.
fn response_bytes(answer: Result<Vec<u8>, Status>) -> Vec<u8> {
    let response = match answer {
        Ok(payload) => Response { status: None, payload },
        Err(status) => {
            let code = status.code();
            let message = shortened(status.message);
            Response { status: Some(RpcStatus { code, message, details: Vec::new() }), payload: Vec::new() }
        }
    };
    response.encode_to_vec()
}

/// The answer inside an encoded envelope.
pub(crate) fn answer_of(payload: &[u8]) -> Result<Vec<u8>, Status> {
    let response = Response::decode(payload)
        .map_err(|error| Status::new(ErrorKind::Internal, format!("undecodable response: {error}")))?;
    Status::of_rpc(response.status.unwrap_or_default())?;
    Ok(response.payload)
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message.truncate(end);
    }
    message
}
