//! Building images for the fake registry: layers from lists of files, OCI or Docker manifests, indexes of platforms.
//! The same input gives the same bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use gantry_types::media_type::{self, Compression};
use gantry_types::{Descriptor, Digest, Platform};
use serde_json::json;

/// What stands at a path of a layer.
#[derive(Clone, Debug)]
enum Content {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    HardLink(String),
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    content: Content,
    mode: u32,
}

/// A layer: its tar, not compressed yet.
#[derive(Clone, Debug)]
enum Layer {
    Entries(Vec<Entry>),
    Tar(Bytes),
    /// A blob as it is, with its media type and the digest of the tar inside.
    Blob(Bytes, Compression, Digest),
}

/// Puts an image together: layers, configuration, manifest.
#[derive(Clone, Debug)]
pub struct Builder {
    layers: Vec<Layer>,
    compression: Compression,
    docker: bool,
    platform: Platform,
    entrypoint: Vec<String>,
    command: Vec<String>,
    environment: Vec<String>,
    directory: String,
    user: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// An image or an index of images, ready to be served.
#[derive(Clone, Debug)]
pub struct Image {
    top: Descriptor,
    manifests: Vec<(Descriptor, Bytes)>,
    blobs: Vec<(Descriptor, Bytes)>,
    platform: Option<Platform>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            layers: Vec::new(),
            compression: Compression::Gzip,
            docker: false,
            platform: Platform::host(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: Vec::new(),
            directory: "/".into(),
            user: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Builder {
    /// An image `FROM scratch`: OCI, gzip, for this machine's platform.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Begins a further layer. The first begins by itself.
    pub fn layer(mut self) -> Builder {
        self.layers.push(Layer::Entries(Vec::new()));
        self
    }

    /// Adds a layer of the bytes of a tar.
    pub fn tar(mut self, tar: Bytes) -> Builder {
        self.layers.push(Layer::Tar(tar));
        self
    }

    /// Adds a layer that is compressed already; `diff_id` is the digest of the tar inside.
    pub fn blob(mut self, bytes: Bytes, compression: Compression, diff_id: Digest) -> Builder {
        self.layers.push(Layer::Blob(bytes, compression, diff_id));
        self
    }

    /// Adds a file to the layer, and the directories above it.
    pub fn file(self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Builder {
        self.entry(path, Content::File(bytes.into()), mode)
    }

    /// Adds files: path, bytes, mode.
    pub fn files(self, files: &[(&str, &[u8], u32)]) -> Builder {
        files.iter().fold(self, |builder, (path, bytes, mode)| builder.file(path, *bytes, *mode))
    }

    /// Adds a directory.
    pub fn directory(self, path: &str, mode: u32) -> Builder {
        self.entry(path, Content::Directory, mode)
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Builder {
        self.entry(path, Content::Symlink(target.to_owned()), 0o777)
    }

    /// Adds another name of a file in the same layer.
    pub fn hard_link(self, path: &str, target: &str) -> Builder {
        self.entry(path, Content::HardLink(target.to_owned()), 0o644)
    }

    /// How layers are compressed.
    pub fn compression(mut self, compression: Compression) -> Builder {
        self.compression = compression;
        self
    }

    /// Docker's manifest, schema 2, instead of OCI's.
    pub fn docker(mut self) -> Builder {
        self.docker = true;
        self
    }

    /// What the image is for.
    pub fn platform(mut self, platform: Platform) -> Builder {
        self.platform = platform;
        self
    }

    /// The program to run.
    pub fn entrypoint(mut self, words: &[&str]) -> Builder {
        self.entrypoint = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Its arguments by default.
    pub fn command(mut self, words: &[&str]) -> Builder {
        self.command = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Adds `NAME=VALUE`.
    pub fn env(mut self, variable: &str) -> Builder {
        self.environment.push(variable.to_owned());
        self
    }

    /// Directory to start in.
    pub fn working_directory(mut self, path: &str) -> Builder {
        self.directory = path.to_owned();
        self
    }

    /// User to run as.
    pub fn user(mut self, user: &str) -> Builder {
        self.user = user.to_owned();
        self
    }

    /// Adds a label to the configuration.
    pub fn label(mut self, key: &str, value: &str) -> Builder {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation to the manifest.
    pub fn annotation(mut self, key: &str, value: &str) -> Builder {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The image.
    pub fn build(self) -> Image {
        let layers: Vec<(Descriptor, Bytes, Digest)> = self.layers.iter().map(|layer| self.pack(layer)).collect();
        let config = self.config(layers.iter().map(|(_, _, diff_id)| diff_id));
        let config_type = if self.docker { media_type::DOCKER_CONFIG } else { media_type::OCI_CONFIG };
        let config = object(config_type, config.to_string().into());
        let manifest_type = if self.docker { media_type::DOCKER_MANIFEST } else { media_type::OCI_MANIFEST };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.0,
            "layers": layers.iter().map(|(descriptor, _, _)| descriptor).collect::<Vec<_>>(),
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        let manifest = object(manifest_type, manifest.to_string().into());
        let mut blobs = vec![config];
        blobs.extend(layers.into_iter().map(|(descriptor, bytes, _)| (descriptor, bytes)));
        Image { top: manifest.0.clone(), manifests: vec![manifest], blobs, platform: Some(self.platform) }
    }

    fn entry(mut self, path: &str, content: Content, mode: u32) -> Builder {
        let entry = Entry { path: path.trim_matches('/').to_owned(), content, mode };
        match self.layers.last_mut() {
            Some(Layer::Entries(entries)) => entries.push(entry),
            _ => self.layers.push(Layer::Entries(vec![entry])),
        }
        self
    }

    fn pack(&self, layer: &Layer) -> (Descriptor, Bytes, Digest) {
        let (bytes, compression, diff_id) = match layer {
            Layer::Blob(bytes, compression, diff_id) => (bytes.clone(), *compression, diff_id.clone()),
            Layer::Tar(tar) => (compress(tar, self.compression), self.compression, Digest::of(tar)),
            Layer::Entries(entries) => {
                let tar = tar_of(entries);
                (compress(&tar, self.compression), self.compression, Digest::of(&tar))
            }
        };
        let (descriptor, bytes) = object(layer_type(self.docker, compression), bytes);
        (descriptor, bytes, diff_id)
    }

    fn config<'d>(&self, diff_ids: impl Iterator<Item = &'d Digest>) -> serde_json::Value {
        let mut config = json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": {
                "Env": self.environment,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": self.directory,
                "User": self.user,
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>() },
        });
        if !self.platform.variant.is_empty() {
            config["variant"] = json!(self.platform.variant);
        }
        config
    }
}

impl Image {
    /// An index of images for several platforms; `docker`: a manifest list.
    pub fn index(images: Vec<Image>, docker: bool) -> Image {
        let media_type = if docker { media_type::DOCKER_INDEX } else { media_type::OCI_INDEX };
        let entry = |image: &Image| Descriptor { platform: image.platform.clone(), ..image.top.clone() };
        let entries: Vec<Descriptor> = images.iter().map(entry).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        let index = object(media_type, index.to_string().into());
        let top = index.0.clone();
        let mut manifests: Vec<_> = images.iter().flat_map(|image| image.manifests.clone()).collect();
        manifests.push(index);
        let blobs = images.into_iter().flat_map(|image| image.blobs).collect();
        Image { top, manifests, blobs, platform: None }
    }

    /// The manifest or index that stands for the image.
    pub fn descriptor(&self) -> &Descriptor {
        &self.top
    }

    /// All manifests, the index last.
    pub fn manifests(&self) -> &[(Descriptor, Bytes)] {
        &self.manifests
    }

    /// Configurations and layers.
    pub fn blobs(&self) -> &[(Descriptor, Bytes)] {
        &self.blobs
    }
}

/// An image of a busybox program, with a link for each of its applets and the files that programs expect.
pub fn busybox(program: &[u8], applets: &[&str]) -> Builder {
    let links = applets.iter().filter(|name| **name != "busybox" && !name.contains('/'));
    let builder = links.fold(Builder::new().file("bin/busybox", program, 0o755), |builder, applet| {
        builder.symlink(&format!("bin/{applet}"), "busybox")
    });
    builder
        .directory("tmp", 0o1777)
        .directory("root", 0o700)
        .file("etc/passwd", *b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)
        .file("etc/group", *b"root:x:0:\nnobody:x:65534:\n", 0o644)
        .env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .command(&["sh"])
}

/// The tar of a directory tree, sorted by name: files, directories, symbolic links and hard links with their modes,
/// owners and times. Devices, pipes and sockets are left out.
///
/// # Errors
/// When something cannot be read.
pub fn tar_of_tree(root: &Path) -> std::io::Result<Bytes> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    let mut seen = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let mut paths = std::fs::read_dir(&directory)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).map_err(std::io::Error::other)?;
            let meta = path.symlink_metadata()?;
            if meta.is_dir() {
                tar.append_dir(name, &path)?;
                left.push(path);
            } else if let Some(first) = seen.get(&(meta.dev(), meta.ino())).filter(|_| meta.nlink() > 1) {
                let mut header = tar::Header::new_gnu();
                header.set_metadata(&meta);
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                tar.append_link(&mut header, name, first)?;
            } else if meta.is_file() || meta.is_symlink() {
                tar.append_path_with_name(&path, name)?;
                seen.insert((meta.dev(), meta.ino()), name.to_owned());
            }
        }
    }
    Ok(tar.into_inner()?.into())
}

/// `bytes` compressed.
pub fn compress(bytes: &[u8], compression: Compression) -> Bytes {
    match compression {
        Compression::None => Bytes::copy_from_slice(bytes),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            in_memory(encoder.write_all(bytes));
            in_memory(encoder.finish()).into()
        }
        Compression::Zstd => in_memory(zstd::encode_all(bytes, 3)).into(),
    }
}

