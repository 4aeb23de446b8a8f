//! Snapshotters and unpacking, seen from outside: the same trees whatever keeps them.

use gantry_integration::images::{DEBIAN, Image, Packing, busybox_root, debian_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

use crate::trees::{mounted_by, special_root};

/// An image of real files, and of what they lack.
fn image(lab: &Lab, registry: &DockerRegistry, name: &str) -> String {
    let image =
        Image::new(lab, name).layer(&busybox_root(lab)).layer(&debian_root(lab, DEBIAN)).layer(&special_root(lab));
    image.packing(Packing::Zstd).push(&registry.host(), name)
}

#[test]
fn layers_as_erofs_images_are_the_same_trees_as_directories() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = image(&lab, &registry, "erofs");
    let mut trees = Vec::new();
    for snapshotter in ["overlayfs", "erofs"] {
        daemon.ctr(&["images", "pull", "--plain-http", "--local", "--snapshotter", snapshotter, &image]).ok();
        trees.push(mounted_by(&lab, &daemon, &image, (snapshotter, snapshotter)));
    }
    assert!(trees[0][0].lines().count() > 3000, "only {} entries", trees[0][0].lines().count());
    for (directories, images) in trees[0].iter().zip(&trees[1]) {
        for (a, b) in directories.lines().zip(images.lines()) {
            assert_eq!(a, b, "overlayfs is left, erofs right");
        }
        assert_eq!(directories.lines().count(), images.lines().count());
    }
    let layers = daemon.root().join("snapshots/erofs/snapshots");
    let files = std::fs::read_dir(layers).expect("list snapshots").flatten();
    assert_eq!(files.filter(|entry| entry.path().join("layer.erofs").exists()).count(), 3);
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn a_container_runs_on_erofs_layers_and_writes_beside_them() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "run").layer(&busybox_root(&lab)).push(&registry.host(), "run");
    daemon.ctr(&["images", "pull", "--plain-http", "--snapshotter", "erofs", &image]).ok();
    let id = lab.id("erofs");
    let script = "echo new >/etc/new && cat /etc/new && rm /bin/vi && ls /bin/vi || echo gone";
    let out = daemon.ctr(&["run", "--rm", "--snapshotter", "erofs", &image, &id, "sh", "-c", script]);
    assert_eq!(out.ok(), "new\ngone\n");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}
