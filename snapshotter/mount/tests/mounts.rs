//! Real mounts, each test in a mount namespace of its own. Needs root.

#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use gantry_mount::{
    Attributes, Error, Options, Step, Tree, Unmount, attach, clone_tree, detached, idmap, mount_all, mountinfo,
    set_attributes, sys, unmount, unmount_all, unmount_recursive,
};
use gantry_types::{ErrorKind, HasKind, Mount};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

/// Runs `test` in a thread whose mounts nobody else sees.
fn alone(test: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        test(&dir.path().canonicalize().unwrap());
        unmount_recursive(dir.path(), Unmount::LAZY).unwrap();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount(kind: &str, source: &Path, target: &str, options: &[&str]) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.to_str().unwrap().into(),
        target: target.into(),
        options: options.iter().map(|option| option.to_string()).collect(),
    }
}

fn directory(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn table() -> Vec<PathBuf> {
    mountinfo::read().unwrap().into_iter().map(|entry| entry.target).collect()
}

#[test]
fn a_read_only_bind_mount_shows_its_source_and_refuses_writes() {
    alone(|dir| {
        let (source, target) = (directory(dir, "source"), directory(dir, "target"));
        fs::write(source.join("file"), "content").unwrap();
        mount_all(&[mount("bind", &source, "", &["ro", "rbind"])], &target).unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
        assert_eq!(errno(fs::write(target.join("new"), "")), Some(libc::EROFS));
        assert!(mountinfo::is_mount_point(&target).unwrap());
        unmount(&target, Unmount::default()).unwrap();
        assert!(!mountinfo::is_mount_point(&target).unwrap());
        fs::write(source.join("new"), "").unwrap();
    });
}

#[test]
fn a_recursive_read_only_bind_mount_covers_mounts_below() {
    alone(|dir| {
        let (source, target) = (directory(dir, "source"), directory(dir, "target"));
        directory(&source, "below");
        mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &["size=64k"])], &source.join("below")).unwrap();
        for (options, expected) in [(["rbind", "ro"], None), (["rbind", "rro"], Some(libc::EROFS))] {
            mount_all(&[mount("bind", &source, "", &options)], &target).unwrap();
            assert_eq!(errno(fs::write(target.join("below/file"), "")), expected, "{options:?}");
            unmount_recursive(&target, Unmount::default()).unwrap();
        }
        assert!(mountinfo::is_mount_point(&source.join("below")).unwrap());
    });
}

#[test]
fn a_detached_mount_is_in_no_table_and_is_gone_when_dropped() {
    alone(|dir| {
        let before = table();
        let tree = Tree::new(&[mount("tmpfs", Path::new("tmpfs"), "", &["mode=700"])]).unwrap();
        fs::write(tree.path().join("file"), "x").unwrap();
        assert_eq!(fs::metadata(tree.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(table(), before);
        let target = directory(dir, "target");
        attach(tree.as_fd(), &target).unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), b"x");
        drop(tree);
        assert_eq!(fs::read(target.join("file")).unwrap(), b"x");
    });
}

#[test]
fn a_list_of_mounts_becomes_one_detached_tree() {
    alone(|dir| {
        let source = directory(dir, "source");
        fs::write(source.join("file"), "x").unwrap();
        let mounts = [mount("tmpfs", Path::new("one"), "", &[]), mount("bind", &source, "data", &["bind", "ro"])];
        let root = Tree::new(&mounts[..1]).unwrap();
        fs::create_dir(root.path().join("data")).unwrap();
        let error = detached(&mounts).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let lower = directory(dir, "lower");
        directory(&lower, "data");
        let root = Tree::new(&[mount("bind", &lower, "", &["bind"]), mounts[1].clone()]).unwrap();
        assert_eq!(fs::read(root.path().join("data/file")).unwrap(), b"x");
        assert!(!lower.join("data/file").exists());
    });
}

#[test]
fn when_one_mount_of_a_list_fails_the_others_are_taken_away() {
    alone(|dir| {
        let target = directory(dir, "target");
        let mounts = [
            mount("tmpfs", Path::new("one"), "", &[]),
            mount("tmpfs", Path::new("two"), "", &[]),
            mount("bind", &dir.join("missing"), "", &["bind"]),
        ];
        let error = mount_all(&mounts, &target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains("OpenTree") && text.contains("missing") && text.contains("target"), "{text}");
        assert!(!mountinfo::is_mount_point(&target).unwrap());
    });
}