fn layer_type(docker: bool, compression: Compression) -> &'static str {
    match (docker, compression) {
        (_, Compression::Zstd) => media_type::OCI_LAYER_ZSTD,
        (false, Compression::None) => media_type::OCI_LAYER,
        (false, Compression::Gzip) => media_type::OCI_LAYER_GZIP,
        (true, Compression::None) => media_type::DOCKER_LAYER,
        (true, Compression::Gzip) => media_type::DOCKER_LAYER_GZIP,
    }
}

fn object(media_type: &str, bytes: Bytes) -> (Descriptor, Bytes) {
    (Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64), bytes)
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut directories = std::collections::BTreeSet::new();
    for entry in entries {
        for (at, _) in entry.path.match_indices('/') {
            let parent = &entry.path[..at];
            let given = entries.iter().any(|e| e.path == parent);
            if !given && directories.insert(parent.to_owned()) {
                append(&mut tar, &Entry { path: parent.to_owned(), content: Content::Directory, mode: 0o755 });
            }
        }
        append(&mut tar, entry);
    }
    in_memory(tar.into_inner())
}

fn append(tar: &mut tar::Builder<Vec<u8>>, entry: &Entry) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match &entry.content {
        Content::File(bytes) => {
            header.set_size(bytes.len() as u64);
            in_memory(tar.append_data(&mut header, &entry.path, bytes.as_slice()));
        }
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            in_memory(tar.append_data(&mut header, format!("{}/", entry.path), std::io::empty()));
        }
        Content::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            in_memory(tar.append_link(&mut header, &entry.path, target));
        }
        Content::HardLink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            in_memory(tar.append_link(&mut header, &entry.path, target));
        }
    }
}

