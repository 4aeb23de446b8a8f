//! Unpacking a compressed layer: decompress, hash and apply beside each other.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use gantry_types::{Algorithm, Digest, Hasher};

use crate::apply::{Process, apply_buffered};
use crate::confine::{Reach, confine};
use crate::erofs::image_buffered;
use crate::spare::processors;
use crate::{Applied, ApplyError, Compression, Decompressor, Helpers, Limit, Limits, Options, Reason};

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// What was applied.
    pub applied: Applied,
    /// SHA-256 of the uncompressed tar (OCI image-spec, config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Compressed bytes read.
    pub compressed_bytes: u64,
    /// With [`Options::standalone`]: directories that the layer uses without describing them, below the root, those
    /// above first. Once the layers below are there, they are to be [`dress`](crate::dress)ed.
    pub undescribed: Vec<PathBuf>,
}

/// Decompresses `layer`, computes its diff ID and applies it to the directory `root`, all at once: decompressing,
/// hashing and applying have a thread of their own each. Without a given compression the first
/// bytes tell. Reads `layer` to its end. At most half a mebibyte waits between the threads.
///
/// The threads are confined as far as the kernel can ([`confine`](crate::confine)): `layer` is read where no file can be
/// opened, and what applies it reaches nothing but `root`, the lower directories and the list of files.
///
/// A long gzip layer is inflated by more threads where processors are spare ([`Options::helpers`]), which are confined as
/// the one that reads it is, and take memory of their own ([`Decompressor::helped`]).
///
/// Returns only when no thread reads `layer` any more: whoever gives it sees to it that a read ends.
pub fn unpack<R: Read + Send>(
    layer: R,
    compression: Option<Compression>,
    root: &Path,
    options: &Options,
) -> Result<Unpacked, ApplyError> {
    let process = Process::current(options.unprivileged);
    let reach = Reach { root: Some(root), read: &options.parents, file: options.sums.as_deref() };
    if let Some(sums) = &options.sums {
        let failed = |source| ApplyError::at(b"", Reason::Io { call: "make the list of files", source });
        File::create(sums).map_err(failed)?;
    }
    pipeline(layer, compression, options, reach, |tar| apply_buffered(tar, root, options, process))
}

/// As [`unpack`], but the layer becomes an EROFS image in the empty file `image` ([`crate::image_of_tar`]).
pub fn unpack_to_image<R: Read + Send>(
    layer: R,
    compression: Option<Compression>,
    image: &File,
    options: &Options,
) -> Result<Unpacked, ApplyError> {
    let reach = Reach { root: None, read: &options.parents, file: None };
    let no_directories = |applied| (applied, Vec::new());
    pipeline(layer, compression, options, reach, |tar| image_buffered(tar, image, options).map(no_directories))
}

fn pipeline<R: Read + Send>(
    layer: R,
    compression: Option<Compression>,
    options: &Options,
    reach: Reach<'_>,
    take: impl FnOnce(Chunks) -> Result<(Applied, Vec<PathBuf>), ApplyError> + Send,
) -> Result<Unpacked, ApplyError> {
    // While files can be opened.
    processors();
    let compressed = AtomicU64::new(0);
    let counted = Counted { layer, count: &compressed };
    let (pool, free) = channel();
    let (to_hash, hashed) = sync_channel(WAITING);
    let (to_apply, applied) = sync_channel(WAITING);
    let (applied, diff_id) = thread::scope(|scope| {
        let hash = {
            let pool = pool.clone();
            scope.spawn(move || {
                confine(Reach::default());
                hash(hashed, pool)
            })
        };
        let outlets = Outlets { to_hash, to_apply, free, helpers: options.helpers };
        let (limits, compressed) = (&options.limits, &compressed);
        scope.spawn(move || {
            confine(Reach::default());
            outlets.feed(counted, compression, limits, compressed);
        });
        let applying = scope.spawn(move || {
            confine(reach);
            take(Chunks { incoming: applied, current: None, pool })
        });
        (applying.join(), hash.join())
    });
    let failed = |_| ApplyError::at(b"", Reason::Read(io::Error::other("a thread of the unpacker panicked")));
    let (applied, undescribed) = applied.map_err(failed)??;
    Ok(Unpacked {
        applied,
        undescribed,
        diff_id: diff_id.map_err(failed)?,
        compressed_bytes: compressed.load(Ordering::Relaxed),
    })
}

/// Size of a chunk of tar, and how many of them may wait for each thread.
const CHUNK: usize = 128 << 10;
const WAITING: usize = 2;
/// A layer may always have so many bytes, whatever its ratio.
const RATIO_FREE: u64 = 256 << 20;

/// A piece of tar, shared by those who hash and apply it.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
}

