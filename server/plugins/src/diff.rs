//! A differ in another process, over `containerd.services.diff.v1`. It reads and writes blobs by itself, most often
//! by calling back.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_api::convert::{any_to_wire, descriptor_from_wire, descriptor_to_wire, mounts_to_wire, time_to_wire};
use gantry_api::pb::containerd::services::diff::v1 as wire;
use gantry_api::pb::containerd::types;
use gantry_types::{Any, Descriptor, Labels, Mount, Scope};
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::peer::{Failure, LAYER, MAX_MESSAGE, Peer};

/// A differ in another process.
#[derive(Clone, Debug)]
pub struct RemoteDiffer {
    peer: Peer,
    client: wire::diff_client::DiffClient<Channel>,
}

/// How a layer is to be made.
#[derive(Clone, Debug, Default)]
pub struct DiffWishes {
    /// Media type; empty: the differ's own choice.
    pub media_type: String,
    /// Name of the ingest; empty: the differ's own choice.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// Latest time an entry may carry.
    pub source_date_epoch: Option<SystemTime>,
}

impl RemoteDiffer {
    /// The differ that `peer` serves.
    pub fn new(peer: Peer) -> RemoteDiffer {
        let client = wire::diff_client::DiffClient::new(peer.channel()).max_decoding_message_size(MAX_MESSAGE);
        RemoteDiffer { peer, client }
    }

    /// Unpacks a layer blob into what `mounts` show; gives the descriptor of what was inside.
    ///
    /// # Errors
    /// What the differ says; `Unimplemented` where another one should be asked.
    pub async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        payloads: &BTreeMap<String, Any>,
        sync: bool,
    ) -> Result<Descriptor, Failure> {
        let message = wire::ApplyRequest {
            diff: Some(descriptor_to_wire(layer)),
            mounts: mounts_to_wire(mounts.to_vec()),
            payloads: payloads.iter().map(|(name, any)| (name.clone(), any_to_wire(any.clone()))).collect(),
            sync_fs: sync,
        };
        let mut client = self.client.clone();
        let answer = self.peer.answer(LAYER, client.apply(self.request(scope, message))).await?;
        self.descriptor(answer.applied)
    }

    /// Stores what `right` changes in `left` as a layer blob.
    ///
    /// # Errors
    /// As [`RemoteDiffer::apply`].
    pub async fn diff(
        &self,
        scope: &Scope,
        left: &[Mount],
        right: &[Mount],
        wishes: DiffWishes,
    ) -> Result<Descriptor, Failure> {
        let message = wire::DiffRequest {
            left: mounts_to_wire(left.to_vec()),
            right: mounts_to_wire(right.to_vec()),
            media_type: wishes.media_type,
            r#ref: wishes.reference,
            labels: wishes.labels,
            source_date_epoch: wishes.source_date_epoch.map(time_to_wire),
        };
        let mut client = self.client.clone();
        let answer = self.peer.answer(LAYER, client.diff(self.request(scope, message))).await?;
        self.descriptor(answer.diff)
    }

    /// With the lease, so that a blob that the differ writes by calling back belongs to somebody.
    fn request<T>(&self, scope: &Scope, message: T) -> Request<T> {
        let mut request = self.peer.request(scope.namespace.as_str(), LAYER, message);
        let lease = scope.lease.as_deref().and_then(|lease| MetadataValue::try_from(lease).ok());
        lease.into_iter().for_each(|lease| drop(request.metadata_mut().insert("containerd-lease", lease)));
        request
    }

    fn descriptor(&self, descriptor: Option<types::Descriptor>) -> Result<Descriptor, Failure> {
        let descriptor = descriptor.ok_or_else(|| self.peer.broken("without a descriptor"))?;
        descriptor_from_wire(descriptor).map_err(|error| self.peer.broken(&error.to_string()))
    }
}
