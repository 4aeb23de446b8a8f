//! Parts of the engine that other processes serve, made from the configuration, and what is put right about them once
//! they can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_content::Store;
use gantry_plugins::{Peer, RemoteDiffer, RemoteSandboxer, RemoteSnapshotter, RemoteStore};
use gantry_snapshots::Snapshotter;
use gantry_types::{Digest, ErrorKind, Filter, HasKind, Namespace};

use crate::core::Core;
use crate::restore::{Repairs, namespaces, remove_snapshots};
use crate::{Config, Error, ProxyKind, Result};

/// First and longest pause between attempts to reach a plug-in.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Longer than a record needs to be written.
const COMMITTED: Duration = Duration::from_secs(5);

/// Names that are taken, besides those of snapshotters.
const BUILT_IN: &[(ProxyKind, &str)] = &[
    (ProxyKind::Content, "content"),
    (ProxyKind::Diff, "walking"),
    (ProxyKind::Diff, "erofs"),
    (ProxyKind::Sandbox, "shim"),
    (ProxyKind::Sandbox, "podsandbox"),
];

/// The parts, by their names.
#[derive(Default)]
pub(crate) struct Plugins {
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    /// In place of our own.
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) differs: BTreeMap<String, RemoteDiffer>,
    pub(crate) sandboxers: BTreeMap<String, RemoteSandboxer>,
}

/// Makes clients of what is configured; connects to nothing yet.
///
/// # Errors
/// `InvalidArgument` for a plug-in that cannot be: a bad address, a second content store, a differ that is not there.
pub(crate) fn open(config: &Config) -> Result<Plugins> {
    let mut plugins = Plugins::default();
    for (name, plugin) in &config.proxy_plugins {
        if BUILT_IN.contains(&(plugin.kind, name.as_str())) {
            return Err(Error::invalid("proxy_plugins", format!("{name:?} is the name of a built-in part")));
        }
        let peer = Peer::new(name, &plugin.address)?;
        match plugin.kind {
            ProxyKind::Snapshot => {
                let root = plugin.exports.get("root").map(PathBuf::from);
                let remote = RemoteSnapshotter::new(peer, &plugin.capabilities, root);
                plugins.snapshotters.insert(name.clone(), Arc::new(remote));
            }
            ProxyKind::Content if plugins.store.is_some() => {
                let reason = format!("{name:?} is the second content store: there can be one");
                return Err(Error::invalid("proxy_plugins", reason));
            }
            ProxyKind::Content => plugins.store = Some(Arc::new(RemoteStore::new(peer))),
            ProxyKind::Diff => drop(plugins.differs.insert(name.clone(), RemoteDiffer::new(peer))),
            ProxyKind::Sandbox => drop(plugins.sandboxers.insert(name.clone(), RemoteSandboxer::new(peer))),
        }
    }
    Ok(plugins)
}

/// Compares, in the background, the records with what remote parts have: at start they may not be there yet. Tries
/// until it has been done once. Other work goes on meanwhile, so only what is older than this start is judged.
pub(crate) async fn reconcile_when_reached(core: &Arc<Core>) -> Result<()> {
    let remote = core.snapshotters.iter().filter(|(_, snapshotter)| snapshotter.is_remote());
    let remote: Vec<_> = remote.map(|(name, snapshotter)| (name.clone(), Arc::clone(snapshotter))).collect();
    if remote.is_empty() && !core.config.has_remote_store() {
        return Ok(());
    }
    let start = core.db.next_sequence().await?;
    for (name, snapshotter) in remote {
        let core = Arc::clone(core);
        tokio::spawn(async move {
            let mend = || mend_snapshots(&core, &name, &*snapshotter, start);
            until_done(&core, &name, mend).await;
        });
    }
    if core.config.has_remote_store() {
        let core = Arc::clone(core);
        tokio::spawn(async move { until_done(&core, "content", || mend_content(&core, start)).await });
    }
    Ok(())
}

/// Whether a name in another process was given before number `start`: `NAMESPACE/NUMBER/…`. Other names are not ours.
fn is_older(internal: &str, start: u64) -> bool {
    let number = internal.split('/').nth(1).and_then(|number| number.parse::<u64>().ok());
    number.is_some_and(|number| number < start)
}

