//! Images for the tests, made with GNU tar and gzip and pushed with curl: by nothing of ours, so that ours is judged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_types::Digest;
use serde_json::{Value, json};

use crate::lab::{Lab, run};

/// Which family of media types an image is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OCI image-spec.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// zstd (OCI only).
    Zstd,
    /// Not at all.
    Plain,
}

/// A layer that is packed already.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The blob.
    pub file: PathBuf,
    /// Digest of the plain tar.
    pub diff_id: String,
    /// How it is compressed.
    pub packing: Packing,
}

enum Layer {
    Tree(PathBuf),
    Packed(Packed),
}

/// An image to be: directories that become layers, and its configuration.
pub struct Image {
    dir: PathBuf,
    layers: Vec<Layer>,
    format: Format,
    packing: Packing,
    config: Value,
    /// Number of a layer, and more members of its descriptor.
    described: Vec<(usize, Value)>,
}

/// Debian packages whose unpacked files make a layer of real files, about 200 MB.
pub const DEBIAN: &[&str] = &[
    "perl-modules-5.36",
    "libicu72",
    "git",
    "vim-runtime",
    "python3.11-minimal",
    "libpython3.11-stdlib",
    "locales",
    "cpp-12",
];

/// Directory with one static busybox and links for its applets, as an image root has them.
pub fn busybox_root(lab: &Lab) -> PathBuf {
    let root = lab.path("busybox-root");
    if root.exists() {
        return root;
    }
    for dir in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).expect("make a directory");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("busybox is not installed: run integration/prepare");
    fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in run(busybox, &["--list"]).lines().filter(|a| *a != "busybox") {
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet)).expect("link an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/:/bin/sh\n").expect("write");
    fs::write(root.join("etc/group"), "root:x:0:\nadm:x:4:\nweb:x:34:\n").expect("write");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set a mode");
    root
}

/// A root of real files: the named Debian packages, fetched and unpacked, nothing of them run.
pub fn debian_root(lab: &Lab, packages: &[&str]) -> PathBuf {
    let (root, debs) = (lab.path("debian-root"), std::env::temp_dir().join("gantry-debs"));
    fs::create_dir_all(&debs).expect("make a directory");
    fs::create_dir_all(&root).expect("make a directory");
    for package in packages {
        let found = || {
            entries(&debs)
                .into_iter()
                .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{package}_"))))
        };
        if found().is_none() {
            // Fetching needs the outer network: it is done by `integration/tools/install` before the namespaces are made.
            panic!("{package} has not been fetched: run integration/tools/install");
        }
        let deb = found().expect("just checked");
        run("dpkg-deb", &["--extract", &deb.to_string_lossy(), &root.to_string_lossy()]);
    }
    root
}

impl Image {
    /// An image whose command is `/bin/sh`.
    pub fn new(lab: &Lab, name: &str) -> Image {
        let dir = lab.path(&format!("image-{name}"));
        fs::create_dir_all(&dir).expect("make a directory");
        let config = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin", "FROM=image"], "WorkingDir": "/"});
        Image { dir, layers: Vec::new(), format: Format::Oci, packing: Packing::Gzip, config, described: Vec::new() }
    }

    /// Adds the tree below `root` as the next layer.
    #[must_use]
    pub fn layer(mut self, root: &Path) -> Image {
        self.layers.push(Layer::Tree(root.to_owned()));
        self
    }

    /// Adds a layer as it is.
    #[must_use]
    pub fn packed(mut self, layer: &Packed) -> Image {
        self.layers.push(Layer::Packed(layer.clone()));
        self
    }

    /// Adds to what the manifest says of the latest layer.
    #[must_use]
    pub fn described(mut self, more: Value) -> Image {
        self.described.push((self.layers.len() - 1, more));
        self
    }

    /// Chooses the family of media types.
    #[must_use]
    pub fn format(mut self, format: Format) -> Image {
        self.format = format;
        self
    }

    /// Chooses the compression.
    #[must_use]
    pub fn packing(mut self, packing: Packing) -> Image {
        self.packing = packing;
        self
    }

    /// Replaces the configuration's `config` part.
    #[must_use]
    pub fn config(mut self, config: Value) -> Image {
        self.config = config;
        self
    }

