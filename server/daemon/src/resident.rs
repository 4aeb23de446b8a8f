//! Memory that starting needed and serving does not, given back to the kernel.
//!
//! Two kinds of it stay with a process that nobody asks to let go. Of the program's own file the kernel has mapped what
//! starting ran through, and 64 KiB around each page of that: most of the proportional set size of a daemon that does
//! nothing. And what was allocated while the store was read, or in a burst of calls, stays free in the C library's arenas.
//! Text that is needed again comes back from the page cache by a minor fault.
//!
//! Least is left over where the threads share few arenas: a pull of many layers allocates on some twenty threads, and
//! each arena keeps what its threads needed most.
//!
//! All of the daemon's `unsafe` code: three calls of the C library.
#![allow(unsafe_code)]

use std::ops::Range;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// What is begun at the start is over by then.
const SETTLED: Duration = Duration::from_secs(1);

/// Between looks for memory that has become free.
const EVERY: Duration = Duration::from_secs(60);

/// Free memory that an arena keeps for what comes next is twice this, bytes. By default it begins at 128 KiB, and a
/// client's messages, a quarter of a mebibyte each, would come into pages that the kernel has to clear first. What
/// nothing came for, [`keep_small`] gives back.
const KEPT: usize = 4 << 20;

/// Has all threads share an arena for each processor, two to eight. To be called before there are threads.
pub fn share_arenas() {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let arenas = i32::try_from(processors.clamp(2, 8)).unwrap_or(2);
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers and has no conditions (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Gives back what the start needed, and from time to time what has become free, until `stopping`.
pub(crate) async fn keep_small(stopping: CancellationToken) {
    let (mut pause, mut work): (_, fn()) = (SETTLED, after_start);
    while stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let given = tokio::task::spawn_blocking(work).await;
        if let Err(error) = given {
            tracing::warn!(%error, "memory is not given back any more");
            return;
        }
        (pause, work) = (EVERY, trim);
    }
}

fn after_start() {
    // A mapped block of this size that becomes free is what the C library takes the measure from (mallopt(3),
    // M_MMAP_THRESHOLD), as the first pull would give it. Not before the database has its buffers: ten of half a mebibyte,
    // whose mapped pages are nowhere until they are written.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
    trim();
    drop_program_pages();
}

/// Gives back the pages of the heap that hold nothing.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and has no conditions (malloc_trim(3)); allocations of other threads wait meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the clean pages of the program's own file out of the process.
fn drop_program_pages() {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for range in clean(&smaps, &program.to_string_lossy()) {
        // SAFETY: the pages of the range are a file's, none was changed (no anonymous page, nothing swapped) and none
        // can be (it is not writable): the next touch brings each back as it is (MADV_DONTNEED, madvise(2)).
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// The mappings of a file in which all pages are the file's own and must stay so.
fn clean(smaps: &str, file: &str) -> Vec<Range<usize>> {
    let mut mappings: Vec<(Range<usize>, bool)> = Vec::new();
    for line in smaps.lines() {
        if let Some((range, is_candidate)) = mapping(line, file) {
            mappings.push((range, is_candidate));
        } else if let (Some((_, is_clean)), Some((name, size))) = (mappings.last_mut(), line.split_once(':')) {
            // Dirty pages may be the file's own: of a program that was installed a moment ago.
            let changed = matches!(name, "Anonymous" | "Swap");
            *is_clean &= !changed || size.trim() == "0 kB";
        }
    }
    mappings.into_iter().filter(|(_, is_clean)| *is_clean).map(|(range, _)| range).collect()
}

/// Where a mapping is, and whether it is one of the file that cannot be written to; none for other lines.
fn mapping(line: &str, file: &str) -> Option<(Range<usize>, bool)> {
    // START-END PERMISSIONS OFFSET DEVICE INODE          PATH (proc_pid_smaps(5))
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let permissions = fields.next()?;
    let path = fields.last().unwrap_or_default().trim_start();
    Some((range, matches!(permissions, "r--p" | "r-xp") && !file.is_empty() && path == file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0001000 r--p 00000000 fd:00 77                         /usr/bin/gantryd
Rss:                   4 kB
Private_Dirty:         4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me sd
55d0a0001000-55d0a0003000 r-xp 00001000 fd:00 77                         /usr/bin/gantryd
Anonymous:             0 kB
Swap:                  0 kB
55d0a0003000-55d0a0004000 r--p 00003000 fd:00 77                         /usr/bin/gantryd
Anonymous:             4 kB
Swap:                  0 kB
55d0a0004000-55d0a0005000 rw-p 00004000 fd:00 77                         /usr/bin/gantryd
Anonymous:             0 kB
55d0a0005000-55d0a0006000 r--p 00003000 fd:00 77                         /usr/bin/gantryd
Anonymous:             0 kB
Swap:                  4 kB
7f0000000000-7f0000001000 r-xp 00000000 fd:00 78                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000001000-7f0000002000 r--p 00000000 00:00 0
Anonymous:             0 kB
";

    #[test]
    fn only_what_the_file_can_give_again_is_dropped() {
        let expected = [0x55d0_a000_0000..0x55d0_a000_1000, 0x55d0_a000_1000..0x55d0_a000_3000];
        assert_eq!(clean(SMAPS, "/usr/bin/gantryd"), expected);
        assert!(clean(SMAPS, "").is_empty());
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        // What was relocated at the start (tables of functions) and what was not (texts) is as before.
        let shown: Box<dyn std::fmt::Display> = Box::new(42);
        let before = format!("{shown} {SMAPS}");
        after_start();
        assert_eq!(format!("{shown} {SMAPS}"), before);
        let resident = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(!clean(&resident, &std::fs::read_link("/proc/self/exe").unwrap().to_string_lossy()).is_empty());
    }
}
