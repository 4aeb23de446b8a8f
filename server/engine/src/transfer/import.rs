//! Reading image archives: OCI layout (image-spec, image-layout.md) and Docker's, plain or compressed.
//!
//! The tar is read once, on a thread of its own; each file becomes a blob as it passes. What the archive says it holds
//! is looked at only then.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gantry_layer::{Compressor, Decompressor, compression_of};
use gantry_types::media_type::{self, Compression};
use gantry_types::{Descriptor, Digest, Filter, Labels, Scope, labels};
use serde::Deserialize;

use tokio::io::AsyncRead;
use tokio::runtime::Handle;
use tokio_util::io::SyncIoBridge;

use super::manifest::{self, Document, MAX_DEPTH, MAX_SIZE, Written};
use super::{Import, Progress, ProgressSink, Transfer, names};
use crate::content::{CHUNK, Content, is_present, passing};
use crate::images::Image;
use crate::{Error, Result};

/// How long what an import made is kept should it never end.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// Most files in an archive.
const MAX_FILES: usize = 100_000;
/// Bytes read from the stream at once.
const READ_AHEAD: usize = 1 << 20;

pub(super) async fn import(
    t: &Transfer,
    scope: &Scope,
    archive: Box<dyn AsyncRead + Send + Unpin>,
    import: Import,
    progress: ProgressSink,
) -> Result<Vec<Image>> {
    let (scope, cover) = t.leases.cover(scope, LEASE).await?;
    let result = import_covered(t, &scope, archive, &import, &progress).await;
    if let Some(cover) = cover {
        cover.end().await;
    }
    result
}

async fn import_covered(
    t: &Transfer,
    scope: &Scope,
    archive: Box<dyn AsyncRead + Send + Unpin>,
    import: &Import,
    progress: &ProgressSink,
) -> Result<Vec<Image>> {
    tell(progress, "Importing", "", None);
    let files = read_files(t, scope, archive).await?;
    let index = match files.layout {
        true => files.index(&t.content, scope).await?,
        false => docker_index(t, scope, &files, import.force_compress).await?,
    };
    let Some(Document::Index(top)) = manifest::read(&t.content, scope, &index).await? else {
        return Err(Error::invalid("archive", "its index.json is no index"));
    };
    label_tree(t, scope, &index, import, 0).await?;
    unpack(t, scope, &top.manifests, import, progress).await?;
    let mut named: Vec<(Descriptor, Vec<(String, Labels)>)> = vec![(index.clone(), names::of_index(import, &index))];
    named.extend(top.manifests.iter().map(|m| (m.clone(), names::of_manifest(import, m))));
    let mut images = Vec::new();
    for (target, names) in named {
        for (name, labels) in names {
            let image = save(t, scope, name, target.clone(), labels).await?;
            tell(progress, "saved", &image.name, Some(&image.target));
            images.push(image);
        }
    }
    tell(progress, "Completed import", "", None);
    Ok(images)
}

fn tell(progress: &ProgressSink, event: &str, name: &str, descriptor: Option<&Descriptor>) {
    progress.tell(Progress {
        event: event.to_owned(),
        name: name.to_owned(),
        parents: Vec::new(),
        progress: 0,
        total: 0,
        descriptor: descriptor.cloned(),
    });
}

/// What an archive turned out to hold.
#[derive(Debug, Default)]
struct Files {
    /// Blobs by their cleaned path.
    blobs: BTreeMap<PathBuf, (Digest, u64)>,
    /// Symbolic links by path, to paths.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Whether there was an `oci-layout`.
    layout: bool,
}

impl Files {
    fn blob(&self, path: &Path) -> Option<&(Digest, u64)> {
        let target = self.links.get(path).map_or(path, PathBuf::as_path);
        self.blobs.get(target)
    }

