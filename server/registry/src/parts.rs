//! The parts of a big blob, put together in order within a limit on memory that all blobs share.
//!
//! ```text
//! part 0   ━━━━━━━▶ to the reader as it comes          needs no room: what is not read stays with the sender
//! part 1   ━━━━▶ gathered, in its room of the window
//! part 2   ━━▶ gathered, in its room of the window
//! part 3   not asked for: the window is full
//! ```
//!
//! Nobody waits for room: a part without any is fetched when it is the first. So a blob whose reader stands still keeps
//! what it has, and no other blob from going on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;

type Pieces = BoxStream<'static, Result<Bytes, Error>>;

/// Room for parts that come before their turn.
#[derive(Clone, Debug)]
pub(crate) struct Window(Arc<Semaphore>);

/// What room is counted in.
const UNIT: u64 = 1 << 10;

impl Window {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: u64) -> Window {
        let units = usize::try_from(bytes / UNIT).unwrap_or(Semaphore::MAX_PERMITS);
        Window(Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))))
    }

    /// Room for so many bytes, if there is so much now.
    fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(units).ok()
    }
}

/// A part that is being fetched, and what of it has come before its turn.
struct Part {
    pieces: Pieces,
    gathered: VecDeque<Result<Bytes, Error>>,
    ended: bool,
    /// What is gathered has its room here; the first part of a blob gathers nothing.
    _room: Option<OwnedSemaphorePermit>,
}

impl Part {
    fn new(pieces: Pieces, room: Option<OwnedSemaphorePermit>) -> Part {
        Part { pieces, gathered: VecDeque::new(), ended: false, _room: room }
    }

    /// Takes all that has come.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while !self.ended {
            match self.pieces.poll_next_unpin(cx) {
                Poll::Ready(Some(piece)) => {
                    self.ended = piece.is_err();
                    self.gathered.push_back(piece);
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        match self.gathered.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None if self.ended => Poll::Ready(None),
            None => self.pieces.poll_next_unpin(cx),
        }
    }
}

/// The pieces of all parts in their order. After an error nothing follows.
pub(crate) struct Parts<I> {
    /// The one whose turn it is, and those that come meanwhile.
    open: VecDeque<Part>,
    /// Those that were not asked for yet; none after an error.
    rest: Option<I>,
    /// How many may come before their turn.
    ahead: usize,
    /// The most bytes of a part.
    chunk: u64,
    window: Window,
}

impl<I: Iterator<Item = Pieces> + Unpin> Parts<I> {
    pub(crate) fn new(first: Pieces, rest: I, ahead: usize, chunk: u64, window: Window) -> Parts<I> {
        Parts { open: VecDeque::from([Part::new(first, None)]), rest: Some(rest), ahead, chunk, window }
    }

    /// Asks for further parts, as many as there is room for; for the next in any case where it is its turn.
    fn open_more(&mut self) {
        while self.open.len() <= self.ahead {
            let room = self.window.room(self.chunk);
            if room.is_none() && !self.open.is_empty() {
                return;
            }
            let Some(pieces) = self.rest.as_mut().and_then(Iterator::next) else { return };
            let room = room.filter(|_| !self.open.is_empty());
            self.open.push_back(Part::new(pieces, room));
        }
    }
}

impl<I: Iterator<Item = Pieces> + Unpin> Stream for Parts<I> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.open_more();
            let mut open = self.open.iter_mut();
            let Some(first) = open.next() else { return Poll::Ready(None) };
            let next = first.next(cx);
            match next {
                Poll::Ready(None) => drop(self.open.pop_front()),
                Poll::Ready(Some(Err(error))) => {
                    (self.rest, self.open) = (None, VecDeque::new());
                    return Poll::Ready(Some(Err(error)));
                }
                next => {
                    open.for_each(|part| part.gather(cx));
                    return next;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
    use std::task::Waker;

    use futures::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::{Reason, Stage};

    /// A blob of parts whose every byte says which part it is of; counts what is out of them.
    fn blob(parts: u8, pieces: usize, window: &Window, out: &Arc<AtomicI64>) -> impl Stream<Item = usize> + Unpin {
        let part = move |number: u8| -> (u8, usize) { (number, pieces) };
        let counted = |out: Arc<AtomicI64>| {
            move |(number, pieces): (u8, usize)| {
                let out = Arc::clone(&out);
                let piece = move |_| {
                    out.fetch_add(1024, Ordering::SeqCst);
                    Ok(Bytes::from(vec![number; 1024]))
                };
                stream::iter(0..pieces).map(piece).boxed()
            }
        };
        let (first, rest) = (counted(Arc::clone(out))(part(0)), (1..parts).map(part).map(counted(Arc::clone(out))));
        let out = Arc::clone(out);
        Parts::new(first, rest, 2, 1024 * pieces as u64, window.clone()).map(move |piece| {
            let piece = piece.unwrap();
            out.fetch_sub(piece.len() as i64, Ordering::SeqCst);
            usize::from(piece[0])
        })
    }

    proptest! {
        #[test]
        fn no_more_than_the_window_is_held_and_every_blob_comes_whole_whoever_stands_still(
            room in 0_u64..24,
            shapes in prop::collection::vec((1_u8..7, 1_usize..5), 1..6),
            turns in prop::collection::vec(0_usize..6, 0..80),
        ) {
            let (window, out) = (Window::new(room * 1024), Arc::new(AtomicI64::new(0)));
            let mut cx = Context::from_waker(Waker::noop());
            let mut blobs: Vec<_> = shapes.iter().map(|(parts, pieces)| blob(*parts, *pieces, &window, &out)).collect();
            let mut received = vec![Vec::new(); blobs.len()];
            // Readers at random, then each to its end while the others stand still.
            let to_the_end = (0..blobs.len()).flat_map(|blob| [blob; 32]);
            for turn in turns.into_iter().filter(|turn| *turn < shapes.len()).chain(to_the_end) {
                if let Poll::Ready(Some(part)) = blobs[turn].poll_next_unpin(&mut cx) {
                    received[turn].push(part);
                }
                let held = out.load(Ordering::SeqCst);
                prop_assert!((0..=room as i64 * 1024).contains(&held), "{held} bytes are held");
            }
            for (received, (parts, pieces)) in received.iter().zip(shapes) {
                let expected: Vec<usize> = (0..usize::from(parts)).flat_map(|part| vec![part; pieces]).collect();
                prop_assert_eq!(received, &expected);
            }
            drop(blobs);
            prop_assert_eq!(window.0.available_permits() as u64, room);
        }
    }

    #[tokio::test]
    async fn after_an_error_nothing_follows_and_no_further_part_is_asked_for() {
        let window = Window::new(1 << 20);
        let asked = Arc::new(AtomicUsize::new(0));
        let rest = {
            let asked = Arc::clone(&asked);
            (0..10).map(move |_| {
                asked.fetch_add(1, Ordering::SeqCst);
                stream::iter([Ok(Bytes::from_static(b"x"))]).boxed()
            })
        };
        let error = Error::new("a", "", Stage::FetchBlob, Reason::Request("broken"));
        let mut parts = Parts::new(stream::iter([Err(error)]).boxed(), rest, 2, 1024, window.clone());
        assert!(parts.next().await.unwrap().is_err());
        assert!(parts.next().await.is_none());
        assert!(asked.load(Ordering::SeqCst) <= 2);
        assert_eq!(window.0.available_permits(), 1024);
    }
}
