//! What executing `/bin/true` in a container costs at the least: clone3, setns by a pidfd, execve, wait, and nothing
//! else. `bare_exec PID [ROUNDS]`, as root; prints the median in milliseconds.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

const KINDS: [libc::c_int; 6] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWPID,
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let pid: libc::pid_t = words.next().ok_or("which process?")?.parse()?;
    let rounds: usize = words.next().map_or(Ok(400), |word| word.parse())?;
    let init = open(pid)?;
    // Children are born in its pid namespace from here on; what is not ours to share is joined by each.
    setns(&init, CloneFlags::CLONE_NEWPID)?;
    let flags = KINDS[..5].iter().fold(0, |all, kind| all | kind);
    let mut times = (0..rounds).map(|_| once(init.as_raw_fd(), flags)).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    println!("{:.4}", times[times.len() / 2].as_secs_f64() * 1000.0);
    Ok(())
}

fn open(pid: libc::pid_t) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open takes two integers, and gives a new descriptor that is nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(std::os::fd::OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

fn once(init: i32, flags: libc::c_int) -> std::io::Result<Duration> {
    let begin = Instant::now();
    // clone_args of clone3(2), as far as it is needed: flags, four pointers, the exit signal, stack and tls.
    let args: [u64; 8] = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    let program = c"/bin/true".as_ptr();
    let (argv, envp) = ([program, std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
    // SAFETY: a plain fork; the child makes three system calls on what was prepared.
    let child = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if child == 0 {
        // SAFETY: the strings live, and exit ends the child.
        unsafe {
            if libc::setns(init, flags) == 0 {
                libc::execve(program, argv.as_ptr(), envp.as_ptr());
            }
            libc::_exit(127);
        }
    }
    let mut status = 0;
    // SAFETY: status is valid for writing.
    match unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ if status != 0 => Err(std::io::Error::other(format!("it ended with {status:#x}"))),
        _ => Ok(begin.elapsed()),
    }
}
