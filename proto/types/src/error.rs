//! What kind of failure an error is: the part of it that programs act on.

/// The kinds of failure a caller can act on. They are gRPC's canonical codes, which containerd's clients test for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The caller went away or asked for the work to stop.
    Cancelled,
    /// Nothing more precise is known.
    Unknown,
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// A deadline passed; the error says which stage was waiting for what.
    DeadlineExceeded,
    /// The named object does not exist.
    NotFound,
    /// An object of that name exists.
    AlreadyExists,
    /// The peer (a registry, the kernel) refused by policy.
    PermissionDenied,
    /// A limit or a disk is full.
    ResourceExhausted,
    /// The object is in a state in which this cannot be done.
    FailedPrecondition,
    /// A concurrent change got in the way.
    Aborted,
    /// An offset or a size lies outside the object.
    OutOfRange,
    /// Not offered by this daemon or this kernel.
    Unimplemented,
    /// An invariant of ours broke, or the disk or kernel failed.
    Internal,
    /// Try again later: locked, or a peer is down.
    Unavailable,
    /// Stored bytes are damaged.
    DataLoss,
    /// Credentials are missing or wrong.
    Unauthenticated,
}

impl ErrorKind {
    /// The kind that an error of the operating system stands for.
    pub fn of_io(error: &std::io::Error) -> ErrorKind {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied => ErrorKind::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::ResourceExhausted,
            Io::TimedOut => ErrorKind::DeadlineExceeded,
            Io::ConnectionRefused | Io::ConnectionReset | Io::BrokenPipe => ErrorKind::Unavailable,
            Io::Unsupported => ErrorKind::Unimplemented,
            _ => ErrorKind::Internal,
        }
    }
}

/// Implemented by every public error of the workspace.
pub trait HasKind: std::error::Error {
    /// The kind of this failure.
    fn kind(&self) -> ErrorKind;
}
