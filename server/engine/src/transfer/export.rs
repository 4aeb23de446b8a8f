//! Writing image archives: an OCI layout (image-spec, image-layout.md) that Docker reads too.

use std::collections::BTreeSet;

use gantry_types::{Descriptor, Digest, Platform, Scope, labels, media_type};
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::manifest::{self, Document, MAX_DEPTH, Written};
use super::report::Report;
use super::{Export, ProgressSink, Transfer, names};
use crate::content::CHUNK;
use crate::images::Image;
use crate::{Error, Result};

/// Size of a tar block, in bytes.
const BLOCK: usize = 512;

type Out = Box<dyn AsyncWrite + Send + Unpin>;

pub(super) async fn export(
    t: &Transfer,
    scope: &Scope,
    archive: Out,
    export: Export,
    progress: ProgressSink,
) -> Result<()> {
    let images = chosen_images(t, scope, &export).await?;
    // What is fetched again has nobody else to keep it.
    let (scope, cover) = t.leases.cover(scope, super::UNPACK_LEASE).await?;
    let written = write(t, &scope, archive, &export, &images, progress).await;
    if let Some(cover) = cover {
        cover.end().await;
    }
    written
}

async fn write(
    t: &Transfer,
    scope: &Scope,
    archive: Out,
    export: &Export,
    images: &[Image],
    progress: ProgressSink,
) -> Result<()> {
    let mut plan = Plan::default();
    for image in images {
        plan.add(t, scope, image, export).await?;
    }
    let report = Report::new(progress);
    report.title("Exporting");
    let mut tar = Tar { out: archive };
    tar.directory("blobs/").await?;
    for algorithm in plan.blobs.iter().map(|d| d.algorithm().name()).collect::<BTreeSet<_>>() {
        tar.directory(&format!("blobs/{algorithm}/")).await?;
    }
    for digest in &plan.blobs {
        tar.blob(t, scope, digest).await?;
    }
    tar.document("index.json", 0o644, &Written::index(media_type::OCI_INDEX, &plan.top)).await?;
    if !export.skip_docker_manifest && !plan.docker.is_empty() {
        tar.document("manifest.json", 0o644, &plan.docker).await?;
    }
    tar.document("oci-layout", 0o444, &json!({"imageLayoutVersion": "1.0.0"})).await?;
    tar.finish().await?;
    report.title("Completed export");
    Ok(())
}

async fn chosen_images(t: &Transfer, scope: &Scope, export: &Export) -> Result<Vec<Image>> {
    if export.names.is_empty() {
        return t.images.list(scope, &gantry_types::Filter::default()).await;
    }
    let mut images = Vec::new();
    for name in &export.names {
        images.push(t.images.get(scope, name).await?);
    }
    Ok(images)
}

/// What goes into the archive.
#[derive(Default)]
struct Plan {
    /// Entries of `index.json`.
    top: Vec<Descriptor>,
    /// Entries of Docker's `manifest.json`.
    docker: Vec<DockerEntry>,
    /// All blobs, in the order of their digests: the same archive for the same images.
    blobs: BTreeSet<Digest>,
}

impl Plan {
    async fn add(&mut self, t: &Transfer, scope: &Scope, image: &Image, export: &Export) -> Result<()> {
        let platforms = match (export.all_platforms, export.platforms.as_slice()) {
            (true, _) => Vec::new(),
            (false, []) => vec![Platform::host()],
            (false, some) => some.to_vec(),
        };
        let found = self.collect(t, scope, (&image.name, &image.target), &platforms, export, 0).await?;
        let Some((manifest, _)) = found.first() else {
            return Err(Error::not_found("platform", format!("{platforms:?} of image {}", image.name)));
        };
        let mut entry = image.target.clone();
        let labels = t.content.info(scope, &entry.digest).await?.labels;
        let sources = labels.into_iter().filter(|(key, _)| key.starts_with(labels::DISTRIBUTION_SOURCE));
        entry.annotations.extend(sources);
        entry.annotations.insert(names::IMAGE_NAME.to_owned(), image.name.clone());
        entry.annotations.insert(names::REF_NAME.to_owned(), names::tag_of(&image.name));
        self.top.push(entry);
        self.docker.push(docker_entry(&image.name, manifest));
        Ok(())
    }

