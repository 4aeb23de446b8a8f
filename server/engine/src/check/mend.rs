//! Mending what is broken: blobs first, from the small to the large, then snapshots, from the bottom up.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use gantry_content::{Commit, Error as StoreError, Writer, WriterOptions};
use gantry_metadata::Snapshot;
use gantry_registry::Access;
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind as _, Labels, Mount, media_type};
use tokio_util::sync::CancellationToken;

use super::look::{Broken, Layer, chain_id, diff_id};
use super::origins::{Origin, Origins};
use super::{Check, Finding, Outcome, own};
use crate::diff::{Job, is_erofs};
use crate::leases::unique;
use crate::place::{Below, needs_lower};
use crate::{Error, Result, decryption, processors, restore};

/// Mends what can be mended; says what became of each.
pub(super) async fn all(check: &Check, broken: Vec<Broken>) -> Vec<Finding> {
    let (mut blobs, mut layers) = (Vec::new(), Vec::new());
    for broken in broken {
        match broken {
            Broken::Blob { digest, problem } => blobs.push((digest, problem)),
            Broken::Layer { layer, problem } => layers.push((layer, problem)),
        }
    }
    let mut findings = mend_blobs(check, blobs).await;
    layers.sort_by_cached_key(|(layer, _)| depth(check, layer));
    let origins = Origins::of(check, &HashSet::new()).await;
    for (layer, problem) in layers {
        let outcome = match mend_layer(check, &layer, &origins).await {
            Ok(()) => {
                check.core.doubt.is_well(&layer.record.snapshotter, &layer.record.internal);
                Outcome::Mended("unpacked again")
            }
            Err(error) => Outcome::Failed(error.to_string()),
        };
        let broken = Broken::Layer { layer, problem };
        if matches!(outcome, Outcome::Failed(_)) {
            broken.doubt(&check.core.doubt, false);
        }
        tracing::warn!(object = ?broken.object(), ?outcome, "mending");
        findings.push(Finding { outcome, ..broken.told() });
    }
    findings
}

/// How many snapshots are below.
fn depth(check: &Check, layer: &Layer) -> usize {
    let records = check.core.db.snapshots(&layer.namespace, &layer.record.snapshotter);
    let parent = |record: &Snapshot| records.get(record.parent.as_deref()?).ok();
    std::iter::successors(Some(layer.record.clone()), parent).count()
}

/// A document that is mended tells where others are to be had: as many rounds as help.
async fn mend_blobs(check: &Check, blobs: Vec<(Digest, String)>) -> Vec<Finding> {
    let mut left: BTreeMap<Digest, (String, String)> = BTreeMap::new();
    let unknown = "no image that is here tells where it can be had";
    left.extend(blobs.into_iter().map(|(digest, problem)| (digest, (problem, unknown.to_owned()))));
    let mut findings = Vec::new();
    loop {
        let broken: HashSet<Digest> = left.keys().cloned().collect();
        let origins = Origins::of(check, &broken).await;
        let mut mended = false;
        for digest in broken {
            match fetch(check, &digest, origins.of_blob(&digest)).await {
                Some(Ok(())) => {
                    mended = true;
                    if let Some((problem, _)) = left.remove(&digest) {
                        findings.push(done(digest, problem, Outcome::Mended("fetched again")));
                    }
                }
                Some(Err(error)) => {
                    left.entry(digest).and_modify(|(_, why)| *why = error.to_string());
                }
                None => {}
            }
        }
        if !mended || left.is_empty() {
            break;
        }
    }
    for (digest, (problem, why)) in left {
        let outcome = match remove(check, &digest).await {
            Ok(()) => Outcome::Removed(format!("a pull brings it back; now it cannot be had: {why}")),
            Err(error) => Outcome::Failed(error.to_string()),
        };
        findings.push(done(digest, problem, outcome));
    }
    findings
}

fn done(digest: Digest, problem: String, outcome: Outcome) -> Finding {
    tracing::warn!(%digest, ?outcome, "mending");
    Finding { outcome, ..Broken::Blob { digest, problem }.told() }
}

/// Fetches a blob again from the first that has it; none where nobody is known.
async fn fetch(check: &Check, digest: &Digest, origins: &[Origin]) -> Option<Result<()>> {
    let mut last = None;
    for origin in origins {
        match fetch_from(check, digest, origin).await {
            Ok(()) => return Some(Ok(())),
            Err(error) => last = Some(Err(error)),
        }
    }
    last
}

/// The bytes come beside those that are there, and take their place once they are known to be right.
async fn fetch_from(check: &Check, digest: &Digest, origin: &Origin) -> Result<()> {
    let _one = check.transfer.fetching.lock(digest.as_str()).await;
    let store = &check.core.store;
    let name = format!("mend/{}/{digest}", unique());
    let mut writer = store.writer(WriterOptions::new(name.clone())).await?;
    let written = bring(check, &mut *writer, origin).await;
    let found = match written {
        Ok(()) => writer.digest().await.map_err(Error::from),
        Err(error) => Err(error),
    };
    let wrong = |actual| StoreError::Digest { reference: name.clone(), expected: digest.clone(), actual };
    let right = found.and_then(|found| if found == *digest { Ok(()) } else { Err(wrong(found).into()) });
    if let Err(error) = right {
        drop(writer);
        // The next start removes what no record names.
        let _ = store.abort(&name).await;
        return Err(error);
    }
    let _joining = check.core.joining.lock(digest.as_str()).await;
    match store.delete(digest).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let commit = Commit { size: Some(origin.descriptor.size), digest: Some(digest.clone()) };
    Ok(writer.commit(commit).await.map(drop)?)
}