    async fn index(&self, content: &Content, scope: &Scope) -> Result<Descriptor> {
        let found = self.blob(Path::new("index.json"));
        let (digest, size) = found.ok_or_else(|| Error::invalid("archive", "an OCI layout without an index.json"))?;
        content.info(scope, digest).await?;
        Ok(Descriptor::new(media_type::OCI_INDEX, digest.clone(), *size))
    }
}

async fn read_files(t: &Transfer, scope: &Scope, archive: Box<dyn AsyncRead + Send + Unpin>) -> Result<Files> {
    let (content, scope, handle) = (t.content.clone(), scope.clone(), Handle::current());
    let reading = move || {
        let broken = |error: std::io::Error| broken_archive(&error);
        let bridge = SyncIoBridge::new_with_handle(archive, handle.clone());
        let ahead = std::io::BufReader::with_capacity(READ_AHEAD, bridge);
        let stream = Decompressor::detect(ahead).map_err(broken)?;
        let mut archive = tar::Archive::new(stream);
        let mut files = Files::default();
        let ingest = Ingest { content: &content, scope: &scope, handle: &handle, prefix: passing("import") };
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            ingest.entry(&mut entry, &mut files)?;
        }
        Ok(files)
    };
    tokio::task::spawn_blocking(reading).await.map_err(Error::task("import"))?
}

/// Turns files of an archive into blobs, from a thread that may block.
struct Ingest<'a> {
    content: &'a Content,
    scope: &'a Scope,
    handle: &'a Handle,
    prefix: String,
}

impl Ingest<'_> {
    fn entry<R: Read>(&self, entry: &mut tar::Entry<'_, R>, files: &mut Files) -> Result<()> {
        let bad = |reason: String| Error::invalid("archive", reason);
        let path = clean(&entry.path().map_err(|e| broken_archive(&e))?)?;
        if files.blobs.len() + files.links.len() >= MAX_FILES {
            return Err(bad(format!("more than {MAX_FILES} files")));
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            let target = entry.link_name().map_err(|e| broken_archive(&e))?.unwrap_or_default();
            let target = path.parent().unwrap_or(Path::new("")).join(target);
            files.links.insert(path, normal(&target));
        } else if kind.is_file() {
            let size = entry.size();
            if path == Path::new("oci-layout") {
                check_layout(entry, size)?;
                files.layout = true;
            } else {
                let digest = self.blob(entry, &path, size)?;
                files.blobs.insert(path, (digest, size));
            }
        }
        Ok(())
    }

    /// Writes one file into the content store. A path that names a digest must hold it.
    fn blob(&self, entry: &mut impl Read, path: &Path, size: u64) -> Result<Digest> {
        let expected = digest_of(path);
        let reference = format!("{}-{}", self.prefix, path.display());
        let opened = self.handle.block_on(self.content.writer(self.scope, &reference, Some(size), expected.as_ref()));
        let mut writer = match (opened, &expected) {
            (Err(error), Some(digest)) if is_present(&error) => return Ok(digest.clone()),
            (opened, _) => opened?,
        };
        let mut offset = writer.status().offset;
        let filled = (|| {
            while offset < size {
                let piece = chunk(entry, size - offset)?;
                offset = self.handle.block_on(writer.write(offset, piece))?;
            }
            Ok(())
        })();
        if let Err(error) = filled {
            drop(writer);
            let _ = self.handle.block_on(self.content.abort(self.scope, &reference));
            return Err(error);
        }
        self.commit(writer, &reference, size, expected)
    }

    fn commit(
        &self,
        mut writer: crate::content::Writer,
        reference: &str,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<Digest> {
        let done = self.handle.block_on(async {
            let digest = match &expected {
                Some(digest) => digest.clone(),
                None => writer.digest().await?,
            };
            match writer.commit(Some(size), Some(&digest), Labels::new()).await {
                Err(error) if is_present(&error) => Ok(digest),
                done => done.map(|blob| blob.digest),
            }
        });
        if done.is_err() {
            let _ = self.handle.block_on(self.content.abort(self.scope, reference));
        }
        done
    }
}

