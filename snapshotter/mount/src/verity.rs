//! fs-verity: files that the kernel checks on every read, and lets nobody write again (Linux,
//! Documentation/filesystems/fsverity.rst).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `FS_IOC_ENABLE_VERITY`.
const ENABLE: libc::c_ulong = 0x4080_6685;
const SHA256: u32 = 1;

/// `struct fsverity_enable_arg` of `linux/fsverity.h`.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved_1: u32,
    signature: u64,
    reserved_2: [u64; 11],
}

/// Seals `file`, which must be open for reading only, by everybody. One that is sealed stays so.
///
/// # Errors
/// The kernel's: `EOPNOTSUPP` or `ENOTTY` where file system or kernel have no fs-verity.
pub fn enable(file: &File) -> io::Result<()> {
    const { assert!(size_of::<EnableArg>() == 128) };
    let argument = EnableArg {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved_1: 0,
        signature: 0,
        reserved_2: [0; 11],
    };
    // SAFETY: the request reads one fsverity_enable_arg, whose size is asserted above.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &raw const argument) };
    match crate::sys::done(libc::c_long::from(ret)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Whether files in `directory` can be sealed, found out by trying.
pub fn works_in(directory: &Path) -> bool {
    let path = directory.join("verity-probe");
    let tried = std::fs::write(&path, "probe").and_then(|()| File::open(&path)).and_then(|file| enable(&file));
    // Should it stay, the next try replaces it.
    let _ = std::fs::remove_file(&path);
    tried.is_ok()
}
