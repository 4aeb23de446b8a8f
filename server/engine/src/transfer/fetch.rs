//! Blobs from a registry into content: one fetch of a digest at a time, verified, going on where an earlier one broke off.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use gantry_registry::{Access, Registry};
use gantry_types::{Descriptor, ErrorKind, HasKind, Labels, Reference, Scope, labels};

use tokio_util::sync::CancellationToken;

use super::Transfer;
use super::report::{Report, name_of};
use crate::content::{Writer, is_present};
use crate::stream::Feed;
use crate::{Error, Result};

/// Pause between two reports on one blob.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How often a blob is tried in all: after wrong bytes from another host, where there is one.
const TRIES: usize = 3;

const STOPPED: Error = Error::Stopped { what: "fetch" };

/// Where blobs come from and who is told.
pub(super) struct Fetch<'a> {
    pub(super) transfer: &'a Transfer,
    pub(super) scope: &'a Scope,
    pub(super) reference: &'a Reference,
    pub(super) access: &'a Access,
    pub(super) report: &'a Report,
    /// Ends fetches orderly.
    pub(super) stop: &'a CancellationToken,
}

impl Fetch<'_> {
    /// Brings a blob into content, with `labels`. With a feed its bytes go there on the way; one that gets less than
    /// all of the right bytes sees its stream broken.
    pub(super) async fn blob(&self, descriptor: &Descriptor, labels: &Labels, feed: Option<Feed>) -> Result<()> {
        self.report.blob("waiting", descriptor, 0);
        let turn = self.transfer.fetching.lock(descriptor.digest.as_str());
        let _one = self.stop.run_until_cancelled(turn).await.ok_or(STOPPED)?;
        let reference = ingest(descriptor);
        let mut feed = feed;
        for attempt in 1..=TRIES {
            let fetched = self.attempt(&reference, descriptor, labels, feed.take()).await;
            match fetched {
                Err(Error::Collected { .. }) if attempt < TRIES => {}
                Err(error) if attempt < TRIES && error.kind() == ErrorKind::FailedPrecondition => {
                    tracing::warn!(digest = %descriptor.digest, %error, "wrong bytes; fetching again");
                }
                fetched => return fetched,
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        reference: &str,
        descriptor: &Descriptor,
        labels: &Labels,
        feed: Option<Feed>,
    ) -> Result<()> {
        let opened = self.open(reference, descriptor).await;
        let writer = match opened {
            Err(error) if is_present(&error) => {
                self.report.blob("already exists", descriptor, descriptor.size);
                self.add_source(descriptor, labels).await?;
                return self.feed_stored(descriptor, feed).await;
            }
            opened => opened?,
        };
        let fetched = self.write(writer, descriptor, labels, feed).await;
        match fetched {
            Ok(()) => {
                self.report.blob("complete", descriptor, descriptor.size);
                Ok(())
            }
            Err(error) => {
                // Nothing is left of a failed fetch; only one that was broken off goes on later.
                let _ = self.transfer.content.abort(self.scope, reference).await;
                Err(error)
            }
        }
    }

    /// The ingest belongs to no lease: it must outlive a pull that is broken off, and expires by itself.
    async fn open(&self, reference: &str, descriptor: &Descriptor) -> Result<Writer> {
        let content = &self.transfer.content;
        if content.info(self.scope, &descriptor.digest).await.is_ok() {
            // With the lease, so that the lease keeps what is there.
            return content.writer(self.scope, reference, Some(descriptor.size), Some(&descriptor.digest)).await;
        }
        let alone = Scope { lease: None, ..self.scope.clone() };
        let opened = content.writer(&alone, reference, Some(descriptor.size), Some(&descriptor.digest)).await;
        let mut writer = match opened {
            // An earlier ingest of that name expected something else.
            Err(error) if error.kind() == ErrorKind::FailedPrecondition => {
                content.abort(&alone, reference).await?;
                content.writer(&alone, reference, Some(descriptor.size), Some(&descriptor.digest)).await?
            }
            opened => opened?,
        };
        writer.adopt(self.scope);
        Ok(writer)
    }

    async fn write(
        &self,
        mut writer: Writer,
        descriptor: &Descriptor,
        labels: &Labels,
        feed: Option<Feed>,
    ) -> Result<()> {
        let mut offset = writer.status().offset;
        // Where a part is here already, the whole is read from content afterwards.
        let (mut feed, later) = if offset == 0 { (feed, None) } else { (None, feed) };
        let registry = &self.transfer.core.registry.get();
        let mut host = String::new();
        if offset < descriptor.size {
            // Who watches over progress is to know from when on bytes are awaited.
            self.report.blob("downloading", descriptor, offset);
            let fetching = registry.fetch(self.reference, descriptor, offset, self.access);
            let mut bytes = self.stop.run_until_cancelled(fetching).await.ok_or(STOPPED)??;
            host = bytes.host().to_owned();
            let mut reported = Instant::now();
            loop {
                let piece = match self.stop.run_until_cancelled(bytes.next()).await {
                    Some(Some(piece)) => piece?,
                    Some(None) => break,
                    None => {
                        // So that nothing is written any more when the ingest is dropped.
                        writer.close().await?;
                        return Err(STOPPED);
                    }
                };
                offset = writer.write(offset, piece.clone()).await?;
                pass_on(&mut feed, piece).await;
                if reported.elapsed() >= REPORT_EVERY {
                    self.report.blob("downloading", descriptor, offset);
                    reported = Instant::now();
                }
            }
        }
        let committed = writer.commit(Some(descriptor.size), Some(&descriptor.digest), labels.clone()).await;
        match committed {
            Err(error) if is_present(&error) => {}
            Err(error) => {
                distrust(registry, &host, &error);
                return Err(error);
            }
            Ok(_) => {}
        }
        if let Some(feed) = feed {
            feed.finish().await;
        }
        self.feed_stored(descriptor, later).await
    }

    /// What is here already goes to who wants the bytes from where it is.
    async fn feed_stored(&self, descriptor: &Descriptor, feed: Option<Feed>) -> Result<()> {
        if let Some(feed) = feed {
            feed.blob(self.transfer.content.reader(self.scope, &descriptor.digest).await?).await;
        }
        Ok(())
    }

    /// Labels of a blob that was here: what it refers to, and from where else it can be had.
    pub(super) async fn add_source(&self, descriptor: &Descriptor, labels: &Labels) -> Result<()> {
        let content = &self.transfer.content;
        let known = content.info(self.scope, &descriptor.digest).await?.labels;
        let merged: Labels =
            labels.iter().map(|(key, value)| (key.clone(), merged(known.get(key), key, value))).collect();
        let changed = merged.iter().any(|(key, value)| known.get(key) != Some(value));
        if changed {
            let fields = super::manifest::fields(&merged);
            content.update(self.scope, &descriptor.digest, merged, &fields).await?;
        }
        Ok(())
    }
}

/// The repositories a blob can be had from are a list; all other labels are what they now are.
fn merged(known: Option<&String>, key: &str, value: &str) -> String {
    let Some(known) = known.filter(|_| key.starts_with(labels::DISTRIBUTION_SOURCE)) else { return value.to_owned() };
    let mut listed: Vec<&str> = known.split(',').chain([value]).filter(|repository| !repository.is_empty()).collect();
    listed.sort_unstable();
    listed.dedup();
    let all = listed.join(",");
    if labels::validate(key, &all).is_ok() { all } else { value.to_owned() }
}

/// Name of a blob's ingest.
pub(super) fn ingest(descriptor: &Descriptor) -> String {
    name_of(descriptor)
}

/// Who stopped reading is not fed any more; that it did is its own affair to tell.
async fn pass_on(feed: &mut Option<Feed>, piece: Bytes) {
    let Some(open) = feed else { return };
    if !open.send(piece).await {
        *feed = None;
    }
}

/// A host that delivers wrong bytes is passed over for a while.
fn distrust(registry: &Registry, host: &str, error: &Error) {
    if error.kind() == ErrorKind::FailedPrecondition && !host.is_empty() {
        registry.distrust(host);
    }
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn repositories_gather_and_other_labels_are_replaced() {
        let source = "containerd.io/distribution.source.r.example";
        let known = "a/b".to_owned();
        assert_eq!(merged(Some(&known), source, "c/d"), "a/b,c/d");
        assert_eq!(merged(Some(&known), source, "a/b"), "a/b");
        assert_eq!(merged(None, source, "a/b"), "a/b");
        assert_eq!(merged(Some(&known), "other", "x"), "x");
    }
}