async fn bring(check: &Check, writer: &mut dyn Writer, origin: &Origin) -> Result<()> {
    let (registry, access) = (check.core.registry.get(), Access::default());
    let Origin { descriptor, reference } = origin;
    if media_type::is_index(&descriptor.media_type) || media_type::is_manifest(&descriptor.media_type) {
        let bytes: Bytes = registry.manifest(reference, descriptor, &access).await?;
        writer.write(0, bytes).await?;
        return Ok(());
    }
    let mut bytes = registry.fetch(reference, descriptor, 0, &access).await?;
    let mut offset = 0;
    while let Some(piece) = futures::StreamExt::next(&mut bytes).await {
        offset = writer.write(offset, piece?).await?;
    }
    Ok(())
}

/// Takes a broken blob away, so that nobody takes it for good, and a pull fetches it.
async fn remove(check: &Check, digest: &Digest) -> Result<()> {
    let _joining = check.core.joining.lock(digest.as_str()).await;
    for namespace in restore::namespaces(&check.core) {
        match check.core.db.blobs(&namespace).delete(digest, None).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    match check.core.store.delete(digest).await {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Unpacks a layer again and puts it in the place of what is broken.
async fn mend_layer(check: &Check, layer: &Layer, origins: &Origins) -> Result<()> {
    let unknown = |reason: &str| Error::Precondition {
        what: "snapshot",
        name: layer.record.key.clone(),
        reason: reason.to_owned(),
    };
    let diff_id = diff_id(layer).ok_or_else(|| unknown("nothing says from which layer it was unpacked"))?;
    let descriptor = origins.layer(&layer.namespace, &diff_id);
    let descriptor = descriptor.ok_or_else(|| unknown("no image that is here has its layer; pull its image again"))?;
    // Under a lease, for what is fetched has nobody else to keep it.
    let (scope, cover) = check.transfer.leases.cover(&own(&layer.namespace), super::Duration::from_secs(3600)).await?;
    let mended = async {
        if check.core.db.blobs(&layer.namespace).get(&descriptor.digest).is_err() {
            check
                .transfer
                .bring_back(&scope, descriptor, origins.of_blob(&descriptor.digest).first().map(|o| &o.reference))
                .await?;
        }
        let key = format!("{}/{}/{}", layer.namespace, layer.record.snapshotter, chain_id(layer));
        let _one = check.transfer.unpacking.lock(&key).await;
        unpack(check, &scope, &layer.record, descriptor, &diff_id).await
    }
    .await;
    if let Some(cover) = cover {
        cover.end().await;
    }
    mended
}

/// Unpacks a layer that is here beside a broken snapshot, and puts it in its place.
pub(super) async fn unpack(
    check: &Check,
    scope: &gantry_types::Scope,
    record: &Snapshot,
    descriptor: &Descriptor,
    diff_id: &Digest,
) -> Result<()> {
    let (name, driver) = check.core.snapshotter(&record.snapshotter)?;
    let records = check.core.db.snapshots(&scope.namespace, name);
    let parent = record.parent.as_deref().map(|parent| records.get(parent)).transpose()?;
    let below = parent.as_ref().map(|parent| parent.internal.as_str());
    // No record names it: what a kill leaves is removed at the next start.
    let internal = records.internal(&format!("mend-{}", unique())).await?;
    let mounts = driver.prepare(&internal, below, Labels::new()).await?;
    let sums = driver.files(&internal).map(|files| files.sums);
    let job = |below, mounts: Vec<Mount>| -> Result<Job> {
        Ok(Job {
            ended: CancellationToken::new(),
            digest: descriptor.digest.clone(),
            recipe: processors::recipe(&check.core.config, &descriptor.media_type, &decryption::payloads(descriptor))?,
            native: is_erofs(&descriptor.media_type),
            deadline: None,
            limits: check.core.config.unpack,
            mounts,
            below,
            sums: sums.clone(),
            control: std::sync::Arc::default(),
        })
    };
    let unpacked = async {
        let reader = || check.transfer.content.reader(scope, &descriptor.digest);
        let applied = match job(Below::Shown, mounts.clone())?.run_stored(reader().await?, false).await {
            Err(error) if needs_lower(&error) => {
                job(Below::Needed, mounts.clone())?.run_stored(reader().await?, false).await
            }
            applied => applied,
        }?;
        if applied.diff_id != *diff_id {
            let (digest, expected) = (descriptor.digest.clone(), diff_id.clone());
            return Err(Error::DiffId { digest, expected, actual: applied.diff_id });
        }
        Ok(driver.replace(&record.internal, &internal).await?)
    }
    .await;
    if let Err(error) = driver.remove(&internal).await {
        tracing::warn!(internal, %error, "what is left of mending stays until the next start");
    }
    unpacked
}
