//! Mounts made detached, then attached: nothing half made is ever visible.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use gantry_types::Mount;

use crate::error::{Error, Step, c_path};
use crate::idmap::user_namespace;
use crate::options::{Attributes, Bind, InvalidOption, Options, Propagation};
use crate::superblock::Context;
use crate::{chain, loopdev, overlay, superblock, sys};

/// Performs `mounts` as one detached tree: nothing appears in any mount table, and closing the descriptor unmounts
/// all. A mount with an empty `target` is the root (a later one covers an earlier one); the others lie below it. Where
/// types begin with words for a mount manager (`format/overlay`), earlier mounts are parts of the last one.
///
/// The descriptor may be attached in another mount namespace ([`attach`]), or used in place through [`Tree::path`].
///
/// # Errors
/// [`Error`], which names the mount. Trees of more than one mount need Linux 6.15.
pub fn detached(mounts: &[Mount]) -> Result<OwnedFd, Error> {
    if chain::is_chain(mounts) {
        return chain::detached(mounts);
    }
    let mut root: Option<OwnedFd> = None;
    for mount in mounts {
        let place = Path::new(mount.target.trim_start_matches('/'));
        let tree = detached_one(mount, None)?;
        match &root {
            Some(below) if !place.as_os_str().is_empty() => {
                graft(below.as_fd(), &tree, place).map_err(|error| error.of(mount, place))?;
            }
            _ => root = Some(tree),
        }
    }
    root.ok_or(Error::Empty)
}

fn graft(root: BorrowedFd<'_>, tree: &OwnedFd, place: &Path) -> Result<(), Error> {
    let target = resolve(root, place)?;
    attach_at(tree.as_fd(), target.as_fd()).map_err(|error| match error.errno() {
        Some(libc::EINVAL) => Error::Unsupported { what: "attach a mount to a detached one", since: "6.15" },
        _ => error,
    })
}

/// Performs one mount detached, whatever its `target`. With `user_namespace` its ids are mapped through that one, else
/// through its options `uidmap=` and `gidmap=` where both are there. Propagation is set already.
///
/// # Errors
/// [`Error`], which names the mount; [`Error::Option`] for `remount`, which needs a target.
pub fn detached_one(mount: &Mount, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    let options = Options::parse(&mount.options)?;
    let make = || {
        let tree = make(mount, &options, user_namespace)?;
        propagate(tree.as_fd(), &options)?;
        Ok(tree)
    };
    make().map_err(|error: Error| error.of(mount, Path::new(&mount.target)))
}

/// Performs `mounts` at `target` (each at `target` joined with its own `target`, resolved below it). When one fails,
/// those made before it are taken away again.
///
/// # Errors
/// [`Error`], which names the mount.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), Error> {
    let mut made: Vec<OwnedFd> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        match mount_one(mount, target) {
            Ok(tree) => made.extend(tree),
            Err(error) => {
                made.iter().rev().for_each(take_away);
                return Err(error.of(mount, &target.join(mount.target.trim_start_matches('/'))));
            }
        }
    }
    if mounts.is_empty() { Err(Error::Empty) } else { Ok(()) }
}

/// The mount that was made; none for a remount.
fn mount_one(mount: &Mount, target: &Path) -> Result<Option<OwnedFd>, Error> {
    let options = Options::parse(&mount.options)?;
    let place = open_target(target, &mount.target)?;
    if options.remount {
        remount(place.as_fd(), &options)?;
        propagate(place.as_fd(), &options)?;
        return Ok(None);
    }
    if options.bind.is_none() && mount.kind.is_empty() && !options.propagation.is_empty() {
        propagate(place.as_fd(), &options)?;
        return Ok(None);
    }
    let tree = make(mount, &options, None)?;
    attach_at(tree.as_fd(), place.as_fd())?;
    // Attaching below a shared mount shares the new one, so this comes last.
    if let Err(error) = propagate(tree.as_fd(), &options) {
        take_away(&tree);
        return Err(error);
    }
    Ok(Some(tree))
}

