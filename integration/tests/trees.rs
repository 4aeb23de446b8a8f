//! The same image unpacked by us and by containerd is the same tree, to the last bit of metadata.

use std::path::Path;

use gantry_integration::daemon::Peer;
use gantry_integration::images::{DEBIAN, Image, Packing, busybox_root, debian_root, digest_of};
use gantry_integration::lab::run;
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};

/// Names, types, modes, owners, sizes, times to the nanosecond, link counts and targets, a line an entry.
pub(crate) fn listing(root: &Path) -> String {
    let format = "%P\t%y\t%m\t%U:%G\t%s\t%T@\t%n\t%l\n";
    let text = run("find", &[&root.to_string_lossy(), "-mindepth", "1", "-not", "-type", "d", "-printf", format]);
    let directories = "%P\t%y\t%m\t%U:%G\t%T@\n";
    let text = text + &run("find", &[&root.to_string_lossy(), "-mindepth", "1", "-type", "d", "-printf", directories]);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Extended attributes of all entries; names in octal where they are odd.
fn attributes(root: &Path) -> String {
    let found = run(
        "getfattr",
        &[
            "--recursive",
            "--physical",
            "--no-dereference",
            "--dump",
            "--match=-",
            "--encoding=hex",
            "--absolute-names",
            &root.to_string_lossy(),
        ],
    )
    .replace(&*root.to_string_lossy(), "");
    // Directories list their entries in an order of their own.
    let mut files: Vec<&str> = found.split("\n\n").collect();
    files.sort_unstable();
    files.join("\n\n")
}

/// Contents of all plain files.
pub(crate) fn contents(root: &Path) -> String {
    let script = format!("cd '{}' && find . -type f -print0 | sort -z | xargs -0 sha256sum", root.display());
    run("sh", &["-c", &script])
}

/// Digest of everything a tar can say of a tree: contents, hard links, extended attributes too.
fn fingerprint(lab: &Lab, root: &Path, name: &str) -> String {
    let tar = lab.path(&format!("{name}.fingerprint"));
    // Not the root itself: its time is when it was made.
    let script = format!(
        "cd '{}' && find . -mindepth 1 -maxdepth 1 -print0 | sort -z | tar --create --file '{}' --null --files-from=- \
         --sort=name --numeric-owner --xattrs '--xattrs-include=*' --format=posix --pax-option=delete=atime,delete=ctime",
        root.display(),
        tar.display()
    );
    run("sh", &["-c", &script]);
    let digest = digest_of(&tar);
    std::fs::remove_file(&tar).expect("remove what was just made");
    digest
}

/// All that is compared, the parts that explain a difference first.
fn mounted(lab: &Lab, daemon: &Daemon, image: &str, name: &str) -> [String; 4] {
    mounted_by(lab, daemon, image, ("overlayfs", name))
}

/// As [`mounted`], by a snapshotter.
pub(crate) fn mounted_by(lab: &Lab, daemon: &Daemon, image: &str, (snapshotter, name): (&str, &str)) -> [String; 4] {
    let root = lab.path(&format!("{name}-root"));
    std::fs::create_dir_all(&root).expect("make a directory");
    let place = root.to_string_lossy().into_owned();
    daemon.ctr(&["images", "mount", "--snapshotter", snapshotter, image, &place]).ok();
    let seen = [listing(&root), attributes(&root), contents(&root), fingerprint(lab, &root, name)];
    daemon.ctr(&["images", "unmount", "--snapshotter", snapshotter, "--rm", &place]).ok();
    seen
}

#[test]
fn debian_files_unpacked_by_us_and_by_containerd_are_identical_trees() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (ours, theirs) = (Daemon::start(&lab), Daemon::start_with(&lab, Peer::Containerd, "", &[]));
    let debian = debian_root(&lab, DEBIAN);
    let special = special_root(&lab);
    for (name, packing) in [("trees-gzip", Packing::Gzip), ("trees-zstd", Packing::Zstd)] {
        let image = Image::new(&lab, name).layer(&busybox_root(&lab)).layer(&debian).layer(&special).packing(packing);
        let image = image.push(&registry.host(), name);
        for daemon in [&ours, &theirs] {
            daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
        }
        let (our_tree, their_tree) = (mounted(&lab, &ours, &image, "ours"), mounted(&lab, &theirs, &image, "theirs"));
        assert!(our_tree[0].lines().count() > 3000, "only {} entries", our_tree[0].lines().count());
        for (our_part, their_part) in our_tree.iter().zip(&their_tree) {
            for (a, b) in our_part.lines().zip(their_part.lines()) {
                assert_eq!(a, b, "ours is left, containerd's right");
            }
            assert_eq!(our_part.lines().count(), their_part.lines().count());
        }
    }
    ours.assert_nothing_leaked();
    ours.stop_clean();
}

/// What Debian packages lack: set-id bits, devices, pipes, attributes, odd names, whiteouts, an opaque directory.
pub(crate) fn special_root(lab: &Lab) -> std::path::PathBuf {
    let root = lab.path("special-root");
    std::fs::create_dir_all(&root).expect("make a directory");
    let script = r#"
        mkdir -p 'a b/ü' bin etc usr/share/perl opt deep/1/2/3
        echo x >'a b/ü/file with
newline'
        echo s >opt/setuid && chmod 4755 opt/setuid
        echo s >opt/setgid && chmod 2755 opt/setgid && chown 33:34 opt/setgid
        mkdir opt/sticky && chmod 1777 opt/sticky
        mkfifo opt/pipe
        mknod opt/char c 1 3 && mknod opt/block b 7 0
        ln opt/setuid opt/hard && ln -s /nowhere opt/dangling && ln -s ../opt opt/loop
        truncate -s 3M opt/sparse && printf end >>opt/sparse
        touch -d '2001-02-03 04:05:06.789012345' opt/old
        touch -d '1960-01-01' opt/before
        chown 4294967294:99999 opt/old
        setfattr -n user.colour -v 0x72656400626c7565 opt/old
        setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 opt/setgid
        : >bin/.wh.vi
        : >usr/share/perl/.wh..wh..opq
        echo new >usr/share/perl/only-this
        n=$(printf 'x%.0s' $(seq 1 120)); mkdir -p "$n/$n" && echo long >"$n/$n/$n"
    "#;
    run("sh", &["-ec", &format!("cd '{}'; {script}", root.display())]);
    root
}
