//! A snapshotter in another process, over `containerd.services.snapshots.v1` (containerd's "proxy plugin").

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_api::convert::{mounts_from_wire, time_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::snapshots::v1 as wire;
use gantry_types::{ErrorKind, Filter, Labels, Mount, Namespace};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::contract::{Info, Kind, Snapshotter, Usage};
use crate::error::Error;

/// Messages (lists of snapshots) larger than this are refused.
const MAX_MESSAGE: usize = 16 << 20;

/// Where the other process listens, and what it is asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// `unix:///run/…` or `http://HOST:PORT`.
    pub address: String,
    /// Name of the snapshotter there.
    pub snapshotter: String,
    /// How long a call may take; preparing may fetch a layer.
    pub timeout: Duration,
}

/// A snapshotter in another process. Connects at the first call, and again after a break.
///
/// The service has no call for making files durable, so [`Snapshotter::sync`] only checks that the snapshot is there.
#[derive(Clone, Debug)]
pub struct Remote {
    client: wire::snapshots_client::SnapshotsClient<Channel>,
    snapshotter: String,
}

impl Remote {
    /// A client for `config`; needs a running tokio runtime, and sends nothing yet.
    ///
    /// # Errors
    /// [`Error::Remote`], `InvalidArgument`, when the address is none.
    pub fn new(config: &Config) -> Result<Remote, Error> {
        let endpoint = Endpoint::from_shared(config.address.clone()).map_err(|error| Error::Remote {
            kind: ErrorKind::InvalidArgument,
            message: format!("{:?} is no address of a snapshotter: {error}", config.address),
        })?;
        let channel = endpoint.timeout(config.timeout).connect_timeout(Duration::from_secs(10)).connect_lazy();
        let client = wire::snapshots_client::SnapshotsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(Remote { client, snapshotter: config.snapshotter.clone() })
    }

    fn name(&self) -> String {
        self.snapshotter.clone()
    }
}

/// The engine's keys begin with the namespace they belong to, which the service wants in a header.
fn request<T>(key: &str, message: T) -> Request<T> {
    let namespace = key.split('/').next().and_then(|first| first.parse::<Namespace>().ok());
    let header = namespace.and_then(|namespace| MetadataValue::try_from(namespace.as_str()).ok());
    let mut request = Request::new(message);
    let header = header.unwrap_or_else(|| MetadataValue::from_static("default"));
    request.metadata_mut().insert("containerd-namespace", header);
    request
}

fn failed(status: Status) -> Error {
    let kind = gantry_api::convert::kind_of(status.code());
    Error::Remote { kind, message: status.message().to_owned() }
}

fn broken(what: &str) -> Error {
    Error::Remote { kind: ErrorKind::Internal, message: format!("the snapshotter answered {what}") }
}

fn info_from_wire(info: Option<wire::Info>) -> Result<Info, Error> {
    let info = info.ok_or_else(|| broken("without an info"))?;
    let kind = match info.kind() {
        wire::Kind::View => Kind::View,
        wire::Kind::Active => Kind::Active,
        wire::Kind::Committed => Kind::Committed,
        wire::Kind::Unknown => return Err(broken("with a snapshot of unknown kind")),
    };
    let time = |time: Option<_>| match time {
        None => Ok(SystemTime::UNIX_EPOCH),
        Some(time) => time_from_wire(time).map_err(|error| broken(&error.to_string())),
    };
    Ok(Info {
        kind,
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        labels: info.labels.into_iter().collect(),
        created: time(info.created_at)?,
        updated: time(info.updated_at)?,
        name: info.name,
    })
}

fn info_to_wire(info: Info) -> wire::Info {
    let kind = match info.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(time_to_wire(info.created)),
        updated_at: Some(time_to_wire(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

#[async_trait]
impl Snapshotter for Remote {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        let message = wire::StatSnapshotRequest { snapshotter: self.name(), key: key.into() };
        let answer = self.client.clone().stat(request(key, message)).await.map_err(failed)?;
        info_from_wire(answer.into_inner().info)
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let name = info.name.clone();
        let mut message = wire::UpdateSnapshotRequest { snapshotter: self.name(), ..Default::default() };
        message.info = Some(info_to_wire(info));
        message.update_mask.get_or_insert_default().paths = fieldpaths.to_vec();
        let answer = self.client.clone().update(request(&name, message)).await.map_err(failed)?;
        info_from_wire(answer.into_inner().info)
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let message = wire::UsageRequest { snapshotter: self.name(), key: key.into() };
        let usage = self.client.clone().usage(request(key, message)).await.map_err(failed)?.into_inner();
        let count = |number: i64| u64::try_from(number).map_err(|_| broken("with a negative usage"));
        Ok(Usage { inodes: count(usage.inodes)?, size: count(usage.size)? })
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let message = wire::MountsRequest { snapshotter: self.name(), key: key.into() };
        let answer = self.client.clone().mounts(request(key, message)).await.map_err(failed)?;
        Ok(mounts_from_wire(answer.into_inner().mounts))
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let message = wire::PrepareSnapshotRequest {
            snapshotter: self.name(),
            key: key.into(),
            parent: parent.unwrap_or_default().into(),
            labels: labels.into_iter().collect(),
        };
        let answer = self.client.clone().prepare(request(key, message)).await.map_err(failed)?;
        Ok(mounts_from_wire(answer.into_inner().mounts))
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let message = wire::ViewSnapshotRequest {
            snapshotter: self.name(),
            key: key.into(),
            parent: parent.unwrap_or_default().into(),
            labels: labels.into_iter().collect(),
        };
        let answer = self.client.clone().view(request(key, message)).await.map_err(failed)?;
        Ok(mounts_from_wire(answer.into_inner().mounts))
    }

    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        let message = wire::CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.into(),
            key: key.into(),
            labels: labels.into_iter().collect(),
            parent: parent.unwrap_or_default().into(),
        };
        self.client.clone().commit(request(key, message)).await.map(|_| ()).map_err(failed)
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let message = wire::RemoveSnapshotRequest { snapshotter: self.name(), key: key.into() };
        self.client.clone().remove(request(key, message)).await.map(|_| ()).map_err(failed)
    }

    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        let message = wire::ListSnapshotsRequest { snapshotter: self.name(), filters: Vec::new() };
        let mut stream = self.client.clone().list(request("", message)).await.map_err(failed)?.into_inner();
        let mut infos = Vec::new();
        while let Some(part) = stream.message().await.map_err(failed)? {
            for info in part.info {
                infos.push(info_from_wire(Some(info))?);
            }
        }
        infos.retain(|info| filter.matches(info));
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let message = wire::CleanupRequest { snapshotter: self.name() };
        self.client.clone().cleanup(request("", message)).await.map(|_| ()).map_err(failed)
    }

    async fn sync(&self, name: &str) -> Result<(), Error> {
        self.stat(name).await.map(|_| ())
    }
}
