//! The contract, for a snapshotter in another process: a served overlay.

#![allow(clippy::unwrap_used)]

mod serve;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_snapshots::{Error, Info, Overlay, OverlayConfig, Remote, RemoteConfig, Snapshotter, Usage, contract_tests};
use gantry_types::{ErrorKind, Filter, HasKind, Labels, Mount};
use tokio::runtime::Runtime;

/// A client and the server it talks to, which runs in threads of its own.
struct Pair {
    remote: Remote,
    server: Option<Runtime>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

fn config(socket: &Path) -> RemoteConfig {
    let address = format!("unix://{}", socket.display());
    RemoteConfig { address, snapshotter: "overlayfs".into(), timeout: Duration::from_secs(30) }
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    let socket = root.with_extension("sock");
    let _ = std::fs::remove_file(&socket);
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let overlay = Arc::new(Overlay::open(root, OverlayConfig::default()).unwrap());
    let inside = server.enter();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let remote = Remote::new(&config(&socket)).unwrap();
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
async fn nobody_listening_is_unavailable_and_a_bad_address_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(&config(&dir.path().join("missing.sock"))).unwrap();
    assert_eq!(remote.stat("key").await.unwrap_err().kind(), ErrorKind::Unavailable);
    let bad = RemoteConfig { address: "no address at all".into(), ..config(dir.path()) };
    assert_eq!(Remote::new(&bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
}
