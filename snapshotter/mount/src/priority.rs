//! What a thread gets of disk and processors beside others (ioprio_set(2), sched_setscheduler(2)).
#![allow(unsafe_code)]

const WHO_PROCESS: libc::c_int = 1;
const CLASS_SHIFT: libc::c_int = 13;
const BEST_EFFORT: libc::c_int = 2;
const LAST: libc::c_int = 7;

/// While it lives, the thread that made it, and those that it starts, get at the disk after all others, and do not
/// interrupt who is running when they are woken (`SCHED_BATCH`, sched(7)). Disk schedulers without priorities (`none`) do
/// not care, and a thread with a scheduling policy of its own keeps that.
#[derive(Debug)]
pub struct Background {
    io: libc::c_long,
    policy: libc::c_int,
    /// It is about one thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl Background {
    /// Lowers the calling thread's priority.
    pub fn new() -> Background {
        // SAFETY: integers only; 0 is the calling thread.
        let io = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
        let policy = scheduled();
        set_io(libc::c_long::from(BEST_EFFORT << CLASS_SHIFT | LAST));
        if policy == libc::SCHED_OTHER {
            schedule(libc::SCHED_BATCH);
        }
        Background { io, policy, _here: std::marker::PhantomData }
    }
}

impl Default for Background {
    fn default() -> Background {
        Background::new()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        set_io(self.io.max(0));
        if self.policy == libc::SCHED_OTHER {
            schedule(libc::SCHED_OTHER);
        }
    }
}

/// By number: the C library of the shim's target refuses what is not POSIX's to set.
fn schedule(policy: libc::c_int) {
    // What the kernel's structure consists of; of no use for policies without priorities.
    let priority: libc::c_int = 0;
    // SAFETY: the integer lives through the call, which reads it; 0 is the calling thread. A refusal changes nothing.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
}

fn scheduled() -> libc::c_int {
    // SAFETY: an integer only; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    policy as libc::c_int
}

fn set_io(priority: libc::c_long) {
    // SAFETY: integers only; 0 is the calling thread. A refusal leaves the priority as it is, which is no harm.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_is_as_before_when_the_work_is_done() {
        let now = || {
            // SAFETY: integers only.
            (unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) }, scheduled())
        };
        let before = now();
        assert_eq!(before.1, libc::SCHED_OTHER);
        let background = Background::new();
        let inside = std::thread::spawn(now);
        let expected = (libc::c_long::from(BEST_EFFORT << CLASS_SHIFT | LAST), libc::SCHED_BATCH);
        assert_eq!((now(), inside.join().unwrap_or((-1, -1))), (expected, expected));
        drop(background);
        assert_eq!(now(), before);
    }

    #[test]
    fn a_policy_that_was_chosen_stays() {
        schedule(libc::SCHED_IDLE);
        let background = Background::new();
        assert_eq!(scheduled(), libc::SCHED_IDLE);
        drop(background);
        assert_eq!(scheduled(), libc::SCHED_IDLE);
    }
}