#[test]
fn a_target_cannot_lead_out_of_the_tree_being_mounted() {
    alone(|dir| {
        let (target, outside) = (directory(dir, "target"), directory(dir, "outside"));
        symlink(&outside, target.join("link")).unwrap();
        let inner = [mount("tmpfs", Path::new("tmpfs"), "link", &[])];
        assert_eq!(mount_all(&inner, &target).unwrap_err().kind(), ErrorKind::NotFound);
        let climbing = [mount("tmpfs", Path::new("tmpfs"), "../outside", &[])];
        assert!(mount_all(&climbing, &target).is_err());
        assert!(!mountinfo::is_mount_point(&outside).unwrap());
    });
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    alone(|dir| {
        let error = mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &["nonsense=1"])], dir).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Call { step: Step::Configure, .. }), "{text}");
        assert!(text.contains("nonsense"), "{text}");
        let unknown = mount_all(&[mount("no-such-fs", Path::new(""), "", &[])], dir).unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unimplemented);
    });
}

fn overlay(dir: &Path, layers: usize, name: &str) -> Mount {
    let lowers: Vec<_> = (0..layers)
        .map(|i| {
            let lower = directory(dir, &format!("{name}/{i}/fs"));
            fs::write(lower.join(format!("file-{i}")), i.to_string()).unwrap();
            fs::write(lower.join("top"), i.to_string()).unwrap();
            lower.to_str().unwrap().to_owned()
        })
        .collect();
    let (upper, work) = (directory(dir, &format!("{name}/upper")), directory(dir, &format!("{name}/work")));
    let options = [
        "index=off".to_owned(),
        format!("workdir={}", work.display()),
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lowers.join(":")),
    ];
    Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options: options.to_vec() }
}

#[test]
fn an_overlay_of_three_hundred_layers_is_mounted() {
    alone(|dir| {
        let target = directory(dir, "target");
        mount_all(&[overlay(dir, 300, "layers")], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("top")).unwrap(), "0");
        assert_eq!(fs::read_to_string(target.join("file-299")).unwrap(), "299");
        fs::write(target.join("new"), "x").unwrap();
        assert!(dir.join("layers/upper/new").exists());
    });
}

#[test]
fn an_overlay_of_paths_longer_than_the_kernels_strings_is_mounted() {
    alone(|dir| {
        let long = format!("{}/{}", "a".repeat(200), "b:c,d\\".repeat(30));
        let mut mount = overlay(dir, 3, "short");
        fs::create_dir_all(dir.join(&long)).unwrap();
        fs::rename(dir.join("short"), dir.join(&long).join("x")).unwrap();
        let escaped = long.replace('\\', "\\\\").replace(':', "\\:");
        for option in &mut mount.options {
            let with = if option.starts_with("lowerdir") { &escaped } else { &long };
            *option = option.replace("/short/", &format!("/{with}/x/"));
        }
        let tree = Tree::new(&[mount]).unwrap();
        assert_eq!(fs::read_to_string(tree.path().join("top")).unwrap(), "0");
        fs::write(tree.path().join("new"), "x").unwrap();
    });
}

#[test]
fn a_bind_mount_shows_ids_mapped() {
    alone(|dir| {
        let source = directory(dir, "source");
        fs::write(source.join("file"), "x").unwrap();
        let options = ["rbind", "uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        let tree = Tree::new(&[mount("bind", &source, "", &options)]).unwrap();
        let seen = fs::metadata(tree.path().join("file")).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (100_000, 200_000));
        let half = Tree::new(&[mount("bind", &source, "", &["rbind", "uidmap=0:1:1"])]).unwrap_err();
        assert_eq!(half.kind(), ErrorKind::InvalidArgument);
    });
}

#[test]
fn an_overlay_shows_the_ids_of_its_lower_layers_mapped() {
    alone(|dir| {
        let mut mount = overlay(dir, 150, "layers");
        mount.options.extend(["uidmap=0:100000:65536".into(), "gidmap=0:100000:65536".into()]);
        let before = table();
        let tree = Tree::new(&[mount]).unwrap();
        assert_eq!(table(), before);
        let seen = fs::metadata(tree.path().join("file-149")).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (100_000, 100_000));
    });
}