fn open_target(target: &Path, below: &str) -> Result<OwnedFd, Error> {
    let opened = sys::open_path(sys::CWD, &c_path(target)?);
    let root = opened.map_err(|error| Error::call(Step::Resolve, error))?;
    match below.trim_start_matches('/') {
        "" => Ok(root),
        below => resolve(root.as_fd(), Path::new(below)),
    }
}

fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    sys::open_in_root(root, &c_path(path)?).map_err(|error| Error::call(Step::Resolve, error))
}

fn take_away(tree: &OwnedFd) {
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    if let Ok(path) = c_path(Path::new(&path)) {
        // It was attached a moment ago by us; should this fail, the error that led here still reaches the caller.
        let _ = sys::umount(&path, libc::MNT_DETACH);
    }
}

fn make(mount: &Mount, options: &Options, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    if options.remount {
        return Err(misplaced("remount", "there is no mount yet to change"));
    }
    let made = match namespace {
        Some(_) => None,
        None => namespace_of(options)?,
    };
    let namespace = namespace.or(made.as_ref().map(AsFd::as_fd));
    if options.bind.is_some() || mount.kind == "bind" || mount.kind == "rbind" {
        return bind(mount, options, namespace);
    }
    if mount.kind == "overlay" {
        let tree = overlay::mount(&mount.source, options, namespace)?;
        finish(&tree, options, None)?;
        return Ok(tree);
    }
    if mount.kind == "erofs" {
        return erofs(mount, options, namespace);
    }
    behind_loop(mount, options, namespace)
}

/// A file is mounted as it is where the kernel can (Linux 6.12), else behind a loop device.
fn erofs(mount: &Mount, options: &Options, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    let direct = Options { loop_device: false, ..options.clone() };
    match superblock::mount(&mount.kind, &mount.source, &direct) {
        Err(error) if error.errno() == Some(libc::ENOTBLK) => {
            let read_only = Attributes { set: sys::MOUNT_ATTR_RDONLY, clear: 0 };
            let attributes = Attributes { set: direct.attributes.set | read_only.set, ..direct.attributes };
            behind_loop(mount, &Options { loop_device: true, attributes, ..direct }, namespace)
        }
        made => {
            let tree = made?;
            finish(&tree, options, namespace)?;
            Ok(tree)
        }
    }
}

fn behind_loop(mount: &Mount, options: &Options, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    let device = match options.loop_device {
        true => Some(loopdev::attach(&mount.source, options.read_only()).map_err(|e| Error::call(Step::Loop, e))?),
        false => None,
    };
    let source = device.as_ref().map_or(mount.source.as_str(), |device| device.path.as_str());
    let tree = superblock::mount(&mount.kind, source, options)?;
    finish(&tree, options, namespace)?;
    Ok(tree)
}

fn namespace_of(options: &Options) -> Result<Option<OwnedFd>, Error> {
    match (&options.uid_map, &options.gid_map) {
        (Some(uids), Some(gids)) => user_namespace(uids, gids).map(Some),
        (None, None) if options.idmap.is_none() => Ok(None),
        _ => Err(misplaced("idmap", "an id-mapped mount needs both uidmap= and gidmap=")),
    }
}

fn misplaced(option: &str, reason: &'static str) -> Error {
    InvalidOption { option: option.to_owned(), reason }.into()
}

fn bind(mount: &Mount, options: &Options, namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    let recursive = options.bind == Some(Bind::Recursive) || (options.bind.is_none() && mount.kind == "rbind");
    let tree = clone_tree(sys::CWD, Path::new(&mount.source), recursive)?;
    finish(&tree, options, namespace)?;
    Ok(tree)
}

