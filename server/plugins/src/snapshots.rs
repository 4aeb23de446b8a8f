//! A snapshotter in another process, over `containerd.services.snapshots.v1`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use gantry_api::convert::{mounts_from_wire, time_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::snapshots::v1 as wire;
use gantry_snapshots::{Error, Info, Kind, Snapshotter, Usage};
use gantry_types::{ErrorKind, Filter, Labels, Mount, Namespace};
use tonic::transport::Channel;

use crate::peer::{Failure, MAX_MESSAGE, Peer, QUICK, REMOVAL, SLOW};

type Client = wire::snapshots_client::SnapshotsClient<Channel>;

/// Capabilities that mean something to the engine.
const KNOWN: &[&str] = &["rebase", "remap-ids", "only-remap-ids", "multi-remap-ids"];

/// A snapshotter in another process.
///
/// The service has no call for making files durable, so [`Snapshotter::sync`] only checks that the snapshot is there.
#[derive(Clone, Debug)]
pub struct RemoteSnapshotter {
    peer: Peer,
    client: Client,
    capabilities: Vec<&'static str>,
    root: Option<PathBuf>,
}

impl RemoteSnapshotter {
    /// The snapshotter that `peer` serves under its own name. `capabilities` and `root` are what the operator says of
    /// it.
    pub fn new(peer: Peer, capabilities: &[String], root: Option<PathBuf>) -> RemoteSnapshotter {
        let client = Client::new(peer.channel()).max_decoding_message_size(MAX_MESSAGE);
        let has = |known: &str| capabilities.iter().any(|word| word == known);
        RemoteSnapshotter { peer, client, capabilities: KNOWN.iter().copied().filter(|word| has(word)).collect(), root }
    }

    fn name(&self) -> String {
        self.peer.name().to_owned()
    }
}

/// The engine's keys begin with the namespace they belong to, which the service wants in a header.
fn namespace(key: &str) -> String {
    let namespace = key.split('/').next().and_then(|first| first.parse::<Namespace>().ok());
    namespace.map_or_else(|| "default".to_owned(), |namespace| namespace.as_str().to_owned())
}

fn info_from_wire(peer: &Peer, info: Option<wire::Info>) -> Result<Info, Failure> {
    let info = info.ok_or_else(|| peer.broken("without an info"))?;
    let kind = match info.kind() {
        wire::Kind::View => Kind::View,
        wire::Kind::Active => Kind::Active,
        wire::Kind::Committed => Kind::Committed,
        wire::Kind::Unknown => return Err(peer.broken("with a snapshot of unknown kind")),
    };
    let time = |time: Option<_>| match time {
        None => Ok(SystemTime::UNIX_EPOCH),
        Some(time) => time_from_wire(time).map_err(|error| peer.broken(&error.to_string())),
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

/// Whether a list failed because there was never anything to list. What keeps its records by containerd's library says
/// that its table does not exist, and containerd's service passes that on without a code.
fn has_none(failure: &Failure) -> bool {
    let kind = failure.kind;
    kind == ErrorKind::NotFound || kind == ErrorKind::Unknown && failure.message.ends_with(": not found")
}

/// Calls `method` of the other side, in the namespace of a key.
macro_rules! call {
    ($self:ident . $method:ident, $key:expr, $limit:expr, $message:expr) => {{
        let mut client = $self.client.clone();
        let request = $self.peer.request(&namespace($key), $limit, $message);
        $self.peer.answer($limit, client.$method(request)).await
    }};
}

impl RemoteSnapshotter {
    async fn listed(&self) -> Result<Vec<Info>, Failure> {
        let message = wire::ListSnapshotsRequest { snapshotter: self.name(), filters: Vec::new() };
        let mut stream = call!(self.list, "", QUICK, message)?;
        let mut infos = Vec::new();
        while let Some(part) = self.peer.next(QUICK, &mut stream).await? {
            for info in part.info {
                infos.push(info_from_wire(&self.peer, Some(info))?);
            }
        }
        Ok(infos)
    }
}

#[async_trait]
impl Snapshotter for RemoteSnapshotter {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        let message = wire::StatSnapshotRequest { snapshotter: self.name(), key: key.into() };
        Ok(info_from_wire(&self.peer, call!(self.stat, key, QUICK, message)?.info)?)
    }

    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        let name = info.name.clone();
        let mut message = wire::UpdateSnapshotRequest { snapshotter: self.name(), ..Default::default() };
        message.info = Some(info_to_wire(info));
        message.update_mask.get_or_insert_default().paths = fieldpaths.to_vec();
        Ok(info_from_wire(&self.peer, call!(self.update, &name, QUICK, message)?.info)?)
    }

    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let message = wire::UsageRequest { snapshotter: self.name(), key: key.into() };
        let usage = call!(self.usage, key, SLOW, message)?;
        let count = |number: i64| u64::try_from(number).map_err(|_| self.peer.broken("with a negative usage"));
        Ok(Usage { inodes: count(usage.inodes)?, size: count(usage.size)? })
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let message = wire::MountsRequest { snapshotter: self.name(), key: key.into() };
        Ok(mounts_from_wire(call!(self.mounts, key, QUICK, message)?.mounts))
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let (snapshotter, key, parent) = (self.name(), key.to_owned(), parent.unwrap_or_default().to_owned());
        let message = wire::PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        Ok(mounts_from_wire(call!(self.prepare, &key, SLOW, message)?.mounts))
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let (snapshotter, key, parent) = (self.name(), key.to_owned(), parent.unwrap_or_default().to_owned());
        let message = wire::ViewSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        Ok(mounts_from_wire(call!(self.view, &key, SLOW, message)?.mounts))
    }

    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        let message = wire::CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.into(),
            key: key.into(),
            labels,
            parent: parent.unwrap_or_default().into(),
        };
        Ok(call!(self.commit, key, SLOW, message)?)
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let message = wire::RemoveSnapshotRequest { snapshotter: self.name(), key: key.into() };
        Ok(call!(self.remove, key, REMOVAL, message)?)
    }

    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        let mut infos = match self.listed().await {
            Err(failure) if has_none(&failure) => Vec::new(),
            listed => listed?,
        };
        infos.retain(|info| filter.matches(info));
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let message = wire::CleanupRequest { snapshotter: self.name() };
        match call!(self.cleanup, "", REMOVAL, message) {
            // Not every plug-in has something to clean up.
            Err(failure) if failure.kind == ErrorKind::Unimplemented => Ok(()),
            done => Ok(done?),
        }
    }

    async fn sync(&self, name: &str) -> Result<(), Error> {
        self.stat(name).await.map(|_| ())
    }

    fn capabilities(&self) -> &[&'static str] {
        &self.capabilities
    }

    fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    fn is_remote(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_says_that_there_is_nothing_to_list() {
        let failed = |kind, message: &str| Failure { kind, message: message.to_owned() };
        assert!(has_none(&failed(ErrorKind::Unknown, "bucket does not exist: not found")));
        assert!(has_none(&failed(ErrorKind::NotFound, "nothing here")));
        assert!(!has_none(&failed(ErrorKind::Unknown, "database not open")));
        assert!(!has_none(&failed(ErrorKind::Unavailable, "plug-in: not found")));
    }
}
