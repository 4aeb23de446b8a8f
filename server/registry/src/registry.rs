//! The client: what it keeps between calls, and the list of what it can do.

use std::sync::Arc;

use bytes::Bytes;
use gantry_types::{Descriptor, Digest, Reference};

use crate::auth::Auth;
use crate::breaker::Breaker;
use crate::pace::Throttle;
use crate::parts::Window;
use crate::repository::Repository;
use crate::transport::Transport;
use crate::{Access, Blob, BlobSource, Config, Error, Pushed, Resolved, fetch, list, manifest, push, referrers};

/// A client of registries. Cheap to clone; clones share connections, tokens and what is known of dead hosts.
#[derive(Clone)]
pub struct Registry(pub(crate) Arc<Shared>);

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) transport: Transport,
    pub(crate) auth: Auth,
    pub(crate) breaker: Breaker,
    pub(crate) throttle: Throttle,
    pub(crate) transfers: Arc<tokio::sync::Semaphore>,
    /// For parts of big blobs.
    pub(crate) window: Window,
}

impl Registry {
    /// A client with these settings. Opens nothing and reads nothing yet.
    pub fn new(config: Config) -> Registry {
        let shared = Shared {
            transport: Transport::new(&config),
            auth: Auth::default(),
            breaker: Breaker::new(config.breaker_pause),
            throttle: Throttle::new(config.max_bytes_per_second),
            transfers: Arc::new(tokio::sync::Semaphore::new(config.max_transfers.max(1))),
            window: Window::new(config.ranged.window),
            config,
        };
        Registry(Arc::new(shared))
    }

    /// Finds out what a reference stands for: by HEAD, else by GET. A reference with a digest must resolve to it. The
    /// body, where it was fetched, is checked against the digest.
    ///
    /// # Errors
    /// [`Error`]; `NotFound` where no host has it.
    pub async fn resolve(&self, reference: &Reference, access: &Access) -> Result<Resolved, Error> {
        manifest::resolve(&Repository::open(self, reference, access)?).await
    }

    /// The bytes of a manifest, index or other small object, checked against size and digest of its descriptor.
    /// Manifests of Docker's schema 1 and ones with too many entries are refused.
    ///
    /// # Errors
    /// [`Error`]; `ResourceExhausted` where it is larger than [`Config::max_manifest_size`].
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        access: &Access,
    ) -> Result<Bytes, Error> {
        manifest::fetch(&Repository::open(self, reference, access)?, descriptor).await
    }

    /// The bytes of a blob from `offset` to its end, in order. Breaks are mended by asking again from where they were,
    /// at another host where there is one; more or fewer bytes than the descriptor says are an error. The digest is
    /// for the caller to check, who after a mismatch should call [`Registry::distrust`] before trying again.
    ///
    /// # Errors
    /// [`Error`] when no host gives the first byte; later ones come through the [`Blob`].
    pub async fn fetch(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        access: &Access,
    ) -> Result<Blob, Error> {
        fetch::blob(Repository::open(self, reference, access)?, descriptor, offset..descriptor.size).await
    }

    /// The bytes `range` of a blob, as [`Registry::fetch`].
    ///
    /// # Errors
    /// As [`Registry::fetch`]; `InvalidArgument` where the range leaves the blob.
    pub async fn fetch_range(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        range: std::ops::Range<u64>,
        access: &Access,
    ) -> Result<Blob, Error> {
        fetch::blob(Repository::open(self, reference, access)?, descriptor, range).await
    }

    /// Passes `host` over for a while, where others are left: it delivered something wrong.
    pub fn distrust(&self, host: &str) {
        self.0.breaker.failed(host);
    }

    /// What refers to `subject` in the reference's repository: by the referrers API, else by its fallback tag.
    /// `artifact_type` keeps only those of that type.
    ///
    /// # Errors
    /// [`Error`]. A repository without referrers gives an empty list.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
        access: &Access,
    ) -> Result<Vec<Descriptor>, Error> {
        referrers::list(&Repository::open(self, reference, access)?, subject, artifact_type).await
    }

    /// The tags of the reference's repository.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn tags(&self, reference: &Reference, access: &Access) -> Result<Vec<String>, Error> {
        list::tags(&Repository::open(self, reference, access)?).await
    }

    /// The repositories of a registry host.
    ///
    /// # Errors
    /// [`Error`]; many registries refuse it.
    pub async fn catalog(&self, host: &str, access: &Access) -> Result<Vec<String>, Error> {
        list::catalog(&Repository::of_host(self, host, access)?).await
    }

    /// Sends a blob unless it is there: asks, then mounts it from one of the repositories `mount_from` of the same
    /// host, then uploads it, going on from where a break was.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        mount_from: &[String],
        access: &Access,
    ) -> Result<Pushed, Error> {
        push::blob(&Repository::open(self, reference, access)?, descriptor, source, mount_from).await
    }

    /// Sends a manifest or index by the reference's tag, or by its digest where there is no tag.
    ///
    /// # Errors
    /// [`Error`]; `InvalidArgument` where size or digest of `bytes` are not the descriptor's.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        bytes: Bytes,
        access: &Access,
    ) -> Result<Pushed, Error> {
        push::manifest(&Repository::open(self, reference, access)?, descriptor, bytes).await
    }
}
