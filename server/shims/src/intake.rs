//! The socket on which shims hand over their events.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_ttrpc::Status;
use gantry_ttrpc::intake::{Call, Handler, Limits, serve};
use gantry_ttrpc::pb::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_types::{Any, ErrorKind, Namespace};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::{Error, Result};

/// Events on their way from the socket to the owner; a full channel slows the shims down.
const QUEUE: usize = 1024;

/// An event as a shim sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Forwarded {
    /// When it happened.
    pub timestamp: SystemTime,
    /// In which namespace.
    pub namespace: Namespace,
    /// `/tasks/exit`, …
    pub topic: String,
    /// The message.
    pub event: Any,
}

/// The listening socket; closes when dropped.
#[derive(Debug)]
pub(crate) struct Intake(AbortHandle);

impl Drop for Intake {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens, with what a former daemon left at that path out of the way.
pub(crate) fn listen(path: &Path) -> Result<(Intake, mpsc::Receiver<Forwarded>)> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(Error::io("listen at", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(Error::io("chmod", path))?;
    let (events, taken) = mpsc::channel(QUEUE);
    let limits = Limits {
        connections: 4096,
        // One at a time, so that a shim's events stay in order.
        calls_per_connection: 1,
        uid: nix::unistd::Uid::effective().as_raw(),
        call_timeout: Duration::from_secs(30),
    };
    let serving = serve(listener, Arc::new(Take { events }), limits, std::future::pending());
    Ok((Intake(tokio::spawn(serving).abort_handle()), taken))
}

struct Take {
    events: mpsc::Sender<Forwarded>,
}

impl Handler for Take {
    async fn call(&self, call: Call) -> std::result::Result<Vec<u8>, Status> {
        if (call.service.as_str(), call.method.as_str()) != ("containerd.services.events.ttrpc.v1.Events", "Forward") {
            return Err(Status::unimplemented(&call.service, &call.method));
        }
        let invalid = |reason: String| Status::new(ErrorKind::InvalidArgument, format!("event: {reason}"));
        let request = ForwardRequest::decode(call.payload.as_slice()).map_err(|e| invalid(e.to_string()))?;
        let envelope = request.envelope.ok_or_else(|| invalid("no envelope".into()))?;
        let event = envelope.event.unwrap_or_default();
        let forwarded = Forwarded {
            timestamp: envelope.timestamp.and_then(|t| t.try_into().ok()).unwrap_or_else(SystemTime::now),
            namespace: envelope.namespace.parse().map_err(|e| invalid(format!("{e}")))?,
            topic: envelope.topic,
            event: Any { type_url: event.type_url, value: event.value },
        };
        let gone = |_| Status::new(ErrorKind::Unavailable, "the daemon is shutting down");
        self.events.send(forwarded).await.map_err(gone)?;
        Ok(Vec::new())
    }
}
