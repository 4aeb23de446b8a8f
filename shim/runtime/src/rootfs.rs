//! The container's file system as operations: the root, mounts, devices, masked and read-only paths.
//!
//! Bind mounts and the root are made here, detached, by the parent, who sees the host's files; the child attaches
//! them. File systems that belong to a namespace (proc, sysfs, mqueue, devpts, cgroup, tmpfs) are made by the child.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_mount::idmap::{IdMap, Range};
use gantry_mount::{Attributes, Bind, Options, sys as mount};

use crate::cgroups::Cgroup;
use crate::error::{Error, Result};
use crate::plan::{Filesystem, Op, Target, c_path, c_string};
use crate::spec::{Device, IdMapping, Mount, NamespaceKind, Spec};
use crate::sys::{self, Fd};

/// What mounts depend on.
pub(crate) struct Context<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
}

/// Makes the root file system's tree, detached.
pub(crate) fn root_tree(context: &Context<'_>, mounts: &[gantry_types::Mount]) -> Result<(Fd, CString)> {
    let path = context.spec.root.as_ref().map(|root| context.bundle.join(&root.path)).unwrap_or_default();
    let at = c_path(&path)?;
    if !path.is_dir() {
        return Err(Error::invalid("root.path", format!("{} is not a directory", path.display())));
    }
    let tree = if mounts.is_empty() {
        clone_tree(&path, true).map_err(|source| Error::file("open root file system", &path, source))?
    } else {
        gantry_mount::detached(mounts).map_err(|error| Error::Init {
            what: format!("mount the root file system: {error}"),
            source: std::io::Error::from(std::io::ErrorKind::Other),
        })?
    };
    // Events of the host still arrive; ours do not leave.
    set(&tree, true, 0, 0, libc::MS_SLAVE, None).map_err(|source| Error::file("set propagation of", &path, source))?;
    Ok((Fd(tree.into_raw_fd()), at))
}

/// The root of a process that needs no files. It goes over a directory that everybody can reach.
pub(crate) fn empty_root() -> Result<Op> {
    let options =
        ["ro", "nosuid", "nodev", "noexec", "mode=0555", "nr_inodes=2", "size=4k"].map(str::to_owned).to_vec();
    let tmpfs = gantry_types::Mount { kind: "tmpfs".into(), source: "tmpfs".into(), target: String::new(), options };
    let tree = gantry_mount::detached(&[tmpfs]).map_err(|error| Error::Init {
        what: format!("mount an empty root: {error}"),
        source: std::io::Error::from(std::io::ErrorKind::Other),
    })?;
    Ok(Op::AttachRoot { tree: Fd(tree.into_raw_fd()), at: c"/proc".to_owned() })
}

fn clone_tree(path: &Path, recursive: bool) -> std::io::Result<OwnedFd> {
    let name = c_path(path).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let all = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    mount::open_tree(mount::CWD, &name, mount::OPEN_TREE_CLONE | all)
}

fn set(
    tree: &OwnedFd,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    let all = if recursive { libc::AT_RECURSIVE } else { 0 };
    mount::mount_setattr(tree.as_raw_fd(), c"", (libc::AT_EMPTY_PATH | all) as u32, set, clear, propagation, namespace)
}

/// Operations that have a place of their own among the mounts.
struct Due {
    /// Joining the cgroups: before they are mounted.
    join: Vec<Op>,
    /// What is made read-only once all is in it.
    late: Vec<Op>,
}

/// Everything from the attached root to the finished tree; `join` (the cgroups) is part of it.
pub(crate) fn operations(context: &Context<'_>, root: &Fd, join: Vec<Op>) -> Result<Vec<Op>> {
    let mut ops = Vec::new();
    let mut due = Due { join, late: Vec::new() };
    for entry in &context.spec.mounts {
        mount_operations(context, root, entry, &mut ops, &mut due)?;
    }
    if !binds_dev(context.spec) {
        ops.extend(device_operations(context)?);
    }
    ops.extend(due.late);
    for path in &context.spec.linux.readonly_paths {
        ops.push(Op::ReadonlyPath(Target::new(path)?));
    }
    for path in &context.spec.linux.masked_paths {
        ops.push(Op::Mask(Target::new(path)?));
    }
    if let Some(process) = &context.spec.process {
        ops.push(Op::Directory(Target::new(&process.cwd)?));
    }
    if context.spec.root.as_ref().is_some_and(|root| root.readonly) {
        ops.push(Op::Attributes { target: Target::new("/")?, set: mount::MOUNT_ATTR_RDONLY, recursive: false });
    }
    ops.extend(due.join);
    Ok(ops)
}

