//! Network namespaces with a name: files that a namespace is bound to.
//!
//! A namespace lives as long as its file is bound or a process is in it, so it survives the daemon; not a reboot, after
//! which the file is an ordinary one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

use super::netlink::Socket;
use super::{Error, Result, bridge::link};

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);
/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Makes a network namespace whose only interface, `lo`, is up, and binds it to `path`. The directory is made; the file
/// must not be there.
///
/// # Errors
/// When the file is there or the kernel refuses.
pub async fn create_namespace(path: &Path) -> Result<()> {
    place(path)?;
    let target = path.to_owned();
    let made = in_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(Error::kernel("make a network namespace"))?;
        loopback_up()?;
        bind(Path::new(OWN), &target)
    });
    undo_place(path, made.await)
}

/// Binds a namespace that exists, such as `/proc/PID/ns/net`, to `path`, with `lo` up.
///
/// # Errors
/// When the file is there, `source` is no network namespace, or the kernel refuses.
pub async fn adopt_namespace(source: &Path, path: &Path) -> Result<()> {
    place(path)?;
    let (source, target) = (source.to_owned(), path.to_owned());
    let made = in_thread(move || {
        enter(&source)?;
        loopback_up()?;
        // The file of a process may be another's by now: what was entered is what is bound.
        bind(Path::new(OWN), &target)
    });
    undo_place(path, made.await)
}

/// Releases the namespace at `path` and removes the file. Nothing there is no error.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove_namespace(path: &Path) -> Result<()> {
    let path = path.to_owned();
    in_thread(move || {
        loop {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
                Err(error) => return Err(Error::io("release the network namespace at", &path)(error.into())),
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove the file of a network namespace", &path)(error))
            }
            _ => Ok(()),
        }
    })
    .await
}

/// Whether a namespace is bound to `path`. Not so after a reboot.
pub fn is_namespace(path: &Path) -> bool {
    open(path).is_ok()
}

/// Opens a namespace's file, and makes sure that it is one.
pub(super) fn open(path: &Path) -> Result<File> {
    let failed = "open network namespace";
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = file.map_err(Error::io(failed, path))?;
    let kind = fstatfs(&file).map_err(|e| Error::io(failed, path)(e.into()))?;
    if kind.filesystem_type() != NSFS {
        return Err(Error::io(failed, path)(io::Error::new(io::ErrorKind::NotFound, "the file is no namespace")));
    }
    Ok(file)
}

/// Runs blocking work in a thread inside a namespace.
pub(crate) async fn in_namespace<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = path.to_owned();
    in_thread(move || {
        enter(&path)?;
        Ok(work())
    })
    .await
}

/// Moves the calling thread into the namespace at `path`. Only for threads that end thereafter.
pub(super) fn enter(path: &Path) -> Result<()> {
    enter_file(&open(path)?)
}

/// Moves the calling thread into an open namespace. Only for threads that end thereafter.
pub(super) fn enter_file(namespace: &impl AsFd) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(Error::kernel("enter a network namespace"))
}

/// Runs blocking work in a thread of its own, which may change its namespace: it ends afterwards.
pub(super) async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (done, wait) = oneshot::channel();
    let started = thread::Builder::new().name("network".into()).spawn(move || {
        // Nobody waits any more when the caller was dropped.
        let _ = done.send(work());
    });
    started.map_err(Error::kernel("start a thread"))?;
    wait.await.unwrap_or_else(|_| Err(Error::kernel("a thread of the network")(io::Error::other("it panicked"))))
}

fn loopback_up() -> Result<()> {
    let failed = "set lo up";
    let mut socket = Socket::route().map_err(Error::kernel(failed))?;
    socket.all(&[link::up("lo").map_err(Error::kernel(failed))?]).map_err(Error::kernel(failed))
}

/// Makes the file that a namespace is bound to.
fn place(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(Error::io("make directory", parent))?;
    let made = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path);
    made.map(drop).map_err(Error::io("make the file of a network namespace", path))
}

fn undo_place(path: &Path, made: Result<()>) -> Result<()> {
    if made.is_err() {
        // The first error counts; a file that stays behind is no namespace.
        let _ = fs::remove_file(path);
    }
    made
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    let bound = mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bound.map_err(|e| Error::io("bind a network namespace to", target)(e.into()))
}