/// Up to [`CHUNK`] bytes of a file that has `left` more.
fn chunk(from: &mut impl Read, left: u64) -> Result<Bytes> {
    let broken = |reason: String| Error::invalid("archive", reason);
    let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
    let mut piece = BytesMut::zeroed(want);
    let mut have = 0;
    while have < want {
        match from.read(&mut piece[have..]).map_err(|e| broken_archive(&e))? {
            0 => return Err(broken("it ends within a file".into())),
            n => have += n,
        }
    }
    Ok(piece.freeze())
}

/// A path of the archive without `.`; nothing may lead out.
pub(crate) fn clean(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => {
                return Err(Error::invalid("archive", format!("{:?} leads out of it", shown(&path.to_string_lossy()))));
            }
        }
    }
    Ok(clean)
}

/// A link's target with `..` taken away by name; what leads out matches no blob.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut to, part| {
        match part {
            Component::Normal(name) => to.push(name),
            Component::ParentDir => drop(to.pop()),
            _ => {}
        }
        to
    })
}

/// The digest in a path `blobs/ALGORITHM/HEX`.
fn digest_of(path: &Path) -> Option<Digest> {
    let mut parts = path.strip_prefix("blobs").ok()?.iter().map(|p| p.to_str());
    let (algorithm, hex) = (parts.next()??, parts.next()??);
    parts.next().is_none().then(|| format!("{algorithm}:{hex}").parse().ok())?
}

fn check_layout(entry: &mut impl Read, size: u64) -> Result<()> {
    #[derive(Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let mut text = Vec::new();
    let read = entry.take(size.min(64 << 10)).read_to_end(&mut text);
    read.map_err(|e| broken_archive(&e))?;
    let layout: Layout = serde_json::from_slice(&text).map_err(|e| Error::invalid("oci-layout", e.to_string()))?;
    if layout.version == "1.0.0" {
        return Ok(());
    }
    Err(Error::invalid("oci-layout", format!("version {:?} is not 1.0.0", layout.version)))
}

/// One entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The paths that a `manifest.json` names.
#[cfg(feature = "fuzzing")]
pub(crate) fn docker_paths(bytes: &[u8]) -> Vec<String> {
    let entries: Vec<DockerEntry> = serde_json::from_slice(bytes).unwrap_or_default();
    entries.into_iter().flat_map(|entry| entry.layers.into_iter().chain([entry.config])).collect()
}

/// Makes manifests and an index for an archive in Docker's form.
async fn docker_index(t: &Transfer, scope: &Scope, files: &Files, compress: bool) -> Result<Descriptor> {
    let unknown =
        || Error::invalid("archive", "neither an OCI layout nor Docker's form (no oci-layout, no manifest.json)");
    let (digest, _) = files.blob(Path::new("manifest.json")).ok_or_else(unknown)?;
    let text = t.content.read_all(scope, digest, MAX_SIZE).await?;
    let entries: Vec<DockerEntry> = manifest::parse("manifest.json", digest, &text)?;
    let mut manifests = Vec::new();
    for entry in entries {
        let manifest = docker_manifest(t, scope, files, &entry, compress).await?;
        let tags = entry.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            manifests.push(manifest.clone());
        }
        for tag in tags {
            let name = names::docker_name(&tag);
            let annotations = [(names::REF_NAME, names::tag_of(&name)), (names::IMAGE_NAME, name)];
            let annotations = annotations.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            manifests.push(Descriptor { annotations, ..manifest.clone() });
        }
    }
    write_document(t, scope, media_type::OCI_INDEX, &Written::index("", &manifests)).await
}