#[test]
fn a_tree_is_made_read_only_and_mapped_by_hand() {
    alone(|dir| {
        let source = directory(dir, "source");
        let map = idmap::IdMap::parse("0:1000:1").unwrap();
        let namespace = idmap::user_namespace(&map, &map).unwrap();
        let tree = clone_tree(sys::CWD, &source, true).unwrap();
        let attributes = Options::parse(&["ro", "nosuid"]).unwrap().attributes;
        set_attributes(tree.as_fd(), attributes, None, Some(namespace.as_fd()), true).unwrap();
        let again = set_attributes(tree.as_fd(), Attributes::default(), None, Some(namespace.as_fd()), true);
        assert!(matches!(again, Err(Error::Call { step: Step::IdMap, .. })));
        let target = directory(dir, "target");
        attach(tree.as_fd(), &target).unwrap();
        assert_eq!(errno(fs::write(target.join("x"), "")), Some(libc::EROFS));
    });
}

#[test]
fn a_remount_changes_what_it_names() {
    alone(|dir| {
        let target = directory(dir, "target");
        mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &["nosuid"])], &target).unwrap();
        mount_all(&[mount("", Path::new(""), "", &["remount", "bind", "ro"])], &target).unwrap();
        let entry = mountinfo::read().unwrap().into_iter().find(|entry| entry.target == target).unwrap();
        assert_eq!(entry.options, "ro,nosuid,relatime");
        assert!(!entry.superblock_options.starts_with("ro"));
        mount_all(&[mount("", Path::new(""), "", &["remount", "rw", "size=64k"])], &target).unwrap();
        fs::write(target.join("x"), "").unwrap();
        assert_eq!(errno(fs::write(target.join("big"), vec![0; 1 << 20])), Some(libc::ENOSPC));
    });
}

#[test]
fn propagation_holds_after_attaching_below_a_shared_mount() {
    alone(|dir| {
        let shared = directory(dir, "shared");
        mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &["shared"])], &shared).unwrap();
        let tags = |path: &Path| {
            mountinfo::read().unwrap().into_iter().find(|entry| entry.target == path).map(|entry| entry.tags).unwrap()
        };
        assert!(tags(&shared)[0].starts_with("shared:"));
        let inner = directory(&shared, "inner");
        mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &["private"])], &inner).unwrap();
        assert!(tags(&inner).is_empty());
        mount_all(&[mount("", Path::new(""), "", &["rslave"])], &shared).unwrap();
        assert!(tags(&shared).is_empty());
    });
}

#[test]
fn all_mounts_on_and_below_a_directory_are_taken_away() {
    alone(|dir| {
        let target = directory(dir, "a b\n\\c");
        let tmpfs = |place: &Path| mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &[])], place).unwrap();
        tmpfs(&target);
        tmpfs(&directory(&target, "x"));
        tmpfs(&directory(&target, "x/y"));
        tmpfs(&target);
        tmpfs(&directory(&target, "z"));
        unmount_recursive(&target, Unmount::default()).unwrap();
        assert!(table().iter().all(|path| !path.starts_with(&target)));
        unmount_recursive(&target, Unmount::default()).unwrap();
        (0..3).for_each(|_| tmpfs(&target));
        unmount_all(&target, Unmount::default()).unwrap();
        assert!(!mountinfo::is_mount_point(&target).unwrap());
        unmount(&dir.join("missing"), Unmount::default()).unwrap();
    });
}

#[test]
fn a_busy_mount_is_an_error_that_says_so_unless_detached_lazily() {
    alone(|dir| {
        let target = directory(dir, "target");
        mount_all(&[mount("tmpfs", Path::new("tmpfs"), "", &[])], &target).unwrap();
        let _user = fs::File::create(target.join("open")).unwrap();
        let error = unmount(&target, Unmount::default()).unwrap_err();
        assert_eq!((error.errno(), error.kind()), (Some(libc::EBUSY), ErrorKind::FailedPrecondition));
        unmount(&target, Unmount::LAZY).unwrap();
        assert!(!mountinfo::is_mount_point(&target).unwrap());
    });
}

#[test]
fn a_file_is_mounted_through_a_loop_device_that_goes_with_it() {
    alone(|dir| {
        let image = dir.join("image");
        fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: no mkfs.ext4 or no loop devices here");
            return;
        }
        let tree = Tree::new(&[mount("ext4", &image, "", &["loop", "ro"])]).unwrap();
        assert!(tree.path().join("lost+found").exists());
    });
}