    /// Builds it and pushes it as `HOST/NAME:latest`; that reference.
    pub fn push(self, host: &str, name: &str) -> String {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let Packed { file, diff_id, packing } = match layer {
                Layer::Tree(root) => self.pack(root, number),
                Layer::Packed(packed) => packed.clone(),
            };
            diff_ids.push(diff_id);
            let (digest, size) = (digest_of(&file), size_of(&file));
            push_blob(host, name, &file, &digest);
            let mut described = json!({"mediaType": self.layer_type(packing), "digest": digest, "size": size});
            let more = self.described.iter().filter(|(of, _)| *of == number);
            for (key, value) in more.flat_map(|(_, more)| more.as_object().into_iter().flatten()) {
                described[key] = value.clone();
            }
            layers.push(described);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.write("config.json", &config);
        let (config_digest, config_size) = (digest_of(&config), size_of(&config));
        push_blob(host, name, &config, &config_digest);
        let (manifest_type, config_type) = match self.format {
            Format::Oci => ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"),
            Format::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type, "layers": layers,
            "config": {"mediaType": config_type, "digest": config_digest, "size": config_size},
        });
        let manifest = self.write("manifest.json", &manifest);
        push_manifest(host, name, "latest", &manifest, manifest_type);
        format!("{host}/{name}:latest")
    }

    fn write(&self, name: &str, document: &Value) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, document.to_string()).expect("write a document");
        path
    }

    fn pack(&self, root: &Path, number: usize) -> Packed {
        let tar = self.dir.join(format!("{number}.tar"));
        run("tar", &[TAR, &["--create", "--file", &text(&tar), "--directory", &text(root), "."]].concat());
        compressed(&tar, self.packing)
    }

    fn layer_type(&self, packing: Packing) -> &'static str {
        match (self.format, packing) {
            (Format::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Format::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Format::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Format::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Format::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// How layers are written by GNU tar: the same tree gives the same bytes.
pub const TAR: &[&str] = &[
    "--sort=name",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--format=posix",
    "--pax-option=delete=atime,delete=ctime",
];

/// Compresses a tar into a file beside it.
pub fn compressed(tar: &Path, packing: Packing) -> Packed {
    let diff_id = digest_of(tar);
    let file = match packing {
        Packing::Plain => tar.to_owned(),
        Packing::Gzip => {
            run("gzip", &["--no-name", "--keep", "--force", "-6", &text(tar)]);
            tar.with_extension("tar.gz")
        }
        Packing::Zstd => {
            run("zstd", &["--quiet", "--keep", "--force", &text(tar)]);
            tar.with_extension("tar.zst")
        }
    };
    Packed { file, diff_id, packing }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Digest of a file, computed by coreutils.
pub fn digest_of(path: &Path) -> String {
    let line = run("sha256sum", &[&path.to_string_lossy()]);
    let hex = line.trim_start_matches('\\').split(' ').next().unwrap_or_default();
    let digest: Digest = format!("sha256:{hex}").parse().expect("sha256sum prints digests");
    digest.to_string()
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).expect("a file just written").len()
}

/// Uploads a blob in one piece.
pub fn push_blob(host: &str, name: &str, file: &Path, digest: &str) {
    let start = curl(&["--request", "POST", "--include", &format!("http://{host}/v2/{name}/blobs/uploads/")]);
    let location = start.lines().find_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case("location")));
    let location =
        location.unwrap_or_else(|| panic!("the registry gave no upload location:\n{start}")).1.trim().to_owned();
    let location = if location.starts_with('/') { format!("http://{host}{location}") } else { location };
    let join = if location.contains('?') { '&' } else { '?' };
    curl(&[
        "--request",
        "PUT",
        "--header",
        "Content-Type: application/octet-stream",
        "--upload-file",
        &file.to_string_lossy(),
        &format!("{location}{join}digest={digest}"),
    ]);
}

/// Uploads a manifest under a tag or digest.
pub fn push_manifest(host: &str, name: &str, tag: &str, file: &Path, media_type: &str) {
    let (kind, data) = (format!("Content-Type: {media_type}"), format!("@{}", file.display()));
    curl(&[
        "--request",
        "PUT",
        "--header",
        &kind,
        "--data-binary",
        &data,
        &format!("http://{host}/v2/{name}/manifests/{tag}"),
    ]);
}

fn curl(args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*"]).args(args);
    let output = command.output().expect("curl is not installed: run integration/tools/install");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "curl {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}
