//! System calls for the code between `clone3` and `execve`: no allocation, no lock, errors as bare error numbers.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::Read;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::OnceLock;

/// A result whose error is the kernel's error number.
pub(crate) type Sys<T> = Result<T, i32>;

/// The calling thread's last error number.
pub(crate) fn errno() -> i32 {
    // SAFETY: the location is valid for the thread's life.
    unsafe { *libc::__errno_location() }
}

/// Turns a call's return value into a result.
pub(crate) fn check(ret: libc::c_long) -> Sys<libc::c_long> {
    if ret < 0 { Err(errno()) } else { Ok(ret) }
}

/// Turns a mount call's result into ours.
pub(crate) fn bare<T>(result: std::io::Result<T>) -> Sys<T> {
    result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// A system call of integers and pointers that the caller vouches for.
macro_rules! raw {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        // SAFETY: pointers among the arguments come from live references or prepared NUL-terminated strings.
        let ret = unsafe { libc::syscall($number $(, $argument)*) };
        $crate::sys::check(ret as libc::c_long)
    }};
}
pub(crate) use raw;

/// A descriptor closed at the end of scope; unlike `OwnedFd` made and dropped with nothing but system calls checked.
#[derive(Debug)]
pub(crate) struct Fd(pub(crate) RawFd);

impl Drop for Fd {
    fn drop(&mut self) {
        if self.0 >= 0 {
            let _ = raw!(libc::SYS_close, self.0);
        }
    }
}

/// `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// No magic links on the way.
pub(crate) const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// No symbolic links at all.
pub(crate) const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// The directory is the root: `..` and absolute links stay below it.
pub(crate) const RESOLVE_IN_ROOT: u64 = 0x10;

/// openat2(2); always close-on-exec.
pub(crate) fn openat2(dir: RawFd, path: &CStr, flags: i32, resolve: u64) -> Sys<Fd> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: 0, resolve };
    loop {
        match raw!(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<OpenHow>()) {
            // A rename raced with the walk; the kernel asks to try again.
            Err(libc::EAGAIN | libc::EINTR) => {}
            other => return other.map(|fd| Fd(fd as RawFd)),
        }
    }
}

/// openat(2); always close-on-exec.
pub(crate) fn openat(dir: RawFd, path: &CStr, flags: i32) -> Sys<Fd> {
    raw!(libc::SYS_openat, dir, path.as_ptr(), flags | libc::O_CLOEXEC, 0).map(|fd| Fd(fd as RawFd))
}

/// Writes all of a small buffer in one call.
pub(crate) fn write_once(fd: RawFd, bytes: &[u8]) -> Sys<()> {
    loop {
        match raw!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) {
            Err(libc::EINTR) => {}
            Ok(written) if written as usize == bytes.len() => return Ok(()),
            Ok(_) => return Err(libc::EIO),
            Err(number) => return Err(number),
        }
    }
}

/// Reads one byte; `None` at the end of the stream.
pub(crate) fn read_byte(fd: RawFd) -> Sys<Option<u8>> {
    let mut byte = 0u8;
    loop {
        match raw!(libc::SYS_read, fd, &raw mut byte, 1) {
            Err(libc::EINTR) => {}
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte)),
            Err(number) => return Err(number),
        }
    }
}

/// fstat(2).
pub(crate) fn fstat(fd: RawFd) -> Sys<libc::stat> {
    // SAFETY: all zeroes is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: stat is valid for writing.
    check(unsafe { libc::fstat(fd, &raw mut stat) }.into())?;
    Ok(stat)
}

/// The type of the file system a descriptor is on (`f_type`).
pub(crate) fn fs_type(fd: RawFd) -> Sys<i64> {
    // SAFETY: all zeroes is a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: stat is valid for writing.
    check(unsafe { libc::fstatfs(fd, &raw mut stat) }.into())?;
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    Ok(stat.f_type as i64)
}

/// The type of the file system that a path is on (`f_type`).
pub(crate) fn fs_type_at(path: &CStr) -> Sys<i64> {
    // SAFETY: all zeroes is a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL, stat is valid for writing.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut stat) }.into())?;
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    Ok(stat.f_type as i64)
}

/// Reads a file that the kernel makes up as it is read, whose size nobody knows before: as a rule in one piece.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::with_capacity(1024);
    std::fs::File::open(path)?.take(u64::MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a short file again from its beginning.
pub(crate) fn read_again(fd: RawFd, buffer: &mut [u8]) -> Sys<&[u8]> {
    let length = raw!(libc::SYS_pread64, fd, buffer.as_mut_ptr(), buffer.len(), 0)?;
    Ok(&buffer[..length as usize])
}

/// The kernel's `struct sigaction`.
#[repr(C)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

/// The signals that this process ignores, one bit each: execve(2) would hand that on. Looked at once; nothing here
/// begins to ignore one later.
pub(crate) fn ignored_signals() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let ignores = |signal: &i32| {
        let mut action = Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
        let asked = raw!(libc::SYS_rt_sigaction, *signal, 0usize, &raw mut action, 8usize);
        asked.is_ok() && action.handler == libc::SIG_IGN
    };
    *IGNORED.get_or_init(|| (1..=64).filter(ignores).fold(0, |mask, signal| mask | 1 << (signal - 1)))
}