/// What is set on a mount once it exists.
fn finish(tree: &OwnedFd, options: &Options, namespace: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let recursive_map = options.idmap == Some(true);
    if !options.recursive.is_empty() || (recursive_map && namespace.is_some()) {
        let map = namespace.filter(|_| recursive_map);
        set_attributes(tree.as_fd(), options.recursive, None, map, true)?;
    }
    let map = namespace.filter(|_| !recursive_map);
    if options.attributes.is_empty() && map.is_none() {
        return Ok(());
    }
    set_attributes(tree.as_fd(), options.attributes, None, map, false)
}

fn propagate(tree: BorrowedFd<'_>, options: &Options) -> Result<(), Error> {
    options
        .propagation
        .iter()
        .try_for_each(|change| set_attributes(tree, Attributes::default(), Some(*change), None, change.recursive))
}

/// Flags that are not named keep their value.
fn remount(place: BorrowedFd<'_>, options: &Options) -> Result<(), Error> {
    if options.bind.is_none() {
        Context::reconfigure(place, options)?;
    }
    if !options.recursive.is_empty() {
        set_attributes(place, options.recursive, None, None, true)?;
    }
    match options.attributes.is_empty() {
        true => Ok(()),
        false => set_attributes(place, options.attributes, None, None, false),
    }
}

/// Attaches a detached tree at `target` in the calling thread's mount namespace.
///
/// # Errors
/// [`Error::Call`] with step `Attach`.
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> Result<(), Error> {
    let path = c_path(target)?;
    let flags = sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_SYMLINKS;
    sys::move_mount(tree.as_raw_fd(), c"", sys::CWD, &path, flags)
        .map_err(|error| Error::call(Step::Attach, error).at(target))
}

/// Attaches a detached tree on the directory or file `target` itself (an `O_PATH` descriptor will do).
///
/// # Errors
/// [`Error::Call`] with step `Attach`.
pub fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Error> {
    let flags = sys::MOVE_MOUNT_F_EMPTY_PATH | sys::MOVE_MOUNT_T_EMPTY_PATH;
    sys::move_mount(tree.as_raw_fd(), c"", target.as_raw_fd(), c"", flags)
        .map_err(|error| Error::call(Step::Attach, error))
}

/// A detached copy of what is mounted at `path` below `dir` ([`crate::sys::CWD`] for none): the bind mount.
///
/// # Errors
/// [`Error::Call`] with step `OpenTree`.
pub fn clone_tree(dir: RawFd, path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let below = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = sys::OPEN_TREE_CLONE | below | libc::AT_EMPTY_PATH as u32;
    sys::open_tree(dir, &c_path(path)?, flags).map_err(|error| Error::call(Step::OpenTree, error).at(path))
}

/// Changes flags, propagation and id map of the mount `tree` stands for; with `recursive` of all below it too.
/// An id map can be set only while detached, and once.
///
/// # Errors
/// [`Error::Call`] with step `Attributes` or `IdMap`.
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Option<Propagation>,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> Result<(), Error> {
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let set = attributes.set | if user_namespace.is_some() { sys::MOUNT_ATTR_IDMAP } else { 0 };
    let kind = propagation.map_or(0, |propagation| propagation.kind);
    let step = if user_namespace.is_some() { Step::IdMap } else { Step::Attributes };
    sys::mount_setattr(tree.as_raw_fd(), c"", flags, set, attributes.clear, kind, user_namespace)
        .map_err(|error| Error::call(step, error))
}

/// A private mount for a moment's work: reachable only through [`Tree::path`] of this process, gone when dropped.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Performs `mounts` detached.
    ///
    /// # Errors
    /// As [`detached`].
    pub fn new(mounts: &[Mount]) -> Result<Tree, Error> {
        Ok(Tree { root: detached(mounts)? })
    }

    /// A path at which this process sees the tree: `/proc/self/fd/N/`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/", self.root.as_raw_fd()))
    }

    /// The mount itself.
    pub fn into_fd(self) -> OwnedFd {
        self.root
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
