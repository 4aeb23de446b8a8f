//! Why a transfer failed: what was moved, which host, in which stage, and the reason.

use std::fmt;
use std::time::Duration;

use gantry_types::{Digest, ErrorKind, HasKind};

use crate::credentials::CredentialsError;
use crate::hosts::HostsError;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading host configuration and certificates.
    Configure,
    /// Getting leave: a challenge, a token.
    Authorize,
    /// Learning a digest by tag.
    Resolve,
    /// Fetching a manifest or index.
    FetchManifest,
    /// Fetching a blob.
    FetchBlob,
    /// Listing tags, repositories or referrers.
    List,
    /// Asking whether a blob or manifest is there.
    Check,
    /// Sending a blob.
    PushBlob,
    /// Sending a manifest.
    PushManifest,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Configure => "configure",
            Stage::Authorize => "authorize",
            Stage::Resolve => "resolve",
            Stage::FetchManifest => "fetch manifest",
            Stage::FetchBlob => "fetch blob",
            Stage::List => "list",
            Stage::Check => "check",
            Stage::PushBlob => "push blob",
            Stage::PushManifest => "push manifest",
        })
    }
}

/// The reason by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The registry answered with a status that says no.
    #[error("status {status}{}{}", meaning(*status), said(body))]
    Status {
        /// HTTP status.
        status: u16,
        /// What the registry wrote, at most 1 KiB, secrets blacked out.
        body: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// The host could not be reached.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke or spoke nonsense.
    #[error("connection failed: {0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("no {waited_for} within {limit:?}")]
    Timeout {
        /// What was waited for.
        waited_for: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// A body came too slowly.
    #[error("only {received} bytes came within {window:?}, less than {minimum} a second")]
    TooSlow {
        /// Bytes received in the window.
        received: u64,
        /// The window.
        window: Duration,
        /// The least that was asked for, in bytes a second.
        minimum: u64,
    },
    /// The body ended before its size was reached.
    #[error("body ended after {received} of {expected} bytes")]
    Short {
        /// Size by the descriptor.
        expected: u64,
        /// Offset reached.
        received: u64,
    },
    /// The registry offers a body of another size.
    #[error("registry offers {offered} bytes, expected {expected}")]
    WrongLength {
        /// Size by the descriptor.
        expected: u64,
        /// Size the registry announced, or more bytes than expected that it sent.
        offered: u64,
    },
    /// The body is not what was asked for.
    #[error("content has digest {found}, expected {expected}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Larger than allowed.
    #[error("{what} is larger than {limit}")]
    TooBig {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Redirected too often, or in a way that is not followed.
    #[error("redirect not followed: {0}")]
    Redirect(&'static str),
    /// The registry goes on asking for credentials, or for ones we cannot give.
    #[error("not let in: {0}")]
    Refused(String),
    /// Credentials could not be had.
    #[error("credentials: {0}")]
    Credentials(#[from] CredentialsError),
    /// Host configuration is wrong.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// Docker image manifest version 2, schema 1.
    #[error("the image is in Docker's schema 1 format, which is no longer supported; push it anew with a current tool")]
    Schema1,
    /// An answer that does not follow the specification.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// The reference lacks what the call needs.
    #[error("invalid request: {0}")]
    Request(&'static str),
    /// No host is configured for what was asked.
    #[error("no configured host may {0}")]
    NoHost(&'static str),
    /// The bytes to push could not be read.
    #[error("cannot read what is to be pushed: {0}")]
    Source(std::io::Error),
}

/// The word that clients know for a status.
fn meaning(status: u16) -> &'static str {
    match status {
        401 => ": unauthorized",
        403 => ": forbidden",
        404 => ": not found",
        429 => ": too many requests",
        _ => "",
    }
}

fn said(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!(" ({body})") }
}

/// A failed transfer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Failure>);

#[derive(Debug)]
struct Failure {
    subject: String,
    host: String,
    stage: Stage,
    reason: Reason,
    before: Vec<String>,
}

impl Error {
    pub(crate) fn new(subject: impl Into<String>, host: impl Into<String>, stage: Stage, reason: Reason) -> Error {
        let (subject, host) = (subject.into(), host.into());
        Error(Box::new(Failure { subject, host, stage, reason, before: Vec::new() }))
    }

    /// Remembers what failed at hosts that were asked before this one.
    pub(crate) fn after(mut self, earlier: &[Error]) -> Error {
        self.0.before.extend(earlier.iter().take(8).map(|e| format!("{}: {}", e.host(), e.reason())));
        self
    }

    /// The reference, with the digest where a blob or manifest of it was moved.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// The host that failed.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// What was being done.
    pub fn stage(&self) -> Stage {
        self.0.stage
    }

    /// The reason.
    pub fn reason(&self) -> &Reason {
        &self.0.reason
    }

    /// Whether the same call may well succeed later.
    pub fn is_transient(&self) -> bool {
        self.reason().is_transient()
    }
}

impl Reason {
    /// Whether another attempt at the same host may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Reason::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Reason::Connect(_) | Reason::Broken(_) | Reason::Timeout { .. } => true,
            Reason::TooSlow { .. } | Reason::Short { .. } => true,
            _ => false,
        }
    }

    /// Whether the host as a whole is in trouble, so that others should be asked first for a while.
    pub(crate) fn is_host_down(&self) -> bool {
        matches!(self, Reason::Connect(_) | Reason::Timeout { .. } | Reason::TooSlow { .. })
    }

    /// How long the registry asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Reason::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.stage)?;
        if !self.host.is_empty() {
            write!(f, " at {}", self.host)?;
        }
        write!(f, ": {}", self.reason)?;
        self.before.iter().try_for_each(|earlier| write!(f, "; before that {earlier}"))
    }
}

impl std::error::Error for Failure {}

impl HasKind for Error {
    fn kind(&self) -> ErrorKind {
        match self.reason() {
            Reason::Status { status, .. } => kind_of_status(*status),
            Reason::Connect(_) | Reason::Broken(_) | Reason::Short { .. } => ErrorKind::Unavailable,
            Reason::Timeout { .. } | Reason::TooSlow { .. } => ErrorKind::DeadlineExceeded,
            Reason::WrongLength { .. } | Reason::WrongDigest { .. } | Reason::Redirect(_) => {
                ErrorKind::FailedPrecondition
            }
            Reason::TooBig { .. } => ErrorKind::ResourceExhausted,
            Reason::Refused(_) => ErrorKind::Unauthenticated,
            Reason::Credentials(e) => e.kind(),
            Reason::Hosts(e) => e.kind(),
            Reason::Schema1 => ErrorKind::Unimplemented,
            Reason::Invalid(_) | Reason::NoHost(_) => ErrorKind::FailedPrecondition,
            Reason::Request(_) => ErrorKind::InvalidArgument,
            Reason::Source(e) => ErrorKind::of_io(e),
        }
    }
}

fn kind_of_status(status: u16) -> ErrorKind {
    match status {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        404 | 410 => ErrorKind::NotFound,
        400 | 405 | 406 | 413 | 415 => ErrorKind::InvalidArgument,
        416 => ErrorKind::OutOfRange,
        408 | 425 | 429 | 500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::Unknown,
    }
}