/// prctl(2) of integers.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> Sys<i64> {
    raw!(libc::SYS_prctl, option, a, b, 0u64, 0u64)
}

/// Where the text of this process's command line begins and ends (proc(5), `stat`, fields 48 and 49); nowhere if the
/// kernel does not say.
pub(crate) fn title() -> (usize, usize) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let mut fields = fields.split(' ').skip(45).map(|field| field.trim().parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

/// Ends the process at once.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = raw!(libc::SYS_exit_group, code);
    }
}

/// Sends a descriptor beside a message on a unix socket.
pub(crate) fn send_fd(socket: RawFd, message: &[u8], fd: RawFd) -> Sys<()> {
    #[repr(C, align(8))]
    struct Control([u8; 24]);
    let mut control = Control([0; 24]);
    let mut vector = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the buffer has room for one control message of one descriptor, and is aligned for it.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(4) as _;
        std::ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<RawFd>(), fd);
    }
    // SAFETY: header and what it points to outlive the call.
    check(unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) } as libc::c_long)?;
    Ok(())
}

/// Receives a message and at most one descriptor from a unix socket. Length 0: the other end is closed.
pub(crate) fn recv_fd(socket: RawFd, message: &mut [u8], flags: i32) -> Sys<(usize, Option<Fd>)> {
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut vector = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let length = loop {
        // SAFETY: header and what it points to outlive the call.
        match check(unsafe { libc::recvmsg(socket, &raw mut header, flags | libc::MSG_CMSG_CLOEXEC) } as libc::c_long) {
            Err(libc::EINTR) => {}
            other => break other?,
        }
    };
    let mut fd = None;
    // SAFETY: the kernel filled the control buffer; the macros stay inside it.
    unsafe {
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if !cmsg.is_null() && (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
            fd = Some(Fd(std::ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<RawFd>())));
        }
    }
    Ok((length as usize, fd))
}

/// The child's signal handlers are the default ones; what is ignored stays so.
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `struct clone_args` of clone3(2).
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// clone3(2) without shared memory: returns 0 in the child, which then lives on a copy of the caller's memory and
/// must keep to system calls on prepared data until it executes a program or exits.
pub(crate) fn clone3(args: &CloneArgs) -> Sys<i32> {
    raw!(libc::SYS_clone3, &raw const *args, size_of::<CloneArgs>()).map(|pid| pid as i32)
}

/// A pidfd of a process.
pub(crate) fn pidfd_open(pid: i32) -> Sys<Fd> {
    raw!(libc::SYS_pidfd_open, pid, 0).map(|fd| Fd(fd as RawFd))
}

/// Signals a process by its pidfd.
pub(crate) fn pidfd_send_signal(pidfd: RawFd, signal: i32) -> Sys<()> {
    raw!(libc::SYS_pidfd_send_signal, pidfd, signal, 0usize, 0).map(drop)
}

/// Waits for a child to end and reaps it; its raw wait status.
pub(crate) fn wait_pid(pid: i32) -> Sys<i32> {
    let mut status = 0;
    loop {
        // SAFETY: status is valid for writing.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Err(libc::EINTR) => {}
            Err(number) => return Err(number),
            Ok(_) => return Ok(status),
        }
    }
}

/// Kills a child that is of no use any more, and reaps it. One that the kernel does not let die in ten seconds is left
/// to whoever reaps the caller's children: an undone step must not hang where the step did.
pub(crate) fn kill_child(pid: i32, pidfd: RawFd) {
    let _ = pidfd_send_signal(pidfd, libc::SIGKILL);
    if readable(pidfd, 10_000) == Ok(true) {
        let _ = wait_pid(pid);
    }
}

/// Moves the calling process into namespaces: those of a process (pidfd, several flags) or one namespace's file.
pub(crate) fn setns(fd: RawFd, flags: i32) -> Sys<()> {
    raw!(libc::SYS_setns, fd, flags).map(drop)
}

/// Waits until a descriptor is readable (or at its end). False when the time has passed.
pub(crate) fn readable(fd: RawFd, milliseconds: i32) -> Sys<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid pollfd.
        match check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }.into()) {
            Err(libc::EINTR) => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

/// A connected pair of stream sockets, close-on-exec.
pub(crate) fn socket_pair() -> Sys<(Fd, Fd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    Ok((Fd(fds[0]), Fd(fds[1])))
}
