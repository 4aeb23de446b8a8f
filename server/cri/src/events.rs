//! GetContainerEvents: what happens from the moment a stream is opened, to every stream whole. Nothing old is told
//! again; a reader too slow for that is cut off instead of being told half.

use std::sync::{Arc, Mutex, PoisonError};

use gantry_api::pb::runtime::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Cri;
use crate::containers::status_of;
use crate::pods::Pod;

/// How many events may wait for one reader.
const WAITING: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

type Event = Result<wire::ContainerEventResponse, Status>;

/// The open streams.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<mpsc::Sender<Event>>>);

impl Events {
    /// A stream of what happens from now on.
    pub(crate) fn subscribe(&self) -> ReceiverStream<Event> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.lock().push(sender);
        ReceiverStream::new(receiver)
    }

    /// Tells what happened to a pod or one of its containers.
    pub(crate) async fn tell(&self, cri: &Cri, kind: Kind, id: &str, pod: &Arc<Pod>) {
        if self.lock().is_empty() {
            return;
        }
        let event = wire::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind_of(kind) as i32,
            created_at: crate::now(),
            pod_sandbox_status: Some(cri.status_of_pod(pod)),
            containers_statuses: cri.containers.of_pod(&pod.id).iter().map(|container| status_of(container)).collect(),
        };
        self.lock().retain(|stream| stream.try_send(Ok(event.clone())).is_ok());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind_of(kind: Kind) -> wire::ContainerEventType {
    match kind {
        Kind::Created => wire::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => wire::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => wire::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => wire::ContainerEventType::ContainerDeletedEvent,
    }
}
