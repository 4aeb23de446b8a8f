//! Tasks under the real shim, with busybox as the root file system.

use std::path::{Path, PathBuf};

use gantry_engine::spec::SpecBuilder;
use gantry_engine::tasks::Create;
use gantry_engine::{Any, Mount};

use super::{Host, target_dir};

pub const SHIM: &str = "containerd-shim-gantry-v1";

/// Without the shim's binary there is nothing to test: `cargo build -p gantry-task` makes it.
pub fn shim_is_there() -> bool {
    let there = target_dir().join(SHIM).exists() && Path::new("/bin/busybox").exists();
    if !there {
        eprintln!("skipped: no {SHIM} in {} or no /bin/busybox", target_dir().display());
    }
    there
}

/// A root file system that all containers of a host share.
pub fn busybox(host: &Host) -> PathBuf {
    let root = host.dir.path().join("busybox");
    if root.exists() {
        return root;
    }
    for sub in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(sub)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "true", "cat", "echo", "mv"] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(applet));
    }
    root
}

/// A container that runs `args` in [`busybox`], and how its task is made.
pub async fn container(host: &Host, id: &str, args: &[&str]) -> Create {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let spec = SpecBuilder::new(&host.scope.namespace, id).unwrap().args(&args).build().unwrap();
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: serde_json::to_vec(&spec).unwrap(),
    };
    let record = super::record(id, Some(spec));
    host.engine.containers.create(&host.scope, record).await.unwrap();
    let source = busybox(host).to_string_lossy().into_owned();
    let bind = Mount { kind: "bind".into(), source, target: String::new(), options: vec!["rbind".into(), "rw".into()] };
    Create { container_id: id.into(), rootfs: vec![bind], ..Create::default() }
}