async fn docker_manifest(
    t: &Transfer,
    scope: &Scope,
    files: &Files,
    entry: &DockerEntry,
    compress: bool,
) -> Result<Descriptor> {
    let missing =
        |what: &str| Error::invalid("archive", format!("manifest.json names {:?}, which is not there", shown(what)));
    let find = |name: &str| files.blob(&normal(Path::new(name))).ok_or_else(|| missing(name));
    let (digest, size) = find(&entry.config)?;
    let config = Descriptor::new(media_type::DOCKER_CONFIG, digest.clone(), *size);
    let platform = manifest::read_config(&t.content, scope, &config).await?.platform;
    let mut layers = Vec::new();
    for name in &entry.layers {
        let (digest, size) = find(name)?;
        layers.push(docker_layer(t, scope, digest, *size, compress).await?);
    }
    let media_type = media_type::DOCKER_MANIFEST;
    let (config, layers) = (Some(&config), Some(layers.as_slice()));
    let document = Written { schema_version: 2, media_type, config, layers, manifests: None };
    let manifest = write_document(t, scope, media_type, &document).await?;
    Ok(Descriptor { platform: Some(platform), ..manifest })
}

/// A layer by what its first bytes say, compressed where asked or where its compressed form is here already.
async fn docker_layer(t: &Transfer, scope: &Scope, digest: &Digest, size: u64, compress: bool) -> Result<Descriptor> {
    let known = Filter::parse(&[format!("labels.{:?}=={digest}", labels::UNCOMPRESSED)]);
    let known = known.map_err(|e| Error::invalid("filter", e.to_string()))?;
    if let Some(packed) = t.content.list(scope, &known).await?.into_iter().find(|blob| blob.digest != *digest) {
        return Box::pin(docker_layer(t, scope, &packed.digest, packed.size, false)).await;
    }
    let reader = t.content.reader(scope, digest).await?;
    let head = reader.read_at(0, 16).await?;
    let media_type = match compression_of(&head) {
        Compression::None if compress => return compressed(t, scope, digest).await,
        Compression::None => media_type::DOCKER_LAYER,
        Compression::Gzip => media_type::DOCKER_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    };
    Ok(Descriptor::new(media_type, digest.clone(), size))
}

/// Stores the gzip form of a plain layer.
async fn compressed(t: &Transfer, scope: &Scope, digest: &Digest) -> Result<Descriptor> {
    let (content, scope, digest, handle) = (t.content.clone(), scope.clone(), digest.clone(), Handle::current());
    let packing = move || compress(&content, &scope, &digest, &handle);
    tokio::task::spawn_blocking(packing).await.map_err(Error::task("compression"))?
}

/// The work of [`compressed`], on a thread that may block.
fn compress(content: &Content, scope: &Scope, digest: &Digest, handle: &Handle) -> Result<Descriptor> {
    let failed = |e: std::io::Error| Error::invalid("compression", e.to_string());
    let reader = handle.block_on(content.reader(scope, digest))?;
    let mut writer = handle.block_on(content.writer(scope, &format!("compress-{digest}"), None, None))?;
    handle.block_on(writer.truncate(0))?;
    let mut out = Compressor::new(Vec::new(), Compression::Gzip).map_err(failed)?;
    let (mut from, mut to) = (0, 0);
    while from < reader.size() {
        let piece = handle.block_on(reader.read_at(from, CHUNK))?;
        from += piece.len() as u64;
        std::io::Write::write_all(&mut out, &piece).map_err(failed)?;
        to = handle.block_on(writer.write(to, std::mem::take(out.get_mut()).into()))?;
    }
    let size = handle.block_on(writer.write(to, out.finish().map_err(failed)?.into()))?;
    let gzip = handle.block_on(writer.digest())?;
    let labels = Labels::from([(gantry_types::labels::UNCOMPRESSED.to_owned(), digest.to_string())]);
    match handle.block_on(writer.commit(Some(size), Some(&gzip), labels)) {
        Err(error) if !is_present(&error) => Err(error),
        _ => Ok(Descriptor::new(media_type::DOCKER_LAYER_GZIP, gzip, size)),
    }
}

