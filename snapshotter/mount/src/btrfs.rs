//! Subvolumes of btrfs: directories that can be copied whole at once (btrfs-ioctl(2), `linux/btrfs.h`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

const SUBVOL_CREATE: libc::c_ulong = 0x5000_940E;
const SNAP_DESTROY: libc::c_ulong = 0x5000_940F;
const INO_LOOKUP: libc::c_ulong = 0xD000_9412;
const SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const SUBVOL_GETFLAGS: libc::c_ulong = 0x8008_9419;
const SUBVOL_SETFLAGS: libc::c_ulong = 0x4008_941A;
const READ_ONLY: u64 = 1 << 1;
/// Inode number of every subvolume's root.
const ROOT_INODE: u64 = 256;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgsV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

const _: () = assert!(size_of::<VolumeArgs>() == 4096);
const _: () = assert!(size_of::<VolumeArgsV2>() == 4096);
const _: () = assert!(size_of::<LookupArgs>() == 4096);

/// Makes an empty subvolume at `path`, whose parent is on btrfs.
///
/// # Errors
/// The kernel's.
pub fn create(path: &Path) -> io::Result<()> {
    on_name(path, SUBVOL_CREATE)
}

/// Removes the subvolume at `path`, also a read-only one, with all that is in it but other subvolumes.
///
/// # Errors
/// The kernel's: `EBUSY` while it is mounted by a path, `ENOTDIR`/`EINVAL` where it is none.
pub fn delete(path: &Path) -> io::Result<()> {
    if path.exists() { on_name(path, SNAP_DESTROY) } else { Ok(()) }
}

/// Makes a writable copy of the subvolume `from` at `path`.
///
/// # Errors
/// The kernel's.
pub fn snapshot(from: &Path, path: &Path) -> io::Result<()> {
    let (directory, name) = split(path)?;
    let from = File::open(from)?;
    let mut args =
        VolumeArgsV2 { fd: from.as_raw_fd().into(), transaction: 0, flags: 0, unused: [0; 4], name: [0; 4040] };
    copy(name, &mut args.name)?;
    // SAFETY: the request reads one btrfs_ioctl_vol_args_v2, whose size is asserted above; its name ends in NUL.
    let ret = unsafe { libc::ioctl(directory.as_raw_fd(), SNAP_CREATE_V2 as _, &raw const args) };
    crate::sys::done(ret.into())
}

/// Lets nobody write to the subvolume at `path` any more, or again.
///
/// # Errors
/// The kernel's.
pub fn set_read_only(path: &Path, read_only: bool) -> io::Result<()> {
    let file = File::open(path)?;
    let mut flags = 0_u64;
    // SAFETY: the request writes one u64.
    crate::sys::done(unsafe { libc::ioctl(file.as_raw_fd(), SUBVOL_GETFLAGS as _, &raw mut flags) }.into())?;
    let wanted = if read_only { flags | READ_ONLY } else { flags & !READ_ONLY };
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: the request reads one u64.
    crate::sys::done(unsafe { libc::ioctl(file.as_raw_fd(), SUBVOL_SETFLAGS as _, &raw const wanted) }.into())
}

/// The number of the subvolume at `path`, for the mount option `subvolid=`.
///
/// # Errors
/// The kernel's: `ENOTTY` where it is not on btrfs.
pub fn id(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let mut args = LookupArgs { tree: 0, object: ROOT_INODE, name: [0; 4080] };
    // SAFETY: the request reads and writes one btrfs_ioctl_ino_lookup_args, whose size is asserted above.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), INO_LOOKUP as _, &raw mut args) };
    crate::sys::done(ret.into()).map(|()| args.tree)
}

fn on_name(path: &Path, request: libc::c_ulong) -> io::Result<()> {
    let (directory, name) = split(path)?;
    let mut args = VolumeArgs { fd: 0, name: [0; 4088] };
    copy(name, &mut args.name)?;
    // SAFETY: the request reads one btrfs_ioctl_vol_args, whose size is asserted above; its name ends in NUL.
    let ret = unsafe { libc::ioctl(directory.as_raw_fd(), request as _, &raw const args) };
    crate::sys::done(ret.into())
}

fn split(path: &Path) -> io::Result<(File, &[u8])> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.file_name().map(OsStrExt::as_bytes);
    let (Some(parent), Some(name)) = (path.parent(), name) else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok((File::open(parent)?, name))
}

fn copy(name: &[u8], to: &mut [u8]) -> io::Result<()> {
    // BTRFS_NAME_LEN.
    if name.is_empty() || name.len() > 255 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    to[..name.len()].copy_from_slice(name);
    Ok(())
}