/// Writing to memory fails only for what the caller gave: a path that is not one.
#[allow(clippy::expect_used)]
fn in_memory<T>(result: std::io::Result<T>) -> T {
    result.expect("image entries have valid paths")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_gives_the_same_image_and_its_parts_fit() {
        let build = || Builder::new().file("a/b/c", *b"x", 0o644).layer().symlink("l", "a").docker().build();
        let image = build();
        assert_eq!(image.descriptor(), build().descriptor());
        let (descriptor, bytes) = &image.manifests()[0];
        assert_eq!((descriptor.size, &descriptor.digest), (bytes.len() as u64, &Digest::of(bytes)));
        let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let layers: Vec<Descriptor> = serde_json::from_value(manifest["layers"].clone()).unwrap();
        assert_eq!(layers.len(), 2);
        assert!(layers.iter().all(|layer| image.blobs().iter().any(|(d, _)| d == layer)));
    }

    #[test]
    fn an_index_names_each_platform() {
        let one = |platform: &str| Builder::new().platform(platform.parse().unwrap()).build();
        let index = Image::index(vec![one("linux/amd64"), one("linux/arm/v6")], false);
        let (_, bytes) = index.manifests().last().unwrap();
        let json: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(json["manifests"][1]["platform"]["variant"], "v6");
        assert_eq!(index.manifests().len(), 3);
    }

    #[test]
    fn a_tree_keeps_its_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("bin")).unwrap();
        std::fs::write(at("bin/box"), "program").unwrap();
        std::fs::set_permissions(at("bin/box"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::fs::hard_link(at("bin/box"), at("bin/cat")).unwrap();
        std::os::unix::fs::symlink("box", at("bin/sh")).unwrap();
        let tar = tar_of_tree(dir.path()).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|l| l.display().to_string()).unwrap_or_default();
            let kind = entry.header().entry_type();
            (entry.path().unwrap().display().to_string(), kind, link, entry.header().mode().unwrap() & 0o7777)
        });
        let entries: Vec<_> = entries.collect();
        assert_eq!((entries[0].0.trim_end_matches('/'), entries[0].1), ("bin", tar::EntryType::Directory));
        assert_eq!(entries[1], ("bin/box".into(), tar::EntryType::Regular, String::new(), 0o4755));
        assert_eq!(entries[2], ("bin/cat".into(), tar::EntryType::Link, "bin/box".into(), 0o4755));
        assert_eq!((entries[3].1, entries[3].2.as_str()), (tar::EntryType::Symlink, "box"));
    }

    #[test]
    fn parents_come_before_their_children_and_once() {
        let entries = |paths: &[&str]| -> Vec<Entry> {
            let entry = |p: &&str| Entry { path: p.to_string(), content: Content::File(vec![]), mode: 0o644 };
            paths.iter().map(entry).collect()
        };
        let tar = tar_of(&entries(&["a/b/c", "a/b/d"]));
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["a/", "a/b/", "a/b/c", "a/b/d"]);
    }
}
