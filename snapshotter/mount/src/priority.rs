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
        let (io, policy) =
            unsafe { (libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0), libc::sched_getscheduler(0)) };
        set(libc::c_long::from(BEST_EFFORT << CLASS_SHIFT | LAST));
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
        set(self.io.max(0));
        if self.policy == libc::SCHED_OTHER {
            schedule(libc::SCHED_OTHER);
        }
    }
}

fn schedule(policy: libc::c_int) {
    let of_no_use = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure lives through the call, which reads it; 0 is the calling thread. A refusal changes nothing.
    unsafe { libc::sched_setscheduler(0, policy, &of_no_use) };
}

fn set(priority: libc::c_long) {
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
            unsafe { (libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0), libc::sched_getscheduler(0)) }
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
        // SAFETY: integers only.
        let now = || unsafe { libc::sched_getscheduler(0) };
        let background = Background::new();
        assert_eq!(now(), libc::SCHED_IDLE);
        drop(background);
        assert_eq!(now(), libc::SCHED_IDLE);
    }
}