fn binds_dev(spec: &Spec) -> bool {
    spec.mounts.iter().any(|entry| {
        let bind = entry.kind == "bind" || entry.options.iter().any(|option| option == "bind" || option == "rbind");
        bind && entry.destination.trim_end_matches('/') == "/dev"
    })
}

fn mount_operations(context: &Context<'_>, root: &Fd, entry: &Mount, ops: &mut Vec<Op>, due: &mut Due) -> Result<()> {
    let options = Options::parse(&entry.options)
        .map_err(|error| Error::invalid("mounts", format!("{}: {error}", entry.destination)))?;
    if options.remount {
        let set = options.attributes.set;
        ops.push(Op::Attributes { target: Target::new(&entry.destination)?, set, recursive: false });
        return Ok(());
    }
    if options.bind.is_some() || entry.kind == "bind" {
        ops.push(bind(context, entry, &options)?);
        return Ok(());
    }
    match entry.kind.as_str() {
        "cgroup" | "cgroup2" => cgroup_mounts(context, entry, &options, ops, due),
        "tmpfs" if options.copy_up => {
            ops.push(copied_tmpfs(root, entry, &options)?);
            due.late.extend(late_read_only(entry, &options)?);
            Ok(())
        }
        kind => {
            ops.push(filesystem(kind, entry, &options)?);
            if kind == "tmpfs" {
                due.late.extend(late_read_only(entry, &options)?);
            }
            Ok(())
        }
    }
}

/// A read-only tmpfs becomes so only when what belongs into it (devices, mount points) is there.
fn late_read_only(entry: &Mount, options: &Options) -> Result<Option<Op>> {
    if !options.read_only() {
        return Ok(None);
    }
    let target = Target::new(&entry.destination)?;
    Ok(Some(Op::Attributes { target, set: mount::MOUNT_ATTR_RDONLY, recursive: false }))
}

fn filesystem(kind: &str, entry: &Mount, options: &Options) -> Result<Op> {
    let mut data = Vec::new();
    for flag in &options.superblock {
        data.push((c_string(flag)?, None));
    }
    for (key, value) in &options.data {
        data.push((c_string(key)?, value.as_deref().map(c_string).transpose()?));
    }
    let tmpfs = kind == "tmpfs";
    let mut target = Target::new(&entry.destination)?;
    target.no_symlinks = matches!(kind, "proc" | "sysfs");
    target.outside_proc = !target.no_symlinks;
    let mut attributes = options.attributes.set | options.recursive.set;
    if tmpfs {
        attributes &= !mount::MOUNT_ATTR_RDONLY;
    } else if options.read_only() {
        // The superblock too, where it is a new one.
        data.push((c"ro".to_owned(), None));
    }
    let source = if entry.source.is_empty() { kind } else { &entry.source };
    Ok(Op::Filesystem(Box::new(Filesystem {
        kind: c_string(kind)?,
        source: Some(c_string(source)?),
        inherit_mode: tmpfs && !options.data.iter().any(|(key, _)| key == "mode"),
        data,
        attributes,
        propagation: options.propagation.last().map_or(0, |propagation| propagation.kind),
        target,
    })))
}

fn bind(context: &Context<'_>, entry: &Mount, options: &Options) -> Result<Op> {
    let source = context.bundle.join(&entry.source);
    let failed = |step: &str, error: std::io::Error| Error::Init {
        what: format!("{step} {} to mount on {}", source.display(), entry.destination),
        source: error,
    };
    let tree = clone_tree(&source, options.bind == Some(Bind::Recursive)).map_err(|error| failed("open", error))?;
    let plain = options.attributes;
    if !plain.is_empty() {
        set_flags(&tree, plain).map_err(|error| failed("set flags of", error))?;
    }
    let deep = options.recursive;
    if !deep.is_empty() {
        set(&tree, true, deep.set, deep.clear, 0, None).map_err(|error| failed("set flags of", error))?;
    }
    propagate(context, &tree, options).map_err(|error| failed("set propagation of", error))?;
    if let Some(recursive) = idmapped(entry, options) {
        let namespace = mapping_namespace(context, entry, options)?;
        use std::os::fd::AsFd;
        set(&tree, recursive, mount::MOUNT_ATTR_IDMAP, 0, 0, Some(namespace.as_fd()))
            .map_err(|error| failed("set the id map of", error))?;
    }
    let stat =
        sys::fstat(tree.as_raw_fd()).map_err(|errno| failed("stat", std::io::Error::from_raw_os_error(errno)))?;
    let mut target = Target::new(&entry.destination)?;
    target.outside_proc = !may_cover_proc(&target.display());
    Ok(Op::Attach { tree: Fd(tree.into_raw_fd()), target, file: stat.st_mode & libc::S_IFMT != libc::S_IFDIR })
}

