//! Loop devices: a file as a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// Others may take the free device first.
const ATTEMPTS: usize = 100;

/// A loop device that lives as long as this or a mount of it does.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    /// `/dev/loopN`.
    pub(crate) path: String,
    _device: File,
}

/// Puts the file `backing` behind a free loop device.
pub(crate) fn attach(backing: &str, read_only: bool) -> io::Result<LoopDevice> {
    let file = File::options().read(true).write(!read_only).open(backing)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let flags = sys::LO_FLAGS_AUTOCLEAR | if read_only { sys::LO_FLAGS_READ_ONLY } else { 0 };
    for _ in 0..ATTEMPTS {
        let path = format!("/dev/loop{}", sys::free_loop(control.as_fd())?);
        let device = File::options().read(true).write(!read_only).open(&path)?;
        match sys::configure_loop(device.as_fd(), file.as_fd(), flags) {
            Ok(()) => return Ok(LoopDevice { path, _device: device }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}
