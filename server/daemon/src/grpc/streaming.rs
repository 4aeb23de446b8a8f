//! `containerd.services.streaming.v1`: the first message names the stream, our first one says that it is known.

use std::time::Duration;

use futures::StreamExt as _;
use gantry_api::convert::{any_from_wire, unpack};
use gantry_api::pb::containerd::services::streaming::v1::StreamInit;
use gantry_api::pb::containerd::services::streaming::v1::streaming_server::Streaming;
use prost_types::Any;
use tonic::{Request, Response, Status, async_trait};

use super::{Answers, Reply, Services};
use crate::{scope, status};

/// How long a client may take to name its stream.
const PATIENCE: Duration = Duration::from_secs(10);

#[async_trait]
impl Streaming for Services {
    type StreamStream = Answers<Any>;

    async fn stream(&self, request: Request<tonic::Streaming<Any>>) -> Reply<Self::StreamStream> {
        let scope = scope::of(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(PATIENCE, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no StreamInit within 10 s"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("first message must be a StreamInit"))?;
        let init: StreamInit = unpack(&any_from_wire(first)).map_err(status::of)?;
        let outgoing = self.streams.register(&scope.namespace, &init.id, incoming.boxed())?;
        let known = Any { type_url: "google.protobuf.Empty".into(), value: Vec::new() };
        let messages = futures::stream::iter([Ok(known)]).chain(outgoing);
        Ok(Response::new(messages.take_until(self.stopping.clone().cancelled_owned()).boxed()))
    }
}
