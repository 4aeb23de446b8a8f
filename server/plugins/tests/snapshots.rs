//! The contract, for a snapshotter in another process: a served overlay.

#![allow(clippy::unwrap_used)]

mod serve;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_plugins::{Peer, RemoteSnapshotter};
use gantry_snapshots::{Error, Info, Overlay, OverlayConfig, Snapshotter, Usage, contract_tests};
use gantry_types::{ErrorKind, Filter, HasKind, Labels, Mount};
use tokio::runtime::Runtime;

/// A client and the server it talks to, which runs in threads of its own.
struct Pair {
    remote: RemoteSnapshotter,
    server: Option<Runtime>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

fn remote(socket: &Path) -> RemoteSnapshotter {
    RemoteSnapshotter::new(Peer::new("overlayfs", socket).unwrap(), &[], None)
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    let socket = root.with_extension("sock");
    let _ = std::fs::remove_file(&socket);
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let overlay = Arc::new(Overlay::open(root, OverlayConfig::default()).unwrap());
    let inside = server.enter();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let remote = remote(&socket);
    server.spawn(serve::serve(listener, overlay));
    drop(inside);
    Arc::new(Pair { remote, server: Some(server) })
}

#[async_trait]
impl Snapshotter for Pair {
    async fn stat(&self, key: &str) -> Result<Info, Error> {
        self.remote.stat(key).await
    }
    async fn update(&self, info: Info, fieldpaths: &[String]) -> Result<Info, Error> {
        self.remote.update(info, fieldpaths).await
    }
    async fn usage(&self, key: &str) -> Result<Usage, Error> {
        self.remote.usage(key).await
    }
    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        self.remote.mounts(key).await
    }
    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.remote.prepare(key, parent, labels).await
    }
    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        self.remote.view(key, parent, labels).await
    }
    async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        self.remote.commit(name, key, parent, labels).await
    }
    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.remote.remove(key).await
    }
    async fn walk(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        self.remote.walk(filter).await
    }
    async fn cleanup(&self) -> Result<(), Error> {
        self.remote.cleanup().await
    }
    async fn sync(&self, name: &str) -> Result<(), Error> {
        self.remote.sync(name).await
    }
}

contract_tests!(open);

#[tokio::test]
async fn nobody_listening_is_unavailable_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("missing.sock");
    let error = remote(&socket).stat("key").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("\"overlayfs\"") && text.contains(&*socket.to_string_lossy()), "{text}");
}

#[tokio::test]
async fn only_capabilities_that_the_engine_knows_are_offered_to_it() {
    let words = ["rebase".to_owned(), "sing".to_owned()];
    let remote = RemoteSnapshotter::new(Peer::new("p", Path::new("/p.sock")).unwrap(), &words, None);
    assert_eq!(remote.capabilities(), ["rebase"]);
}
