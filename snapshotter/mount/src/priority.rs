//! How much of the disk a thread gets beside others (ioprio_set(2)).
#![allow(unsafe_code)]

const WHO_PROCESS: libc::c_int = 1;
const CLASS_SHIFT: libc::c_int = 13;
const BEST_EFFORT: libc::c_int = 2;
const LAST: libc::c_int = 7;

/// While it lives, the thread that made it, and those that it starts, get at the disk after all others. Schedulers
/// without priorities (`none`) do not care.
#[derive(Debug)]
pub struct LowIo {
    before: libc::c_long,
    /// It is about one thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl LowIo {
    /// Lowers the calling thread's priority.
    pub fn new() -> LowIo {
        // SAFETY: integers only; 0 is the calling thread.
        let before = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) };
        set(libc::c_long::from(BEST_EFFORT << CLASS_SHIFT | LAST));
        LowIo { before, _here: std::marker::PhantomData }
    }
}

impl Default for LowIo {
    fn default() -> LowIo {
        LowIo::new()
    }
}

impl Drop for LowIo {
    fn drop(&mut self) {
        set(self.before.max(0));
    }
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
            unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) }
        };
        let before = now();
        let low = LowIo::new();
        let inside = std::thread::spawn(move || {
            // SAFETY: integers only.
            unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) }
        });
        let expected = libc::c_long::from(BEST_EFFORT << CLASS_SHIFT | LAST);
        assert_eq!((now(), inside.join().unwrap_or(-1)), (expected, expected));
        drop(low);
        assert_eq!(now(), before);
    }
}