/// Removes snapshots that no record names, and records whose snapshot is gone.
async fn mend_snapshots(core: &Core, name: &str, snapshotter: &dyn Snapshotter, start: u64) -> Result<()> {
    let records = records_of(core, name);
    let there: BTreeSet<String> =
        snapshotter.walk(&Filter::default()).await?.into_iter().map(|info| info.name).collect();
    let known = core.db.known_snapshots(name);
    let orphans = there.iter().filter(|key| !known.contains(*key) && is_older(key, start)).cloned();
    remove_snapshots(name, snapshotter, orphans.collect(), &mut Repairs::default()).await;
    let gone: Vec<_> = records.into_iter().filter(|(_, record)| !there.contains(&record.internal)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    // One that is being committed at this moment has its new record in a moment.
    tokio::time::sleep(COMMITTED).await;
    for (namespace, record) in gone {
        let records = core.db.snapshots(&namespace, name);
        let same = records.get(&record.key).is_ok_and(|now| now.internal == record.internal);
        if same && snapshotter.stat(&record.internal).await.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            let outcome = records.remove(&record.key, None).await;
            tracing::warn!(
                key = record.key,
                snapshotter = name,
                ok = outcome.is_ok(),
                "record of a snapshot that is gone"
            );
        }
    }
    Ok(())
}

fn records_of(core: &Core, snapshotter: &str) -> Vec<(Namespace, gantry_metadata::Snapshot)> {
    let mut all = Vec::new();
    for namespace in namespaces(core) {
        let records = core.db.snapshots(&namespace, snapshotter).scan().filter_map(std::result::Result::ok);
        all.extend(records.map(|record| (namespace.clone(), record)));
    }
    all
}

/// Drops blobs and ingests that no record names, and records whose blob is gone.
async fn mend_content(core: &Core, start: u64) -> Result<()> {
    let mut records = Vec::new();
    for namespace in namespaces(core) {
        let blobs = core.db.blobs(&namespace).scan().filter_map(std::result::Result::ok);
        records.extend(blobs.map(|blob| (namespace.clone(), blob.digest)));
    }
    let there: BTreeSet<Digest> = core.store.walk().await?.into_iter().map(|info| info.digest).collect();
    for digest in &there {
        let _one = core.joining.lock(digest.as_str()).await;
        if core.db.sharers(digest) == 0 {
            core.store.delete(digest).await?;
        }
    }
    let known = core.db.known_ingests();
    for ingest in core.store.statuses().await? {
        if !known.contains(&ingest.reference) && is_older(&ingest.reference, start) {
            core.store.abort(&ingest.reference).await?;
        }
    }
    for (namespace, digest) in records.into_iter().filter(|(_, digest)| !there.contains(digest)) {
        if core.store.info(&digest).await.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            let outcome = core.db.blobs(&namespace).delete(&digest, None).await;
            tracing::warn!(%digest, %namespace, ok = outcome.is_ok(), "record of a blob that is gone");
        }
    }
    Ok(())
}

/// Tries until it was done, or the engine closes.
async fn until_done<F: Future<Output = Result<()>>>(core: &Core, name: &str, attempt: impl Fn() -> F) {
    let mut pause = PAUSES.0;
    loop {
        match core.stop.run_until_cancelled(attempt()).await {
            None | Some(Ok(())) => return,
            Some(Err(error)) => tracing::info!(name, %error, "records not compared with the plug-in yet"),
        }
        if core.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

impl Config {
    /// Whether another process keeps the content.
    pub(crate) fn has_remote_store(&self) -> bool {
        self.proxy_plugins.values().any(|plugin| plugin.kind == ProxyKind::Content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProxyPlugin;

    fn plugin(kind: ProxyKind, address: &str) -> ProxyPlugin {
        let (platform, exports, capabilities) = Default::default();
        ProxyPlugin { kind, address: address.into(), platform, exports, capabilities }
    }

    fn opened(plugins: &[(&str, ProxyKind, &str)]) -> Result<Plugins> {
        let mut config = Config::new("/r", "/s");
        let made = plugins.iter().map(|(name, kind, address)| ((*name).to_owned(), plugin(*kind, address)));
        config.proxy_plugins = made.collect();
        open(&config)
    }

    #[tokio::test]
    async fn each_kind_of_plug_in_becomes_its_part() {
        let all = [
            ("stargz", ProxyKind::Snapshot, "/a"),
            ("blobs", ProxyKind::Content, "/b"),
            ("differ", ProxyKind::Diff, "/c"),
            ("kata", ProxyKind::Sandbox, "/d"),
        ];
        let plugins = opened(&all).unwrap();
        assert!(plugins.snapshotters.contains_key("stargz") && plugins.store.is_some());
        assert!(plugins.differs.contains_key("differ") && plugins.sandboxers.contains_key("kata"));
    }

    #[test]
    fn only_names_of_ours_and_from_before_are_old() {
        assert!(is_older("default/4/key/with/slashes", 5));
        assert!(!is_older("default/5/key", 5) && !is_older("elsewhere", 5) && !is_older("a/b/c", 5));
    }

    #[tokio::test]
    async fn what_cannot_be_is_told_at_once() {
        assert!(opened(&[("a", ProxyKind::Snapshot, "relative")]).is_err());
        assert!(opened(&[("shim", ProxyKind::Sandbox, "/a")]).is_err());
        assert!(opened(&[("a", ProxyKind::Content, "/a"), ("b", ProxyKind::Content, "/b")]).is_err());
    }
}
