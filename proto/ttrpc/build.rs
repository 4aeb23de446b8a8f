//! Compiles the shim protocol's messages from `proto/defs`, without `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Packages of which messages live in this crate; everything else belongs to `gantry-api`.
const PACKAGES: &[&str] = &[
    "containerd/events",
    "containerd/runc/v1",
    "containerd/runtime/bootstrap/v1",
    "containerd/runtime/sandbox/v1",
    "containerd/services/events/ttrpc/v1",
    "containerd/task/v2",
    "containerd/task/v3",
    "containerd/types",
    "containerd/types/transfer",
    "containerd/v1/types",
    "gantry/shim/v1",
    "io/containerd/cgroups/v1",
    "io/containerd/cgroups/v2",
    "runtimeoptions/v1",
];

fn main() -> Result<(), Box<dyn Error>> {
    let defs = Path::new("../defs");
    println!("cargo:rerun-if-changed={}", defs.display());
    let mut files = Vec::new();
    for package in PACKAGES {
        files.extend(definitions(&defs.join(package))?);
    }
    let descriptors = protox::compile(files, [defs])?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes([".containerd.types.transfer.Data"])
        .enable_type_names()
        .include_file("pb.rs")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The `.proto` files directly in `folder`, sorted.
fn definitions(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> =
        entries.iter().map(std::fs::DirEntry::path).filter(|p| p.extension().is_some_and(|e| e == "proto")).collect();
    files.sort();
    Ok(files)
}