/// As with runc, a bind mount for which any flag is named has no others of its source's, unless these are locked by
/// a user namespace.
fn set_flags(tree: &OwnedFd, flags: Attributes) -> std::io::Result<()> {
    const ALL: u64 = mount::MOUNT_ATTR_RDONLY
        | mount::MOUNT_ATTR_NOSUID
        | mount::MOUNT_ATTR_NODEV
        | mount::MOUNT_ATTR_NOEXEC
        | mount::MOUNT_ATTR_NOSYMFOLLOW;
    match set(tree, false, flags.set, flags.clear | (ALL & !flags.set), 0, None) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => set(tree, false, flags.set, flags.clear, 0, None),
        done => done,
    }
}

/// The places below /proc that may be covered: per-container views of host-wide numbers (lxcfs).
fn may_cover_proc(path: &str) -> bool {
    const ALLOWED: [&str; 11] = [
        "/proc",
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ];
    ALLOWED.contains(&path)
}

/// Default: private. `shared` leads to the host only if the root is shared as well.
fn propagate(context: &Context<'_>, tree: &OwnedFd, options: &Options) -> std::io::Result<()> {
    if options.propagation.is_empty() {
        return set(tree, true, 0, 0, libc::MS_PRIVATE, None);
    }
    if !context.spec.linux.rootfs_propagation.ends_with("shared") {
        set(tree, true, 0, 0, libc::MS_SLAVE, None)?;
    }
    for propagation in &options.propagation {
        set(tree, propagation.recursive, 0, 0, propagation.kind, None)?;
    }
    Ok(())
}

/// Whether a mount gets an id map, and whether all mounts below do.
fn idmapped(entry: &Mount, options: &Options) -> Option<bool> {
    let listed = !entry.uid_mappings.is_empty() || !entry.gid_mappings.is_empty();
    options.idmap.or(listed.then_some(false))
}

fn mapping_namespace(context: &Context<'_>, entry: &Mount, options: &Options) -> Result<OwnedFd> {
    let linux = &context.spec.linux;
    let pick = |own: &[IdMapping], option: &Option<IdMap>, container: &[IdMapping]| match option {
        Some(map) => Ok(map.clone()),
        None => id_map(if own.is_empty() { container } else { own }),
    };
    let uids = pick(&entry.uid_mappings, &options.uid_map, &linux.uid_mappings)?;
    let gids = pick(&entry.gid_mappings, &options.gid_map, &linux.gid_mappings)?;
    gantry_mount::idmap::user_namespace(&uids, &gids).map_err(|error| Error::Init {
        what: format!("make the id map of {}: {error}", entry.destination),
        source: std::io::Error::from(std::io::ErrorKind::Other),
    })
}

fn id_map(mappings: &[IdMapping]) -> Result<IdMap> {
    let range = |m: &IdMapping| Range { container: m.container_id, host: m.host_id, length: m.size };
    IdMap::new(mappings.iter().map(range).collect()).map_err(|error| Error::invalid("mounts", error.to_string()))
}

/// A tmpfs that starts with a copy of what it covers.
fn copied_tmpfs(root: &Fd, entry: &Mount, options: &Options) -> Result<Op> {
    let failed = |source: std::io::Error| Error::Init { what: format!("mount tmpfs on {}", entry.destination), source };
    let target = Target::new(&entry.destination)?;
    let context = mount::fsopen(c"tmpfs").map_err(failed)?;
    use std::os::fd::AsFd;
    for (key, value) in &options.data {
        let key = c_string(key)?;
        match value {
            Some(value) => mount::fsconfig_string(context.as_fd(), &key, &c_string(value)?),
            None => mount::fsconfig_flag(context.as_fd(), &key),
        }
        .map_err(failed)?;
    }
    mount::fsconfig_create(context.as_fd()).map_err(failed)?;
    let attributes = (options.attributes.set | options.recursive.set) & !mount::MOUNT_ATTR_RDONLY;
    let tree = mount::fsmount(context.as_fd(), attributes).map_err(failed)?;
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    if let Ok(covered) = sys::openat2(root.0, &target.path, libc::O_PATH | libc::O_DIRECTORY, resolve) {
        let through = |fd: i32| PathBuf::from(format!("/proc/self/fd/{fd}"));
        copy_tree(&through(covered.0), &through(tree.as_raw_fd())).map_err(failed)?;
    }
    Ok(Op::Attach { tree: Fd(tree.into_raw_fd()), target, file: false })
}

