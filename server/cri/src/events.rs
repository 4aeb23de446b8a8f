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
/// What one is told whose events have no more room.
const TOO_SLOW: &str =
    "events were read too slowly and some are lost: list pods and containers, and ask for events again";

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
        let (sender, receiver) = mpsc::channel(WAITING + 1);
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
        self.lock().retain(|stream| deliver(stream, &event));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands an event over; the last place is for the news that there is no more room. Whether to go on.
fn deliver(stream: &mpsc::Sender<Event>, event: &wire::ContainerEventResponse) -> bool {
    if stream.capacity() > 1 {
        return stream.try_send(Ok(event.clone())).is_ok();
    }
    // One that is gone needs no news.
    let _ = stream.try_send(Err(Status::resource_exhausted(TOO_SLOW)));
    false
}

fn kind_of(kind: Kind) -> wire::ContainerEventType {
    match kind {
        Kind::Created => wire::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => wire::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => wire::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => wire::ContainerEventType::ContainerDeletedEvent,
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_is_too_slow_gets_all_that_had_room_and_then_an_error() {
        let events = Events::default();
        let stream = events.subscribe();
        let sender = events.lock()[0].clone();
        let event = wire::ContainerEventResponse::default();
        let told = (0..WAITING + 10).take_while(|_| deliver(&sender, &event)).count();
        events.lock().clear();
        drop(sender);
        let all: Vec<Event> = stream.collect().await;
        assert_eq!((told, all.len()), (WAITING, WAITING + 1));
        assert!(all[..WAITING].iter().all(Result::is_ok));
        assert_eq!(all[WAITING].as_ref().unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