async fn write_document(t: &Transfer, scope: &Scope, media_type: &str, document: &Written<'_>) -> Result<Descriptor> {
    let bytes = serde_json::to_vec(document).map_err(|e| Error::invalid("document", e.to_string()))?;
    let bytes = Bytes::from(bytes);
    let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
    t.content.write_all(scope, &descriptor.digest, bytes, Labels::new()).await?;
    Ok(descriptor)
}

/// Writes the labels that keep what the archive's index names, as far as it is wanted.
async fn label_tree(t: &Transfer, scope: &Scope, target: &Descriptor, import: &Import, depth: usize) -> Result<()> {
    let document = match manifest::read(&t.content, scope, target).await {
        // What belongs to other platforms may be missing.
        Err(error) if import.all_metadata && depth > 0 && is_missing(&error) => return Ok(()),
        document => document?,
    };
    let Some(document) = document else { return Ok(()) };
    let labels = document.gc_labels();
    t.content.update(scope, &target.digest, labels.clone(), &manifest::fields(&labels)).await?;
    if let (Document::Index(index), true) = (&document, depth < MAX_DEPTH) {
        let wanted = if import.all_metadata { &[][..] } else { &import.platforms };
        for child in manifest::choose(&index.manifests, wanted, 0) {
            Box::pin(label_tree(t, scope, &child, import, depth + 1)).await?;
        }
    }
    Ok(())
}

fn is_missing(error: &Error) -> bool {
    use gantry_types::{ErrorKind, HasKind};
    error.kind() == ErrorKind::NotFound
}

async fn unpack(
    t: &Transfer,
    scope: &Scope,
    manifests: &[Descriptor],
    import: &Import,
    progress: &ProgressSink,
) -> Result<()> {
    for unpack in &import.unpacks {
        let mut seen = Vec::new();
        for manifest in manifest::choose(manifests, std::slice::from_ref(&unpack.platform), 0) {
            if !seen.contains(&manifest.digest) {
                seen.push(manifest.digest.clone());
                let image = new_image(String::new(), manifest, Labels::new());
                t.unpack(scope, &image, unpack, progress.clone()).await?;
            }
        }
    }
    Ok(())
}

fn new_image(name: String, target: Descriptor, labels: Labels) -> Image {
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    Image { name, target, labels, created: epoch, updated: epoch }
}

/// Enters an image, over one of that name.
async fn save(t: &Transfer, scope: &Scope, name: String, target: Descriptor, labels: Labels) -> Result<Image> {
    let image = new_image(name, target, labels);
    match t.images.create(scope, image.clone()).await {
        Err(error) if is_present(&error) => t.images.update(scope, image, &[]).await,
        done => done,
    }
}

/// What a reader of archives says, which may quote the archive's bytes: as one line, and not all of it.
fn broken_archive(error: &std::io::Error) -> Error {
    let said = error.to_string();
    let line: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
    Error::invalid("archive", line)
}

/// The beginning of a name out of an archive.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_of_the_archive_is_refused() {
        assert!(clean(Path::new("../x")).is_err());
        assert!(clean(Path::new("/etc/passwd")).is_err());
        assert_eq!(clean(Path::new("./blobs/./sha256/x")).unwrap(), Path::new("blobs/sha256/x"));
    }

    #[test]
    fn only_a_whole_digest_path_names_a_digest() {
        let hex = "a".repeat(64);
        assert!(digest_of(Path::new(&format!("blobs/sha256/{hex}"))).is_some());
        assert!(digest_of(Path::new(&format!("blobs/sha256/{hex}/x"))).is_none());
        assert!(digest_of(Path::new(&format!("sha256/{hex}"))).is_none());
        assert!(digest_of(Path::new("blobs/sha256/short")).is_none());
    }

    #[test]
    fn links_of_old_docker_archives_lead_to_their_layers() {
        assert_eq!(normal(Path::new("b/../a/layer.tar")), Path::new("a/layer.tar"));
    }
}
