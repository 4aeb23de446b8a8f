//! The mount system calls, bare: no allocation, no lock, so that a child between `clone3` and `execve` may use them.
//!
//! Each returns the kernel's error number as an [`io::Error`] (made without allocating).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Current directory, for the calls that take a directory descriptor.
pub const CWD: RawFd = libc::AT_FDCWD;

/// Flags of [`open_tree`], [`move_mount`] and [`mount_setattr`], as `linux/mount.h` has them.
pub use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS, OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
};

/// `fsopen(2)`: a context for a new superblock of type `fstype`.
///
/// # Errors
/// `ENODEV` when the kernel has no such file system.
pub fn fsopen(fstype: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the pointer is a NUL-terminated string that outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC) };
    owned(ret)
}

/// `fsconfig(2)`, `FSCONFIG_SET_FLAG`: a parameter without value.
///
/// # Errors
/// The kernel's.
pub fn fsconfig_flag(fs: BorrowedFd<'_>, key: &CStr) -> io::Result<()> {
    fsconfig(fs, libc::FSCONFIG_SET_FLAG as _, Some(key), std::ptr::null(), 0)
}

/// `fsconfig(2)`, `FSCONFIG_SET_STRING`: `key=value`. The kernel takes values of up to 255 bytes.
///
/// # Errors
/// The kernel's.
pub fn fsconfig_string(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    fsconfig(fs, libc::FSCONFIG_SET_STRING as _, Some(key), value.as_ptr().cast(), 0)
}

/// `fsconfig(2)`, `FSCONFIG_SET_FD`: a parameter given as an open file.
///
/// # Errors
/// The kernel's.
pub fn fsconfig_fd(fs: BorrowedFd<'_>, key: &CStr, value: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, libc::FSCONFIG_SET_FD as _, Some(key), std::ptr::null(), value.as_raw_fd())
}

/// `fsconfig(2)`, `FSCONFIG_CMD_CREATE`: makes (or finds) the superblock.
///
/// # Errors
/// The kernel's; [`read_log`] may say more.
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, libc::FSCONFIG_CMD_CREATE as _, None, std::ptr::null(), 0)
}

/// `fsconfig(2)`, `FSCONFIG_CMD_RECONFIGURE`: changes a superblock picked with [`fspick`].
///
/// # Errors
/// The kernel's.
pub fn fsconfig_reconfigure(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, libc::FSCONFIG_CMD_RECONFIGURE as _, None, std::ptr::null(), 0)
}

fn fsconfig(
    fs: BorrowedFd<'_>,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: *const libc::c_void,
    aux: libc::c_int,
) -> io::Result<()> {
    let key = key.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are null or NUL-terminated strings that outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, aux) };
    done(ret)
}

/// `fsmount(2)`: a detached mount of a configured context.
///
/// # Errors
/// The kernel's.
pub fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let ret = unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes as u32) };
    owned(ret)
}

/// `fspick(2)`: the superblock mounted at `path`, to be reconfigured.
///
/// # Errors
/// The kernel's.
pub fn fspick(dir: RawFd, path: &CStr) -> io::Result<OwnedFd> {
    const FSPICK_CLOEXEC: u32 = 1;
    const FSPICK_EMPTY_PATH: u32 = 8;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_fspick, dir, path.as_ptr(), FSPICK_CLOEXEC | FSPICK_EMPTY_PATH) };
    owned(ret)
}

/// `open_tree(2)`: with `OPEN_TREE_CLONE` a detached copy of the mount at `path` (all below it with
/// `libc::AT_RECURSIVE`), otherwise a handle on the mount itself.
///
/// # Errors
/// The kernel's.
pub fn open_tree(dir: RawFd, path: &CStr, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags | OPEN_TREE_CLOEXEC) };
    owned(ret)
}

/// `move_mount(2)`: attaches (or moves) a mount.
///
/// # Errors
/// The kernel's.
pub fn move_mount(from: RawFd, from_path: &CStr, to: RawFd, to_path: &CStr, flags: u32) -> io::Result<()> {
    // SAFETY: the paths are NUL-terminated strings that outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_move_mount, from, from_path.as_ptr(), to, to_path.as_ptr(), flags) };
    done(ret)
}

/// `mount_setattr(2)`. `flags` may hold `libc::AT_RECURSIVE` and `libc::AT_EMPTY_PATH`; `propagation` is one of
/// `libc::MS_{SHARED,PRIVATE,SLAVE,UNBINDABLE}` or 0.
///
/// # Errors
/// The kernel's.
pub fn mount_setattr(
    dir: RawFd,
    path: &CStr,
    flags: u32,
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: path and attr outlive the call; size is attr's.
    let ret = unsafe { libc::syscall(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, &raw const attr, size) };
    done(ret)
}

