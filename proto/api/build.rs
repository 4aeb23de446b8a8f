//! Compiles the gRPC services from `proto/defs`, without `protoc`. Packages that `gantry-ttrpc` generates are taken
//! from there.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Packages of which messages and services live in this crate.
const PACKAGES: &[&str] = &[
    "containerd/services/containers/v1",
    "containerd/services/content/v1",
    "containerd/services/diff/v1",
    "containerd/services/events/v1",
    "containerd/services/images/v1",
    "containerd/services/introspection/v1",
    "containerd/services/leases/v1",
    "containerd/services/mounts/v1",
    "containerd/services/namespaces/v1",
    "containerd/services/sandbox/v1",
    "containerd/services/snapshots/v1",
    "containerd/services/streaming/v1",
    "containerd/services/tasks/v1",
    "containerd/services/transfer/v1",
    "containerd/services/version/v1",
    "gantry/admin/v1",
    "google/rpc",
];

/// Kubernetes' interface, behind the feature `cri`.
const CRI: &str = "runtime/v1";

/// Packages of `gantry-ttrpc`.
const SHARED: &[&str] = &["containerd.types", "containerd.v1.types"];

fn main() -> Result<(), Box<dyn Error>> {
    let defs = Path::new("../defs");
    println!("cargo:rerun-if-changed={}", defs.display());
    let cri = std::env::var_os("CARGO_FEATURE_CRI").map(|_| &CRI);
    let mut files = Vec::new();
    for package in PACKAGES.iter().chain(cri) {
        files.extend(definitions(&defs.join(package))?);
    }
    let mut compiler = protox::Compiler::new([defs])?;
    compiler.include_imports(true).open_files(files)?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("descriptors.bin"), everything(defs)?)?;
    let descriptors = compiler.include_source_info(true).file_descriptor_set();

    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]).enable_type_names().bytes([
        ".containerd.services.content.v1.ReadContentResponse.data",
        ".containerd.services.content.v1.WriteContentRequest.data",
    ]);
    let mut services = tonic_prost_build::configure();
    for package in SHARED {
        services =
            services.extern_path(format!(".{package}"), format!("::gantry_ttrpc::pb::{}", package.replace('.', "::")));
    }
    services.compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// The descriptors of all definitions, events and options too: for reflection, and for showing any `Any`.
fn everything(defs: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let (mut files, mut folders) = (Vec::new(), vec![defs.to_owned()]);
    while let Some(folder) = folders.pop() {
        files.extend(definitions(&folder)?);
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    files.sort();
    let mut compiler = protox::Compiler::new([defs])?;
    compiler.include_imports(true).open_files(files)?;
    Ok(compiler.encode_file_descriptor_set())
}

/// The `.proto` files directly in `folder`, sorted.
fn definitions(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> =
        entries.iter().map(std::fs::DirEntry::path).filter(|p| p.extension().is_some_and(|e| e == "proto")).collect();
    files.sort();
    Ok(files)
}
