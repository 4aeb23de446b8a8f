//! Serves an overlay (or with `native` as third argument, a native) snapshotter in directory ROOT as a proxy plugin on the
//! unix socket SOCKET: `cargo run --example serve -- SOCKET ROOT [native]`. Any containerd can use it, and containerd's
//! own test suite for snapshotters can be pointed at it.

use std::path::Path;
use std::sync::Arc;

use gantry_snapshots::{Native, Overlay, OverlayConfig, Snapshotter};

#[path = "../tests/serve/mod.rs"]
mod serve;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, root, rest @ ..] = arguments.as_slice() else {
        return Err("usage: serve SOCKET ROOT [native]".into());
    };
    let snapshots: Arc<dyn Snapshotter> = match rest {
        [] => Arc::new(Overlay::open(Path::new(root), OverlayConfig::default())?),
        _ => Arc::new(Native::open(Path::new(root))?),
    };
    serve::serve(tokio::net::UnixListener::bind(socket)?, snapshots).await?;
    Ok(())
}
