//! Sending an image to a registry: blobs first, several at once, then manifests, the top one last.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use gantry_content::ReaderAt;
use gantry_registry::{BlobSource, Pushed};
use gantry_types::{Descriptor, Reference, Scope};

use super::manifest::{self, Document, MAX_DEPTH, MAX_SIZE};
use super::report::{Report, name_of};
use super::{ProgressSink, Push, Transfer};
use crate::content::CHUNK;
use crate::images::Image;
use crate::{Error, Result};

/// Blobs sent at once.
const AT_ONCE: usize = 4;

pub(super) async fn push(t: &Transfer, scope: &Scope, push: Push, progress: ProgressSink) -> Result<()> {
    let image = t.images.get(scope, &push.name).await?;
    // What is fetched again has nobody else to keep it.
    let (scope, cover) = t.leases.cover(scope, super::UNPACK_LEASE).await?;
    let pushed = send(t, &scope, &push, &image, progress).await;
    if let Some(cover) = cover {
        cover.end().await;
    }
    pushed
}

async fn send(t: &Transfer, scope: &Scope, push: &Push, image: &Image, progress: ProgressSink) -> Result<()> {
    let (report, reference) = (Report::new(progress), push.reference.to_string());
    report.title(format!("Pushing to OCI Registry ({reference})"));
    report.named("pushing content", &push.name, &image.target);
    report.belongs(&image.target, push.name.clone());
    let mut plan = Plan::default();
    plan.collect(t, scope, &image.target, push, 0).await?;
    plan.announce(t, scope, &report).await?;
    if plan.documents.is_empty() {
        return Err(Error::not_found("platform", format!("{:?} of image {}", push.platforms, push.name)));
    }
    let sends: Vec<_> = plan.blobs.iter().map(|blob| send_blob(t, scope, blob, push, &report).boxed()).collect();
    stream::iter(sends).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let top = plan.documents.len() - 1;
    for (number, document) in plan.documents.iter().enumerate() {
        send_document(t, scope, document, push, number == top).await?;
        report.blob("complete", document, document.size);
    }
    report.named("pushed content", &push.name, &image.target);
    report.title(format!("Completed push to OCI Registry ({reference})"));
    Ok(())
}

/// What is sent: blobs in any order, documents in this order (children before those that name them).
#[derive(Default)]
struct Plan {
    seen: BTreeSet<gantry_types::Digest>,
    blobs: Vec<Descriptor>,
    documents: Vec<Descriptor>,
}

impl Plan {
    async fn collect(
        &mut self,
        t: &Transfer,
        scope: &Scope,
        target: &Descriptor,
        push: &Push,
        depth: usize,
    ) -> Result<()> {
        if !self.seen.insert(target.digest.clone()) {
            return Ok(());
        }
        match manifest::read(&t.content, scope, target).await? {
            Some(Document::Index(index)) if depth < MAX_DEPTH => {
                let mut chosen = manifest::choose(&index.manifests, &push.platforms, 0);
                // An index that was pulled for one platform names much that is not here; the registry has it already
                // or the caller asks for platforms.
                if !push.platforms.is_empty() && depth == 0 {
                    chosen.truncate(push.platforms.len());
                    for child in &chosen {
                        Box::pin(self.collect(t, scope, child, push, depth + 1)).await?;
                    }
                    return Ok(());
                }
                for child in &chosen {
                    Box::pin(self.collect(t, scope, child, push, depth + 1)).await?;
                }
                self.documents.push(target.clone());
            }
            Some(document @ Document::Manifest(_)) => {
                t.have_layers(scope, target, &push.name).await?;
                for blob in document.children() {
                    if self.seen.insert(blob.digest.clone()) {
                        self.blobs.push(blob);
                    }
                }
                self.documents.push(target.clone());
            }
            _ => self.blobs.push(target.clone()),
        }
        Ok(())
    }
}

impl Plan {
    /// Says what will be sent, and what belongs to what.
    async fn announce(&self, t: &Transfer, scope: &Scope, report: &Report) -> Result<()> {
        for document in &self.documents {
            let children = manifest::read(&t.content, scope, document).await?.map(|read| read.children());
            children.iter().flatten().for_each(|child| report.belongs(child, name_of(document)));
        }
        self.documents.iter().rev().chain(&self.blobs).for_each(|sent| report.blob("waiting", sent, 0));
        Ok(())
    }
}

async fn send_blob(t: &Transfer, scope: &Scope, blob: &Descriptor, push: &Push, report: &Report) -> Result<()> {
    report.blob("uploading", blob, 0);
    let reader = t.content.reader(scope, &blob.digest).await?;
    let known = t.content.info(scope, &blob.digest).await?;
    let from = mount_sources(&known.labels, &push.reference);
    let source = Source(reader);
    let pushed = t.core.registry.get().push_blob(&push.reference, blob, &source, &from, &push.access).await?;
    let event = if pushed == Pushed::Existed { "already exists" } else { "complete" };
    report.blob(event, blob, blob.size);
    Ok(())
}

/// Other repositories of the same registry that have the blob.
fn mount_sources(labels: &gantry_types::Labels, to: &Reference) -> Vec<String> {
    let key = super::source_label(to);
    let listed = labels.get(&key).map(String::as_str).unwrap_or_default();
    listed.split(',').filter(|r| !r.is_empty() && *r != to.path()).map(str::to_owned).collect()
}

/// Sends a manifest or index: the top one by the reference's tag, the others by digest.
async fn send_document(t: &Transfer, scope: &Scope, document: &Descriptor, push: &Push, top: bool) -> Result<()> {
    let bytes = t.content.read_all(scope, &document.digest, MAX_SIZE).await?;
    let by_digest = format!("{}/{}@{}", push.reference.host(), push.reference.path(), document.digest);
    let reference = if top { push.reference.clone() } else { by_digest.parse()? };
    t.core.registry.get().push_manifest(&reference, document, bytes, &push.access).await?;
    Ok(())
}

/// A blob of the content store as what a push reads from.
struct Source(Arc<dyn ReaderAt>);

#[async_trait]
impl BlobSource for Source {
    async fn open(&self, offset: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>> {
        let reader = Arc::clone(&self.0);
        let pieces = stream::try_unfold((reader, offset), |(reader, offset)| async move {
            let piece = reader.read_at(offset, CHUNK).await.map_err(std::io::Error::other)?;
            let next = offset + piece.len() as u64;
            Ok((!piece.is_empty()).then_some((piece, (reader, next))))
        });
        Ok(pieces.boxed())
    }
}
