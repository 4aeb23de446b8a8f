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
//!
//! Parts beside each other help where the reader waits for the sender. Where it does not, each further request is
//! nothing but work for both: then parts become long, and come one behind the other.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

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

/// Bytes of a part, where the reader does not wait for the sender.
const LONGEST: u64 = 32 << 20;
/// So many bytes before the end of a long part the next is asked for, so that its answer is there in time.
const SOON: u64 = 2 << 20;

/// A part that is being fetched, and what of it has come before its turn.
struct Part {
    pieces: Pieces,
    /// Bytes that the reader has not got yet.
    left: u64,
    gathered: VecDeque<Result<Bytes, Error>>,
    ended: bool,
    /// What is gathered has its room here. Without any it is one piece at most.
    room: Option<OwnedSemaphorePermit>,
}

impl Part {
    fn new(pieces: Pieces, length: u64, room: Option<OwnedSemaphorePermit>) -> Part {
        Part { pieces, left: length, gathered: VecDeque::new(), ended: false, room }
    }

    /// Takes all that has come and that there is room for.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while !self.ended && (self.room.is_some() || self.gathered.is_empty()) {
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
        let next = match self.gathered.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None if self.ended => Poll::Ready(None),
            None => self.pieces.poll_next_unpin(cx),
        };
        if let Poll::Ready(Some(Ok(piece))) = &next {
            self.left = self.left.saturating_sub(piece.len() as u64);
        }
        next
    }
}

/// Who waits for whom: the reader for bytes, or bytes for the reader. Parts that came beside one that was waited for are
/// there when their turn comes, so that this is judged over as many bytes as come beside each other.
struct Haste {
    since: Instant,
    read: u64,
    /// Since when the reader waits.
    waiting: Option<Instant>,
    waited: Duration,
}

impl Haste {
    fn new() -> Haste {
        Haste { since: Instant::now(), read: 0, waiting: None, waited: Duration::ZERO }
    }

    fn waits(&mut self) {
        self.waiting.get_or_insert_with(Instant::now);
    }

    fn goes_on(&mut self, read: usize) {
        self.read += read as u64;
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }

    /// Whether the reader has waited for more than half of the time; none before it has read `enough`.
    fn is_short_of_bytes(&mut self, enough: u64) -> Option<bool> {
        (self.read >= enough).then(|| {
            let Haste { since, waited, .. } = std::mem::replace(self, Haste::new());
            waited * 2 > since.elapsed()
        })
    }
}

/// The pieces of all parts in their order. After an error nothing follows.
pub(crate) struct Parts<F> {
    /// The one whose turn it is, and those that come meanwhile.
    open: VecDeque<Part>,
    /// What was not asked for yet; nothing after an error.
    rest: Range<u64>,
    /// Asks for a part.
    ask: F,
    /// How many may come before their turn.
    ahead: usize,
    /// Bytes of parts that come beside each other.
    chunk: u64,
    /// Bytes of the next part.
    length: u64,
    haste: Haste,
    window: Window,
}

impl<F: FnMut(Range<u64>) -> Pieces> Parts<F> {
    /// `first` brings the first `chunk` bytes, `ask` any others of `rest`, what is behind them.
    pub(crate) fn new(first: Pieces, rest: Range<u64>, ask: F, ahead: usize, chunk: u64, window: Window) -> Parts<F> {
        let open = VecDeque::from([Part::new(first, chunk, None)]);
        Parts { open, rest, ask, ahead, chunk, length: chunk, haste: Haste::new(), window }
    }

    /// Asks for further parts: beside each other, as many as there is room for; a long one when the one before it is
    /// about to end; the next in any case where it is its turn.
    fn open_more(&mut self) {
        while !self.rest.is_empty() {
            let beside = self.length == self.chunk;
            let room = match self.open.len() {
                0 => None,
                open if beside && open <= self.ahead => match self.window.room(self.chunk) {
                    None => return,
                    room => room,
                },
                1 if !beside && self.open[0].left <= SOON => None,
                _ => return,
            };
            let part = self.rest.start..self.rest.end.min(self.rest.start.saturating_add(self.length));
            self.rest.start = part.end;
            let length = part.end - part.start;
            self.open.push_back(Part::new((self.ask)(part), length, room));
        }
    }

    /// Behind a part: whether those that follow are to come beside each other.
    fn judge(&mut self) {
        let beside_each_other = self.chunk.saturating_mul(self.ahead as u64 + 1);
        match self.haste.is_short_of_bytes(beside_each_other) {
            Some(true) => self.length = self.chunk,
            Some(false) => self.length = LONGEST.max(self.chunk),
            None => {}
        }
    }
}

