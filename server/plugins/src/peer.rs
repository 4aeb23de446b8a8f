//! The other process: its name, its socket, the connection to it, and what it did not do.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_api::convert::kind_of;
use gantry_types::{ErrorKind, HasKind};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Longest message either way, as containerd has it.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a call may take that only looks something up or notes it down.
pub(crate) const QUICK: Duration = Duration::from_secs(30);
/// How long a removal may take; collections wait for it.
pub(crate) const REMOVAL: Duration = Duration::from_secs(120);
/// How long a call may take that moves files: a layer may be fetched, a directory be copied.
pub(crate) const SLOW: Duration = Duration::from_secs(600);
/// How long a call may take that reads or writes a whole layer.
pub(crate) const LAYER: Duration = Duration::from_secs(3600);
/// Beyond a deadline that the other side was told.
const GRACE: Duration = Duration::from_secs(1);

/// A plug-in. Connects at the first call, and again after a break; clones share the connection.
#[derive(Clone, Debug)]
pub struct Peer {
    name: Arc<str>,
    socket: Arc<Path>,
    channel: Channel,
}

impl Peer {
    /// The plug-in `name`, which listens on the unix socket `socket`. Needs a running tokio runtime; sends nothing yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that cannot be a socket's.
    pub fn new(name: &str, socket: &Path) -> Result<Peer, Failure> {
        let text = socket.to_string_lossy();
        let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text));
        let bad = |reason: String| Failure {
            kind: ErrorKind::InvalidArgument,
            message: format!("plug-in {name:?}: {:?} is no address: {reason}", path.display()),
        };
        if !path.is_absolute() {
            return Err(bad("not the absolute path of a unix socket".into()));
        }
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()));
        let endpoint = endpoint.map_err(|error| bad(error.to_string()))?.connect_timeout(CONNECT);
        Ok(Peer { name: name.into(), channel: endpoint.connect_lazy(), socket: path.into() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in a namespace, of which the other side knows when nobody waits for it any more.
    pub(crate) fn request<T>(&self, namespace: &str, limit: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        let namespace = MetadataValue::try_from(namespace).unwrap_or_else(|_| MetadataValue::from_static("default"));
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }

    /// What a call gives, at the latest when `limit` is over.
    pub(crate) async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(limit + GRACE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status, limit)),
            Err(_) => Err(self.overdue(limit)),
        }
    }

    /// The next message of a stream; none at its end.
    pub(crate) async fn next<T>(
        &self,
        limit: Duration,
        stream: &mut tonic::Streaming<T>,
    ) -> Result<Option<T>, Failure> {
        match tokio::time::timeout(limit, stream.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(self.failed(&status, limit)),
            Err(_) => Err(self.overdue(limit)),
        }
    }

    fn named(&self) -> String {
        format!("plug-in {:?} at {}", &*self.name, self.socket.display())
    }

    fn overdue(&self, limit: Duration) -> Failure {
        let message = format!("{} has not answered within {} s", self.named(), limit.as_secs());
        Failure { kind: ErrorKind::DeadlineExceeded, message }
    }

    /// An answer of the other side passes as it is. What never reached it, or broke off on the way, has a cause on
    /// this side of the socket.
    fn failed(&self, status: &Status, limit: Duration) -> Failure {
        match status.source() {
            Some(cause) if cause.is::<tonic::TimeoutExpired>() => self.overdue(limit),
            Some(_) => self.unavailable(status),
            None if status.code() == tonic::Code::Unavailable => {
                let message = format!("{}: {}", self.named(), status.message());
                Failure { kind: ErrorKind::Unavailable, message }
            }
            None => Failure { kind: kind_of(status.code()), message: status.message().to_owned() },
        }
    }

    fn unavailable(&self, status: &Status) -> Failure {
        let mut reasons = vec![status.message().to_owned()];
        let mut cause = status.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !reasons.iter().any(|reason| reason.contains(&text)) {
                reasons.push(text);
            }
            cause = error.source();
        }
        Failure { kind: ErrorKind::Unavailable, message: format!("{}: {}", self.named(), reasons.join(": ")) }
    }

    /// An answer that breaks the protocol.
    pub(crate) fn broken(&self, what: &str) -> Failure {
        Failure { kind: ErrorKind::Internal, message: format!("{} answered {what}", self.named()) }
    }
}

/// What another process did not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it reported, `Unavailable` where it was not to be reached.
    pub kind: ErrorKind,
    /// Its words.
    pub message: String,
}

impl HasKind for Failure {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<Failure> for gantry_snapshots::Error {
    fn from(failure: Failure) -> gantry_snapshots::Error {
        gantry_snapshots::Error::Remote { kind: failure.kind, message: failure.message }
    }
}

impl From<Failure> for gantry_content::Error {
    fn from(failure: Failure) -> gantry_content::Error {
        gantry_content::Error::Other { kind: failure.kind, message: failure.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_absolute_paths_are_sockets() {
        for bad in ["", "relative.sock", "unix://relative"] {
            assert_eq!(Peer::new("p", Path::new(bad)).unwrap_err().kind, ErrorKind::InvalidArgument, "{bad}");
        }
        let peer = Peer::new("p", Path::new("unix:///run/p.sock")).unwrap();
        assert_eq!((peer.name(), peer.socket()), ("p", Path::new("/run/p.sock")));
    }

    #[tokio::test]
    async fn answers_of_the_other_side_pass_and_silence_names_it() {
        let peer = Peer::new("p", Path::new("/run/p.sock")).unwrap();
        let refused = async { Err::<Response<()>, _>(Status::not_found("snapshot x")) };
        let failure = peer.answer(QUICK, refused).await.unwrap_err();
        assert_eq!((failure.kind, failure.message.as_str()), (ErrorKind::NotFound, "snapshot x"));
        let silent = std::future::pending::<Result<Response<()>, Status>>();
        let failure = peer.answer(Duration::ZERO, silent).await.unwrap_err();
        assert_eq!(failure.kind, ErrorKind::DeadlineExceeded);
        assert!(failure.message.contains("/run/p.sock"), "{failure}");
    }
}
