//! Processors that nobody else needs, counted for all layers of the process together: helpers that inflate have one each.

use std::num::NonZero;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A layer's own: what hashes and what applies it.
const NEEDED: usize = 2;
/// With fewer helpers a layer is not faster: the thread that reads it waits for them.
const LEAST: usize = 2;
/// With more than these inflating is no longer what a layer waits for, and each takes memory.
const MOST: usize = 3;

/// Processors to be taken and given back.
pub(crate) struct Spare {
    free: AtomicUsize,
}

static SPARE: LazyLock<Spare> =
    LazyLock::new(|| Spare::of(thread::available_parallelism().map_or(1, NonZero::<usize>::get)));

/// Those of this process. They are counted when this is first asked, which a thread that may not open files anymore
/// cannot do: the quota of its control group is in one.
pub(crate) fn processors() -> &'static Spare {
    &SPARE
}

impl Spare {
    fn of(processors: usize) -> Spare {
        Spare { free: AtomicUsize::new(processors.saturating_sub(NEEDED).min(MOST)) }
    }

    /// Takes all that are free, if that is worth it.
    pub(crate) fn take(&'static self) -> Option<Taken> {
        let enough = |free| (free >= LEAST).then_some(0);
        let count = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, enough).ok()?;
        Some(Taken { count, of: self })
    }
}

/// Gives back what was taken when it goes.
pub(crate) struct Taken {
    pub(crate) count: usize,
    of: &'static Spare,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.free.fetch_add(self.count, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spare_is_taken_once_and_given_back() {
        let some = |processors| Box::leak(Box::new(Spare::of(processors))) as &'static Spare;
        for (processors, spare) in [(1, None), (2, None), (3, None), (4, Some(2)), (6, Some(3)), (64, Some(3))] {
            let all = some(processors);
            for _ in 0..2 {
                let taken = all.take();
                assert_eq!(taken.as_ref().map(|taken| taken.count), spare, "{processors}");
                assert!(all.take().is_none());
            }
        }
    }
}