/// Counts the bytes that are read.
struct Counted<'a, R> {
    layer: R,
    count: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.layer.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Where the decompressing thread puts chunks, and where it gets buffers back.
struct Outlets {
    to_hash: SyncSender<Arc<Chunk>>,
    to_apply: SyncSender<Result<Arc<Chunk>, Reason>>,
    free: Receiver<Vec<u8>>,
    helpers: Helpers,
}

impl Outlets {
    fn feed<R: Read>(&self, layer: R, compression: Option<Compression>, limits: &Limits, compressed: &AtomicU64) {
        if let Err(reason) = self.try_feed(layer, compression, limits, compressed) {
            // If nobody listens any more, applying has failed for its own reason.
            let _ = self.to_apply.send(Err(reason));
        }
    }

    fn try_feed<R: Read>(
        &self,
        layer: R,
        compression: Option<Compression>,
        limits: &Limits,
        compressed: &AtomicU64,
    ) -> Result<(), Reason> {
        let tar = match compression {
            Some(compression) => Decompressor::new(layer, compression),
            None => Decompressor::detect(layer),
        };
        let mut tar = tar.map_err(Reason::Read)?.helped(self.helpers);
        let mut total = 0;
        loop {
            let mut buffer = self.free.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
            let length = fill(&mut tar, &mut buffer).map_err(Reason::Read)?;
            if length == 0 {
                return Ok(());
            }
            total += length as u64;
            check_ratio(total, compressed.load(Ordering::Relaxed), limits)?;
            let chunk = Arc::new(Chunk { buffer, length });
            if self.to_hash.send(Arc::clone(&chunk)).is_err() || self.to_apply.send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
    }
}

fn check_ratio(total: u64, compressed: u64, limits: &Limits) -> Result<(), Reason> {
    if total > RATIO_FREE && total / compressed.max(1) > limits.ratio {
        return Err(Reason::Limit { limit: Limit::Ratio, max: limits.ratio });
    }
    Ok(())
}

/// Reads until `buffer` is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn hash(chunks: Receiver<Arc<Chunk>>, pool: Sender<Vec<u8>>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for chunk in chunks {
        hasher.update(&chunk.buffer[..chunk.length]);
        recycle(chunk, &pool);
    }
    hasher.finish()
}

/// Gives the buffer back if nobody else needs it any more.
fn recycle(chunk: Arc<Chunk>, pool: &Sender<Vec<u8>>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        let _ = pool.send(chunk.buffer);
    }
}

/// Chunks as one stream.
struct Chunks {
    incoming: Receiver<Result<Arc<Chunk>, Reason>>,
    /// The chunk being read, and how far.
    current: Option<(Arc<Chunk>, usize)>,
    pool: Sender<Vec<u8>>,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_none() {
            self.current = match self.incoming.recv() {
                Ok(chunk) => Some((chunk.map_err(Reason::into_io)?, 0)),
                Err(_) => None,
            };
        }
        Ok(self.current.as_ref().map_or(&[], |(chunk, position)| &chunk.buffer[*position..chunk.length]))
    }

    fn consume(&mut self, amount: usize) {
        if let Some((chunk, position)) = &mut self.current {
            *position += amount;
            if *position >= chunk.length
                && let Some((chunk, _)) = self.current.take()
            {
                recycle(chunk, &self.pool);
            }
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A layer whose reading is a trap: each read tries to get at a file outside.
    struct Trap<'a> {
        outside: &'a Path,
        caught: &'a AtomicBool,
    }

    impl Read for Trap<'_> {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.caught.store(fs::read(self.outside).is_err(), Ordering::SeqCst);
            Ok(0)
        }
    }

    #[test]
    fn neither_who_reads_nor_who_applies_a_layer_gets_out_of_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let (root, outside) = (outer.path().join("root"), outer.path().join("secret"));
        fs::create_dir(&root).unwrap();
        fs::write(&outside, "secret").unwrap();
        let (caught, options) = (AtomicBool::new(false), Options::default());
        let trap = Trap { outside: &outside, caught: &caught };
        let reach = Reach { root: Some(&root), ..Reach::default() };
        let planted = |_: Chunks| {
            let tried =
                [fs::write(&outside, "mine"), fs::write(root.join("../new"), ""), fs::write(root.join("in"), "")];
            assert_eq!(tried.map(|tried| tried.is_ok()), [false, false, true]);
            Ok((Applied::default(), Vec::new()))
        };
        pipeline(trap, Some(Compression::None), &options, reach, planted).unwrap();
        assert!(caught.load(Ordering::SeqCst));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
        assert!(!outer.path().join("new").exists() && root.join("in").exists());
    }
}
