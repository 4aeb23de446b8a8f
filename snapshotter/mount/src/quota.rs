//! Project quotas: how much a tree of files may take (quotactl(2), ioctl_xfs_fsgetxattr(2); Linux, include/uapi/linux/{fs.h,dqblk_xfs.h}).
//!
//! For ext4 with the features `project` and `quota` mounted with `prjquota`, and XFS mounted with `pquota`. A project is a
//! number that files carry; those made in a directory that hands it on get it from there.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::sys;

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`.
const INHERIT: u32 = 0x200;

/// `Q_XGETQUOTA`, `Q_XSETQLIM`, `Q_XGETQSTATV`, each of projects (`PRJQUOTA`).
const GET: u32 = command(3);
const SET_LIMIT: u32 = command(4);
const STATE: u32 = command(8);
/// `FS_QUOTA_PDQ_ENFD`.
const ENFORCED: u16 = 1 << 5;
/// `FS_DQ_BSOFT | FS_DQ_BHARD`.
const BLOCK_LIMITS: u16 = 1 << 2 | 1 << 3;
/// `FS_PROJ_QUOTA`.
const PROJECT: i8 = 2;
/// The unit of limits and of what is in use.
const BLOCK: u64 = 512;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    block_hard_limit: u64,
    block_soft_limit: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    real_time: [u64; 3],
    real_time_timer: i32,
    real_time_warnings: u16,
    padding: i16,
    padding_2: [u8; 8],
}

/// What the files of a project take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes allocated.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// Most bytes they may take; 0: any.
    pub limit: u64,
}

/// Whether the file system of `directory` holds projects to their limits.
pub fn enforced(directory: &File) -> bool {
    // `struct fs_quota_statv` starts with its version and, at byte 2, the flags; newer kernels may write more of it.
    let mut state = [0_u64; 64];
    state[0] = 1;
    // SAFETY: the buffer is several times as long as the structure, and aligned for it.
    let asked = unsafe { quotactl(directory, STATE, 0, state.as_mut_ptr().cast()) };
    asked.is_ok() && (state[0].to_le() >> 16) as u16 & ENFORCED != 0
}

/// The project of a directory whose new files get it; none: 0.
pub fn project(directory: &File) -> io::Result<u32> {
    let attributes = attributes(directory)?;
    Ok(if attributes.flags & INHERIT != 0 { attributes.project } else { 0 })
}

/// Makes an empty directory, and all that will be made below it, part of `project`.
pub fn assign(directory: &File, project: u32) -> io::Result<()> {
    let mut attributes = attributes(directory)?;
    attributes.flags |= INHERIT;
    attributes.project = project;
    // SAFETY: the request reads one fsxattr, whose size is asserted below.
    let ret = unsafe { libc::ioctl(directory.as_raw_fd(), SET_ATTRIBUTES as _, &raw const attributes) };
    sys::done(libc::c_long::from(ret))
}

/// What the files of `project` take in the file system of `directory`.
pub fn usage(directory: &File, project: u32) -> io::Result<Usage> {
    const { assert!(size_of::<DiskQuota>() == 112) };
    let mut quota = DiskQuota::default();
    // SAFETY: the command writes one fs_disk_quota, whose size is asserted above.
    match unsafe { quotactl(directory, GET, project, (&raw mut quota).cast()) } {
        // XFS knows nothing of a project without files.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Usage::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(Usage {
            bytes: quota.blocks.saturating_mul(BLOCK),
            inodes: quota.inodes,
            limit: quota.block_hard_limit.saturating_mul(BLOCK),
        }),
    }
}

/// From now on the files of `project` may take `bytes` at most, counted in units of 512; 0: any.
pub fn set_limit(directory: &File, project: u32, bytes: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: 1,
        flags: PROJECT,
        fields: BLOCK_LIMITS,
        id: project,
        block_hard_limit: bytes.div_ceil(BLOCK),
        ..DiskQuota::default()
    };
    // SAFETY: the command reads one fs_disk_quota, whose size is asserted in `usage`.
    unsafe { quotactl(directory, SET_LIMIT, project, (&raw mut quota).cast()) }
}

fn attributes(file: &File) -> io::Result<Attributes> {
    const { assert!(size_of::<Attributes>() == 28) };
    let mut attributes = Attributes::default();
    // SAFETY: the request writes one fsxattr, whose size is asserted above.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    sys::done(libc::c_long::from(ret)).map(|()| attributes)
}

/// `QCMD(XQM_CMD(number), PRJQUOTA)`.
const fn command(number: u32) -> u32 {
    ((b'X' as u32) << 8 | number) << 8 | 2
}

/// quotactl_fd(2), Linux 5.14: by a descriptor, no block device is sought.
///
/// # Safety
/// `argument` must be valid for what `command` reads and writes there.
unsafe fn quotactl(file: &File, command: u32, id: u32, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: as promised by the caller.
    sys::done(unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, argument) })
}