/// `umount2(2)` with `MNT_*` and `UMOUNT_NOFOLLOW` flags.
///
/// # Errors
/// The kernel's.
pub fn umount(target: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let ret = unsafe { libc::umount2(target.as_ptr(), flags) };
    done(libc::c_long::from(ret))
}

/// Reads one message of a file system context's log into `buffer`; 0 when there is none.
///
/// # Errors
/// Other than "no message" (`ENODATA`).
pub fn read_log(fs: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    let ret = unsafe { libc::read(fs.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match ret {
        0.. => Ok(ret as usize),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODATA) => Ok(0),
            error => Err(error),
        },
    }
}

pub(crate) fn done(ret: libc::c_long) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    done(ret)?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(ret as RawFd) })
}

/// `openat2(2)`: an `O_PATH` descriptor of `path`, which cannot lead out of the directory `root`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: open_how is plain data, for which all zeroes is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    let size = size_of::<libc::open_how>();
    // SAFETY: path and how outlive the call; size is how's.
    let ret = unsafe { libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size) };
    owned(ret)
}

/// `openat(2)` with `O_PATH`.
pub(crate) fn open_path(dir: RawFd, path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    let ret = unsafe { libc::openat(dir, path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    owned(libc::c_long::from(ret))
}

/// `mount(2)`, in its old meaning: a new superblock of `fstype` at `target`.
pub(crate) fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    // SAFETY: all strings are NUL-terminated and outlive the call; `data` is read up to its NUL.
    let ret = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags as libc::c_ulong, data.as_ptr().cast())
    };
    done(libc::c_long::from(ret))
}

/// Gives the calling thread a mount namespace and a working directory of its own, from which nothing propagates.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: integers only; affects the calling thread.
    done(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_NEWNS) }))?;
    mount_setattr(CWD, c"/", libc::AT_RECURSIVE as u32, 0, 0, libc::MS_PRIVATE, None)
}

/// Whether `path` (not followed) is the root of a mount: `statx(2)`'s `STATX_ATTR_MOUNT_ROOT`.
pub(crate) fn is_mount_root(path: &CStr) -> io::Result<bool> {
    // SAFETY: statx is plain data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path outlives the call, and the buffer is one statx.
    let ret = unsafe { libc::statx(CWD, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut stat) };
    done(libc::c_long::from(ret))?;
    Ok(stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// A child in a user namespace of its own, which waits to be dropped.
pub(crate) struct UserNamespaceChild {
    pid: libc::pid_t,
    // Closed by dropping; the child's read then ends, should the kill not reach it.
    _hold: OwnedFd,
}

impl UserNamespaceChild {
    /// Starts it.
    pub(crate) fn start() -> io::Result<UserNamespaceChild> {
        let (wait, hold) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: clone_args is plain data, for which all zeroes is a value. No exit signal: a parent that reaps with
        // waitpid(-1) never sees this child.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = libc::CLONE_NEWUSER as u64;
        // SAFETY: without CLONE_VM this is a fork; the child below makes only async-signal-safe calls and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: both descriptors are open in the child; the buffer is one byte; _exit runs no handlers.
            unsafe {
                libc::close(hold.as_raw_fd());
                libc::read(wait.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        done(pid)?;
        Ok(UserNamespaceChild { pid: pid as libc::pid_t, _hold: hold })
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.pid
    }
}

impl Drop for UserNamespaceChild {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet reaped, so the number is still its own; no status is wanted.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) < 0
                && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
            {}
        }
    }
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
/// The device takes no writes (`linux/loop.h`).
pub(crate) const LO_FLAGS_READ_ONLY: u32 = 1;
/// The device goes away with its last user.
pub(crate) const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` of `linux/loop.h`, with only the fields that are used named.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
    reserved: [u64; 8],
}

/// The number of a loop device that is free at this moment.
pub(crate) fn free_loop(control: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: the request takes no argument.
    let ret = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _, 0) };
    done(libc::c_long::from(ret)).map(|()| ret)
}

/// Puts `file` behind the loop device `device`.
pub(crate) fn configure_loop(device: BorrowedFd<'_>, file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    const { assert!(size_of::<LoopConfig>() == 304) };
    let config = LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        before_flags: [0; 52],
        flags,
        after_flags: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the request reads one loop_config, whose size is asserted above.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    done(libc::c_long::from(ret))
}