    /// Adds a document and what it names; gives the manifests below it, the best first.
    async fn collect(
        &mut self,
        t: &Transfer,
        scope: &Scope,
        (name, target): (&str, &Descriptor),
        platforms: &[Platform],
        export: &Export,
        depth: usize,
    ) -> Result<Vec<(manifest::Manifest, Descriptor)>> {
        match manifest::read(&t.content, scope, target).await? {
            Some(Document::Manifest(manifest)) => {
                let kept = |layer: &&Descriptor| !(export.skip_non_distributable && not_distributable(layer));
                let layers = manifest.layers.iter().filter(kept);
                t.have_layers(scope, target, name).await?;
                let blobs = [target, &manifest.config].into_iter().chain(layers);
                self.blobs.extend(blobs.map(|d| d.digest.clone()));
                Ok(vec![(*manifest, target.clone())])
            }
            Some(Document::Index(index)) if depth < MAX_DEPTH => {
                self.blobs.insert(target.digest.clone());
                let mut found = Vec::new();
                for child in manifest::choose(&index.manifests, platforms, 0) {
                    // An index may name what was never fetched.
                    if depth_missing(t, scope, &child, export).await {
                        continue;
                    }
                    found.extend(Box::pin(self.collect(t, scope, (name, &child), platforms, export, depth + 1)).await?);
                }
                Ok(found)
            }
            _ => {
                self.blobs.insert(target.digest.clone());
                Ok(Vec::new())
            }
        }
    }
}

/// Whether an entry is not here and need not be: only where all platforms are asked for is that an error.
async fn depth_missing(t: &Transfer, scope: &Scope, child: &Descriptor, export: &Export) -> bool {
    !export.all_platforms && t.content.info(scope, &child.digest).await.is_err()
}

fn not_distributable(layer: &Descriptor) -> bool {
    layer.media_type.contains(".nondistributable.") || layer.media_type.contains(".foreign.")
}

/// An entry of Docker's `manifest.json`, its fields in Docker's order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn docker_entry(name: &str, manifest: &manifest::Manifest) -> DockerEntry {
    let layers = manifest.layers.iter().map(|l| blob_path(&l.digest)).collect();
    DockerEntry { config: blob_path(&manifest.config.digest), repo_tags: vec![name.to_owned()], layers }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A tar (POSIX ustar) in the order of names; times are zero, so that the same images give the same bytes.
struct Tar {
    out: Out,
}

impl Tar {
    async fn document(&mut self, name: &str, mode: u32, document: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(document).map_err(|e| Error::invalid("document", e.to_string()))?;
        self.header(name, bytes.len() as u64, tar::EntryType::Regular, mode).await?;
        self.write(&bytes).await?;
        self.pad(bytes.len() as u64).await
    }

    async fn directory(&mut self, name: &str) -> Result<()> {
        self.header(name, 0, tar::EntryType::Directory, 0o755).await
    }

    async fn blob(&mut self, t: &Transfer, scope: &Scope, digest: &Digest) -> Result<()> {
        let reader = t.content.reader(scope, digest).await?;
        let size = reader.size();
        self.header(&blob_path(digest), size, tar::EntryType::Regular, 0o444).await?;
        let mut offset = 0;
        while offset < size {
            let piece = reader.read_at(offset, CHUNK).await?;
            if piece.is_empty() {
                return Err(Error::BadBlob {
                    what: "blob",
                    digest: digest.clone(),
                    reason: "it is shorter than it was".into(),
                });
            }
            offset += piece.len() as u64;
            self.write(&piece).await?;
        }
        self.pad(size).await
    }

    async fn header(&mut self, name: &str, size: u64, kind: tar::EntryType, mode: u32) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        let named = header.set_path(name);
        named.map_err(|e| Error::invalid("archive", e.to_string()))?;
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let bytes = *header.as_bytes();
        self.write(&bytes).await
    }

    async fn pad(&mut self, size: u64) -> Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]).await }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).await.map_err(|e| Error::invalid("archive stream", e.to_string()))
    }

    async fn finish(mut self) -> Result<()> {
        self.write(&[0; 2 * BLOCK]).await?;
        let ended = self.out.shutdown().await;
        ended.map_err(|e| Error::invalid("archive stream", e.to_string()))
    }
}
