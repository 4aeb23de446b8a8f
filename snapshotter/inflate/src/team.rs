//! Threads that decode pieces of a stream which is read ahead of them.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::decoder::Decoder;
use crate::piece::{Job, Outputs, Piece};

/// What is read ahead, and who works on it. Its memory: a chunk and the [limit of a piece](crate::piece::LIMIT) for each
/// helper and three more.
pub(crate) struct Team {
    /// Nothing once they are to end.
    jobs: Option<Sender<Work>>,
    helpers: Vec<JoinHandle<()>>,
    /// The size of a chunk.
    size: usize,
    /// What is read and not used up; of the first, so much is used.
    chunks: VecDeque<Arc<Vec<u8>>>,
    used: usize,
    /// The first byte that is not read.
    read: u64,
    /// There is no more, or an error comes next.
    end: Option<Result<(), io::Error>>,
    /// Those of all chunks but the last, whose blocks end in what is not read.
    pieces: VecDeque<Asked>,
    /// Chunks and outputs to be used again.
    free: Vec<Arc<Vec<u8>>>,
    outputs: Vec<Outputs>,
}

type Answer = Result<Piece, Outputs>;
type Work = (Job, SyncSender<Answer>);

/// A piece that a helper is asked for.
struct Asked {
    /// The first bit of its chunk.
    base: u64,
    answer: Receiver<Answer>,
    /// It has come.
    piece: Option<Piece>,
}

impl Team {
    /// Starts helpers, who do with chunks of `size` bytes (at least one). `position` is that of the next byte of the
    /// stream. Nothing if no thread can be started.
    ///
    /// They are threads of the calling thread, so that they are confined as it is.
    pub(crate) fn start(helpers: usize, size: usize, position: u64) -> Option<Team> {
        let (jobs, incoming) = channel();
        let incoming = Arc::new(Mutex::new(incoming));
        let spawn = |_| {
            let incoming = Arc::clone(&incoming);
            thread::Builder::new().name("inflate".to_owned()).spawn(move || help(&incoming)).ok()
        };
        let helpers: Vec<_> = (0..helpers).map_while(spawn).collect();
        (!helpers.is_empty()).then(|| Team {
            jobs: Some(jobs),
            helpers,
            size: size.max(1),
            chunks: VecDeque::new(),
            used: 0,
            read: position,
            end: None,
            pieces: VecDeque::new(),
            free: Vec::new(),
            outputs: Vec::new(),
        })
    }

    /// What of the first chunk is not used; nothing at the end of the stream.
    pub(crate) fn fill_buf(&mut self, stream: &mut impl BufRead) -> io::Result<&[u8]> {
        self.ahead(stream);
        if self.chunks.is_empty() && matches!(self.end, Some(Err(_))) {
            return self.end.replace(Ok(())).unwrap_or(Ok(())).map(|()| &[][..]);
        }
        Ok(self.chunks.front().map_or(&[], |first| &first[self.used..]))
    }

    /// Uses bytes of what there is.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.used += amount;
        while let Some(first) = self.chunks.front()
            && self.used > first.len()
        {
            self.used -= first.len();
            self.free.extend(self.chunks.pop_front());
        }
    }

    /// The last byte that was used.
    pub(crate) fn last(&self) -> u8 {
        let first = self.chunks.front();
        first.and_then(|first| first.get(self.used.checked_sub(1)?)).copied().unwrap_or(0)
    }

    /// Reads until there is a chunk for each helper, one in use and one behind, and has them worked on.
    pub(crate) fn ahead(&mut self, stream: &mut impl BufRead) {
        while let Some(first) = self.chunks.front()
            && self.used == first.len()
        {
            self.used = 0;
            self.free.extend(self.chunks.pop_front());
        }
        while self.end.is_none() && self.chunks.len() < self.helpers.len() + 2 {
            let mut chunk = self.free.pop().and_then(|chunk| Arc::try_unwrap(chunk).ok()).unwrap_or_default();
            chunk.clear();
            self.end = match fill(stream, &mut chunk, self.size) {
                Ok(true) => None,
                Ok(false) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            };
            if !chunk.is_empty() {
                let next = Arc::new(chunk);
                if let Some(last) = self.chunks.back().cloned() {
                    self.ask(last, &next);
                }
                self.read += next.len() as u64;
                self.chunks.push_back(next);
            }
        }
    }

    /// Asks for a piece of `bytes`, the last that was read before `next`.
    fn ask(&mut self, bytes: Arc<Vec<u8>>, next: &Arc<Vec<u8>>) {
        let Some(jobs) = &self.jobs else { return };
        let (reply, answer) = sync_channel(1);
        let outputs = self.outputs.pop().unwrap_or_else(Outputs::new);
        let base = 8 * (self.read - bytes.len() as u64);
        let job = Job { bytes, next: Arc::clone(next), base, outputs };
        // They end only when this does.
        if jobs.send((job, reply)).is_ok() {
            self.pieces.push_back(Asked { base, answer, piece: None });
        }
    }

    /// The piece that begins with the bit `place`, if there is one. Waits for who may be about to find it.
    pub(crate) fn piece(&mut self, place: u64) -> Option<Piece> {
        while let Some(asked) = self.pieces.front_mut()
            && asked.base <= place
        {
            if asked.piece.is_none() {
                match asked.answer.recv() {
                    Ok(Ok(piece)) => asked.piece = Some(piece),
                    Ok(Err(outputs)) => self.outputs.push(outputs),
                    // A helper that panicked has nothing for us.
                    Err(_) => {}
                }
            }
            match &asked.piece {
                Some(piece) if piece.start > place => return None,
                Some(piece) if piece.start == place => return self.pieces.pop_front()?.piece,
                _ => {}
            }
            let late = self.pieces.pop_front().and_then(|asked| asked.piece);
            self.outputs.extend(late.map(Piece::into_outputs));
        }
        None
    }

    /// Takes memory back.
    pub(crate) fn recycle(&mut self, piece: Piece) {
        self.outputs.push(piece.into_outputs());
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.jobs = None;
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

/// What a helper does until nobody has work any more.
fn help(incoming: &Mutex<Receiver<Work>>) {
    let mut decoder = Decoder::new();
    loop {
        // Nothing that holds the lock can panic.
        let work = incoming.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, reply)) = work else { return };
        let _ = reply.send(job.run(&mut decoder));
    }
}

/// Reads until `chunk` has `size` bytes (`true`) or the stream ends.
fn fill(stream: &mut impl BufRead, chunk: &mut Vec<u8>, size: usize) -> io::Result<bool> {
    while chunk.len() < size {
        let bytes = match stream.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let count = bytes.len().min(size - chunk.len());
        if count == 0 {
            return Ok(false);
        }
        chunk.extend_from_slice(&bytes[..count]);
        stream.consume(count);
    }
    Ok(true)
}