/// Copies directories, files and links with owner and mode.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, lchown, symlink};
    let own = std::fs::metadata(from)?;
    lchown(to.join("."), Some(own.uid()), Some(own.gid()))?;
    std::fs::set_permissions(to, own.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let copy = to.join(entry.file_name());
        if metadata.is_dir() {
            std::fs::create_dir(&copy)?;
            copy_tree(&entry.path(), &copy)?;
        } else if metadata.is_symlink() {
            symlink(std::fs::read_link(entry.path())?, &copy)?;
            lchown(&copy, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if metadata.is_file() {
            std::fs::copy(entry.path(), &copy)?;
            lchown(&copy, Some(metadata.uid()), Some(metadata.gid()))?;
            std::fs::set_permissions(&copy, metadata.permissions())?;
        }
    }
    Ok(())
}

// --- /sys/fs/cgroup ---

fn cgroup_mounts(
    context: &Context<'_>,
    entry: &Mount,
    options: &Options,
    ops: &mut Vec<Op>,
    due: &mut Due,
) -> Result<()> {
    ops.append(&mut due.join);
    let private = context.spec.namespace(NamespaceKind::Cgroup).is_some();
    // There the cgroups are made before the process, else while it makes its mounts.
    let in_user_namespace = context.spec.namespace(NamespaceKind::User).is_some();
    if let (true, Some(path)) = (context.cgroup.is_v2(), &context.cgroup.unified) {
        ops.push(if private { filesystem("cgroup2", entry, options)? } else { cgroup_bind(path, entry, "", options)? });
        return Ok(());
    }
    let base = Mount { source: "tmpfs".into(), options: vec!["mode=755".into()], ..entry.clone() };
    let mut parsed = Options::parse(&base.options).map_err(|error| Error::invalid("mounts", error.to_string()))?;
    parsed.attributes = options.attributes;
    ops.push(filesystem("tmpfs", &base, &parsed)?);
    for hierarchy in context.cgroup.views() {
        let name = hierarchy.mount_name();
        ops.push(if private {
            cgroup_view(entry, &hierarchy.controllers, name, options)?
        } else if in_user_namespace {
            cgroup_bind(&hierarchy.path, entry, name, options)?
        } else {
            cgroup_bind_later(&hierarchy.path, entry, name, options)?
        });
        for alias in name.split(',').filter(|alias| *alias != name) {
            let target = Target::new(&format!("{}/{alias}", entry.destination))?;
            ops.push(Op::Symlink { target, content: c_string(name)? });
        }
    }
    due.late.extend(late_read_only(entry, options)?);
    Ok(())
}

fn cgroup_view(entry: &Mount, controllers: &str, name: &str, options: &Options) -> Result<Op> {
    let view = Mount {
        destination: format!("{}/{name}", entry.destination),
        source: "cgroup".into(),
        options: controllers.split(',').map(str::to_owned).collect(),
        ..entry.clone()
    };
    let mut parsed = Options::parse(&view.options).map_err(|error| Error::invalid("mounts", error.to_string()))?;
    parsed.attributes = options.attributes;
    filesystem("cgroup", &view, &parsed)
}

fn cgroup_bind(path: &Path, entry: &Mount, name: &str, options: &Options) -> Result<Op> {
    let failed =
        |source| Error::Init { what: format!("mount cgroup {} on {}", path.display(), entry.destination), source };
    let tree = clone_tree(path, false).map_err(failed)?;
    set(&tree, false, options.attributes.set, options.attributes.clear, libc::MS_PRIVATE, None).map_err(failed)?;
    let target = Target::new(&format!("{}/{name}", entry.destination))?;
    Ok(Op::Attach { tree: Fd(tree.into_raw_fd()), target, file: false })
}

/// The same for a directory that is made while the process makes its mounts.
fn cgroup_bind_later(path: &Path, entry: &Mount, name: &str, options: &Options) -> Result<Op> {
    let target = Target::new(&format!("{}/{name}", entry.destination))?;
    let Attributes { set, clear, .. } = options.attributes;
    Ok(Op::AttachHosts { path: c_path(path)?, set, clear, target })
}

// --- /dev ---

const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The devices that every container has.
pub(crate) fn default_devices() -> impl Iterator<Item = &'static str> {
    DEFAULT_DEVICES.iter().map(|(path, ..)| *path)
}

