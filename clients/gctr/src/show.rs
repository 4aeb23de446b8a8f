//! `gctr image mount` and `unmount`: an image's files at a directory of this machine.
//!
//! A snapshot on the image is made under a name that says where it is shown, and kept from collections by a label, until
//! `unmount` takes both away.

use std::path::{Path, PathBuf};

use gantry_client::Client;
use gantry_client::pb::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use gantry_client::types::{Mount, Platform};

use crate::error::Error;

/// Keeps a snapshot that nothing refers to.
const ROOT: &str = "containerd.io/gc.root";

/// In which way.
pub struct How {
    /// Whether the files may be changed.
    pub writable: bool,
    /// Where the image was unpacked.
    pub snapshotter: String,
    /// For which platform.
    pub platform: Platform,
}

/// Shows an image's files at `target`.
pub async fn mount(client: &Client, image: &str, target: &Path, how: &How) -> Result<(), Error> {
    let target = target.canonicalize().map_err(Error::io("find the directory to mount at"))?;
    let image = client.image(image, &how.platform).await?;
    let (key, snapshotter) = (key(&target), how.snapshotter.clone());
    let labels = [(ROOT.to_owned(), "mounted".to_owned())].into_iter().collect();
    let parent = image.chain_id.clone();
    let mounts = if how.writable {
        let request = PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        client.snapshots().prepare(request).await?.into_inner().mounts
    } else {
        let request = ViewSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        client.snapshots().view(request).await?.into_inner().mounts
    };
    let mounts: Vec<Mount> = mounts
        .into_iter()
        .map(|mount| Mount { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options })
        .collect();
    let mounted = gantry_mount::mount_all(&mounts, &target).map_err(|error| Error::Usage(error.to_string()));
    if mounted.is_err() {
        // What the mount was for; the daemon says by itself if it cannot be removed.
        remove(client, &how.snapshotter, key).await?;
    }
    mounted
}

/// Ends what [`mount`] began.
pub async fn unmount(client: &Client, target: &Path, snapshotter: &str) -> Result<(), Error> {
    let target: PathBuf = target.canonicalize().map_err(Error::io("find the directory"))?;
    gantry_mount::unmount_all(&target, gantry_mount::Unmount::default())
        .map_err(|error| Error::Usage(error.to_string()))?;
    remove(client, snapshotter, key(&target)).await
}

async fn remove(client: &Client, snapshotter: &str, key: String) -> Result<(), Error> {
    let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
    client.snapshots().remove(request).await?;
    Ok(())
}

/// Name of the snapshot that is shown at a directory.
fn key(target: &Path) -> String {
    format!("mounted at {}", target.display())
}