impl<F: FnMut(Range<u64>) -> Pieces + Unpin> Stream for Parts<F> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.open_more();
            let Some(first) = self.open.front_mut() else { return Poll::Ready(None) };
            match first.next(cx) {
                Poll::Ready(None) => {
                    self.open.pop_front();
                    self.judge();
                }
                Poll::Ready(Some(Err(error))) => {
                    (self.rest, self.open) = (0..0, VecDeque::new());
                    return Poll::Ready(Some(Err(error)));
                }
                next => {
                    match &next {
                        Poll::Ready(Some(Ok(piece))) => self.haste.goes_on(piece.len()),
                        _ => self.haste.waits(),
                    }
                    self.open.iter_mut().skip(1).for_each(|part| part.gather(cx));
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

    const PIECE: u64 = 1024;

    /// A blob of so many pieces, each of which says where it lies; counts what is out of them.
    fn blob(pieces: u64, chunk: u64, window: &Window, out: &Arc<AtomicI64>) -> impl Stream<Item = u64> + Unpin + use<> {
        let ask = {
            let out = Arc::clone(out);
            move |part: Range<u64>| -> Pieces {
                let out = Arc::clone(&out);
                let piece = move |number: u64| {
                    out.fetch_add(PIECE as i64, Ordering::SeqCst);
                    Ok(Bytes::from(number.to_le_bytes().repeat(PIECE as usize / 8)))
                };
                stream::iter(part.start / PIECE..part.end / PIECE).map(piece).boxed()
            }
        };
        let (chunk, first, out) = (chunk * PIECE, ask.clone(), Arc::clone(out));
        let rest = chunk.min(pieces * PIECE)..pieces * PIECE;
        Parts::new(first(0..rest.start), rest, ask, 2, chunk, window.clone()).map(move |piece| {
            let piece = piece.unwrap();
            out.fetch_sub(piece.len() as i64, Ordering::SeqCst);
            u64::from_le_bytes(piece[..8].try_into().unwrap())
        })
    }

    proptest! {
        #[test]
        fn no_more_than_the_window_and_a_piece_is_held_and_every_blob_comes_whole_whoever_stands_still(
            room in 0_u64..24,
            shapes in prop::collection::vec((1_u64..30, 1_u64..5), 1..6),
            turns in prop::collection::vec(0_usize..6, 0..80),
        ) {
            let (window, out) = (Window::new(room * PIECE), Arc::new(AtomicI64::new(0)));
            let mut cx = Context::from_waker(Waker::noop());
            let mut blobs: Vec<_> = shapes.iter().map(|(pieces, chunk)| blob(*pieces, *chunk, &window, &out)).collect();
            let mut received = vec![Vec::new(); blobs.len()];
            // Readers at random, then each to its end while the others stand still.
            let to_the_end = (0..blobs.len()).flat_map(|blob| [blob; 32]);
            let most = (room as usize + blobs.len()) as i64 * PIECE as i64;
            for turn in turns.into_iter().filter(|turn| *turn < shapes.len()).chain(to_the_end) {
                if let Poll::Ready(Some(part)) = blobs[turn].poll_next_unpin(&mut cx) {
                    received[turn].push(part);
                }
                let held = out.load(Ordering::SeqCst);
                prop_assert!((0..=most).contains(&held), "{held} bytes are held");
            }
            for (received, (pieces, _)) in received.iter().zip(shapes) {
                prop_assert_eq!(received, &(0..pieces).collect::<Vec<_>>());
            }
            drop(blobs);
            prop_assert_eq!(window.0.available_permits() as u64, room);
        }
    }

    /// The parts that are asked for by a reader who finds each byte there, or who waits twice as long as it reads.
    async fn asked_for(waits: bool) -> Vec<Range<u64>> {
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let pieces = move |part: Range<u64>| -> Pieces {
            let left = (part.end - part.start) / (1 << 20);
            let piece = move |_| async move {
                if waits {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                Ok(Bytes::from(vec![0; 1 << 20]))
            };
            stream::iter(0..left).then(piece).boxed()
        };
        let ask = {
            let asked = Arc::clone(&asked);
            move |part: Range<u64>| {
                asked.lock().unwrap().push(part.clone());
                pieces(part)
            }
        };
        let (chunk, end) = (4 << 20, 100 << 20);
        let mut parts = Parts::new(pieces(0..chunk), chunk..end, ask, 2, chunk, Window::new(8 << 20));
        let mut read = 0;
        while let Some(piece) = parts.next().await {
            read += piece.unwrap().len() as u64;
            if !waits {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        assert_eq!(read, end);
        asked.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn who_waits_gets_parts_beside_each_other_and_who_does_not_gets_long_ones() {
        let lengths = |parts: &[Range<u64>]| parts.iter().map(|part| (part.end - part.start) >> 20).collect::<Vec<_>>();
        assert_eq!(lengths(&asked_for(true).await), [4; 24]);
        let long = asked_for(false).await;
        // The first three tell; one more had been asked for by then.
        assert_eq!(lengths(&long), [4, 4, 4, 32, 32, 20], "{long:?}");
    }

    #[tokio::test]
    async fn after_an_error_nothing_follows_and_no_further_part_is_asked_for() {
        let window = Window::new(1 << 20);
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = {
            let asked = Arc::clone(&asked);
            move |_| -> Pieces {
                asked.fetch_add(1, Ordering::SeqCst);
                stream::iter([Ok(Bytes::from_static(b"x"))]).boxed()
            }
        };
        let error = Error::new("a", "", Stage::FetchBlob, Reason::Request("broken"));
        let first = stream::iter([Err(error)]).boxed();
        let mut parts = Parts::new(first, 1024..10 * 1024, ask, 2, 1024, window.clone());
        assert!(parts.next().await.unwrap().is_err());
        assert!(parts.next().await.is_none());
        assert!(asked.load(Ordering::SeqCst) <= 2);
        assert_eq!(window.0.available_permits(), 1024);
    }
}
