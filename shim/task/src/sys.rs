//! The few system calls for which neither the standard library nor nix has a safe form. The only `unsafe` of the shim.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Takes over a descriptor that nobody owns yet: left open by the parent process, or brought by a message.
///
/// # Errors
/// When nothing is open there.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks for flags only; any number is allowed.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above), and by this function's contract nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sets a flag on a descriptor that is owned here.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Sets a terminal's size in characters.
///
/// # Errors
/// When the descriptor is no terminal.
pub fn set_window(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize through the pointer, which lives through the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the command's process lead a session of its own, with signals unblocked, and with `fds` as its descriptors 3, 4, ….
/// `fds` must stay open until it is spawned, and must be close-on-exec.
pub fn detach(command: &mut Command, fds: &[BorrowedFd<'_>]) {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(move || prepare(&fds)) };
}

/// Has the kernel kill the command's process when this one dies, and unblocks the signals that the shim blocks for itself.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: the closure makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(move || bind_to(parent)) };
}

fn bind_to(parent: u32) -> io::Result<()> {
    unblock()?;
    // SAFETY: sets a number on this process.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: takes no arguments. The parent may have died before it was asked to be watched.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Takes this process, whose parent is the daemon, out of its process group, where a terminal's signals would reach it,
/// and lets go of what the daemon left open by mistake. Only to be called first of all.
pub fn take_leave() {
    // SAFETY: takes numbers only; a process may always lead a group of its own.
    unsafe { libc::setpgid(0, 0) };
    // SAFETY: nothing was opened yet, so no owner of a descriptor is cheated; a kernel without the call leaves them.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Puts the null device in place of this process's stdin and stdout, and a log, or the null device, in place of stderr.
///
/// # Errors
/// When there is no null device.
pub fn replace_streams(log: Option<File>) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = log.as_ref().unwrap_or(&null);
    for (target, source) in [&null, &null, log].into_iter().enumerate() {
        // SAFETY: the standard streams are open for the process's life; what they lead to is nobody's invariant.
        check(unsafe { libc::dup2(source.as_raw_fd(), i32::try_from(target).unwrap_or(0)) })?;
    }
    Ok(())
}

fn prepare(fds: &[RawFd]) -> io::Result<()> {
    unblock()?;
    // SAFETY: setsid takes no arguments; it fails only for a process group leader, which a fresh child is not.
    unsafe { libc::setsid() };
    let first_free = 3 + i32::try_from(fds.len()).unwrap_or(i32::MAX - 3);
    // Two rounds: first out of the way of the targets, then onto them.
    let mut moved = [-1; 4];
    for (slot, &fd) in moved.iter_mut().zip(fds) {
        // SAFETY: duplicates a descriptor that the caller keeps open until the spawn.
        *slot = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first_free) })?;
    }
    for (target, &fd) in (3..).zip(moved.iter().take(fds.len())) {
        // SAFETY: duplicates onto a number that this child does not use otherwise; dup2 clears close-on-exec.
        check(unsafe { libc::dup2(fd, target) })?;
    }
    // Whatever else the daemon left open is none of ours; a kernel without the call leaves it so.
    // SAFETY: marks descriptors of this child; takes numbers only.
    unsafe { libc::syscall(libc::SYS_close_range, first_free, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

fn unblock() -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: the set was initialised above; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) })?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
