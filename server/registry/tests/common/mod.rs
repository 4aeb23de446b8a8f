//! What the tests of the client share.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use gantry_registry::fake::{Fake, Options};
use gantry_registry::image::{Builder, Image};
use gantry_registry::{Access, Blob, Config, Credential, Error, Provided, Registry, Secret};
use gantry_types::{Descriptor, Reference};

/// Settings that fail fast.
pub fn quick() -> Config {
    Config {
        connect_timeout: Duration::from_millis(500),
        answer_timeout: Duration::from_millis(600),
        mirror_timeout: Duration::from_millis(300),
        mirror_blob_timeout: Duration::from_millis(300),
        slow_window: Duration::from_millis(400),
        backoff: Duration::from_millis(5),
        ..Config::default()
    }
}

pub async fn fake() -> Fake {
    fake_with(Options::default()).await
}

pub async fn fake_with(options: Options) -> Fake {
    Fake::start(options).await.unwrap()
}

pub fn small_image() -> Image {
    Builder::new().file("bin/hello", *b"#!/bin/sh\n", 0o755).entrypoint(&["/bin/hello"]).build()
}

/// Bytes that do not repeat.
pub fn noise(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

pub fn login(host: &str, username: &str, password: &str) -> Access {
    let credential = Credential::Basic { username: username.into(), password: Secret::new(password) };
    Access::new(Arc::new(Provided::new(host, Some(credential))))
}

pub async fn collect(blob: Blob) -> Result<Vec<u8>, Error> {
    Ok(blob.try_collect::<Vec<_>>().await?.concat())
}

pub async fn fetch(registry: &Registry, reference: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    collect(registry.fetch(reference, descriptor, 0, &Access::anonymous()).await?).await
}

/// Writes `hosts.toml` for `host` below a new directory.
pub fn hosts_dir(host: &str, text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join(host);
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(sub.join("hosts.toml"), text).unwrap();
    dir
}

pub fn access_by(dir: &tempfile::TempDir) -> Access {
    let mut access = Access::anonymous();
    access.hosts_dirs = Some(vec![dir.path().to_owned()]);
    access
}
