//! `containerd.services.events.v1`.

use futures::{StreamExt as _, stream};
use gantry_api::convert::{any_from_wire, any_to_wire, time_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::events::v1 as wire;
use gantry_api::pb::containerd::services::events::v1::events_server::Events;
use gantry_api::pb::containerd::types;
use gantry_engine::events::Envelope;
use gantry_types::Namespace;
use tonic::{Request, Response, async_trait};

use super::decode::{filter, required};
use super::{Answers, Reply, Services};
use crate::{scope, status};

#[async_trait]
impl Events for Services {
    async fn publish(&self, request: Request<wire::PublishRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let r = request.into_inner();
        let event = any_from_wire(required(r.event, "event")?);
        self.engine.events.publish(&scope.namespace, &r.topic, event).map_err(status::of)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<wire::ForwardRequest>) -> Reply<()> {
        let envelope = required(request.into_inner().envelope, "envelope")?;
        let namespace: Namespace = envelope.namespace.parse().map_err(status::of)?;
        let event = any_from_wire(required(envelope.event, "event")?);
        // One without a time happened at the epoch, as with containerd.
        let timestamp = time_from_wire(envelope.timestamp.unwrap_or_default()).map_err(status::of)?;
        self.engine.events.forward(&namespace, &envelope.topic, event, timestamp).map_err(status::of)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Answers<types::Envelope>;

    /// Events of every namespace; a subscriber too slow for the log gets `DataLoss` instead of a silent gap.
    async fn subscribe(&self, request: Request<wire::SubscribeRequest>) -> Reply<Self::SubscribeStream> {
        let filter = filter(&request.get_ref().filters)?;
        let subscription = self.engine.events.subscribe(filter);
        let events = stream::try_unfold(subscription, |mut subscription| async {
            let envelope = subscription.next().await.map_err(status::of)?;
            Ok(Some((to_wire(&envelope), subscription)))
        });
        let stopping = self.stopping.clone();
        Ok(Response::new(events.take_until(stopping.cancelled_owned()).boxed()))
    }
}

fn to_wire(envelope: &Envelope) -> types::Envelope {
    types::Envelope {
        timestamp: Some(time_to_wire(envelope.timestamp)),
        namespace: envelope.namespace.to_string(),
        topic: envelope.topic.clone(),
        event: Some(any_to_wire(envelope.event.clone())),
    }
}