fn device_operations(context: &Context<'_>) -> Result<Vec<Op>> {
    // A user namespace may not make device nodes: the host's are bound in.
    let bound = context.spec.namespace(NamespaceKind::User).is_some();
    let mut ops = Vec::new();
    let configured = &context.spec.linux.devices;
    for (path, major, minor) in DEFAULT_DEVICES {
        if !configured.iter().any(|device| device.path == path) {
            ops.push(if bound {
                bound_device(path)?
            } else {
                node(path, libc::S_IFCHR | 0o666, (major, minor), (0, 0))?
            });
        }
    }
    for device in configured {
        ops.push(if bound { bound_device(&device.path)? } else { configured_device(device)? });
    }
    for (path, content) in [
        ("/dev/fd", c"/proc/self/fd"),
        ("/dev/stdin", c"/proc/self/fd/0"),
        ("/dev/stdout", c"/proc/self/fd/1"),
        ("/dev/stderr", c"/proc/self/fd/2"),
        ("/dev/ptmx", c"pts/ptmx"),
        ("/dev/core", c"/proc/kcore"),
    ] {
        if path != "/dev/core" || Path::new("/proc/kcore").exists() {
            ops.push(Op::Symlink { target: Target::new(path)?, content: content.to_owned() });
        }
    }
    Ok(ops)
}

fn node(path: &str, mode: u32, (major, minor): (u32, u32), (uid, gid): (u32, u32)) -> Result<Op> {
    Ok(Op::Device { target: Target::new(path)?, mode, device: libc::makedev(major, minor), uid, gid })
}

fn configured_device(device: &Device) -> Result<Op> {
    let kind = match device.kind.as_str() {
        "c" | "u" => libc::S_IFCHR,
        "b" => libc::S_IFBLK,
        "p" => libc::S_IFIFO,
        other => return Err(Error::invalid("linux.devices", format!("{}: type {other:?}", device.path))),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| Error::invalid("linux.devices", format!("{}: number {value}", device.path)))
    };
    let numbers = if kind == libc::S_IFIFO { (0, 0) } else { (number(device.major)?, number(device.minor)?) };
    let mode = kind | device.file_mode.unwrap_or(0o666) & 0o7777;
    node(&device.path, mode, numbers, (device.uid.unwrap_or(0), device.gid.unwrap_or(0)))
}

fn bound_device(path: &str) -> Result<Op> {
    let failed = |source| Error::Init { what: format!("open device {path}"), source };
    let tree = clone_tree(Path::new(path), false).map_err(failed)?;
    set(&tree, false, 0, 0, libc::MS_PRIVATE, None).map_err(failed)?;
    Ok(Op::Attach { tree: Fd(tree.into_raw_fd()), target: Target::new(path)?, file: true })
}

/// The flags of `rootfsPropagation`; `None` leaves the root as it is made.
pub(crate) fn propagation(text: &str) -> Result<Option<u64>> {
    let flags = match text.strip_prefix('r').unwrap_or(text) {
        "" => return Ok(None),
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return Err(Error::invalid("linux.rootfsPropagation", format!("{text:?} is no propagation"))),
    };
    let recursive = if text.starts_with('r') { libc::MS_REC } else { 0 };
    Ok(Some(flags | recursive))
}

/// The home directory of a user in a root file system (its `etc/passwd`); `/` when unknown.
pub(crate) fn home(root: i32, uid: u32) -> String {
    read_passwd(root).and_then(|text| home_in(&text, uid)).unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() >= 6)
        .find(|fields| fields[2].parse() == Ok(uid))
        .map(|fields| fields[5].to_owned())
        .filter(|home| home.starts_with('/'))
}

#[allow(unsafe_code)]
fn read_passwd(root: i32) -> Option<String> {
    use std::io::Read;
    use std::os::fd::FromRawFd;
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    let fd = sys::openat2(root, c"etc/passwd", libc::O_RDONLY | libc::O_NONBLOCK, resolve).ok()?;
    if sys::fstat(fd.0).ok()?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return None;
    }
    // SAFETY: the descriptor is ours; forgetting the other owner leaves exactly one.
    let file = unsafe { std::fs::File::from_raw_fd(fd.0) };
    std::mem::forget(fd);
    let mut text = String::new();
    file.take(1 << 20).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_comes_from_the_users_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv:/bin/false\n";
        assert_eq!(home_in(passwd, 33).as_deref(), Some("/srv"));
        assert_eq!(home_in(passwd, 7), None);
    }

    #[test]
    fn propagation_words_become_flags() {
        assert_eq!(propagation("rslave").unwrap(), Some(libc::MS_SLAVE | libc::MS_REC));
        assert_eq!(propagation("private").unwrap(), Some(libc::MS_PRIVATE));
        assert_eq!(propagation("").unwrap(), None);
        assert!(propagation("loud").is_err());
    }
}
