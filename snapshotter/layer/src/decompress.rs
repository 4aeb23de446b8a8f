//! Plain bytes out of a compressed stream.

use std::io::{self, BufRead, BufReader, Read};

use gantry_types::media_type::Compression;

use crate::gunzip::Gunzip;

/// The compression that a stream starting with `head` (at least four bytes, unless the stream is shorter) has.
pub fn compression_of(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Who inflates a gzip stream beside the thread that reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Helpers {
    /// A thread for each processor that is spare, if there are two and the stream is long (8 MiB compressed).
    #[default]
    Spare,
    /// So many threads, from the beginning.
    Exactly(usize),
}

const BUFFER: usize = 256 << 10;

/// Reads the plain bytes of a gzip (all members), zstd (all frames) or plain stream.
///
/// A stream that ends early is an [`io::ErrorKind::UnexpectedEof`]. One thread does it all, unless
/// [helpers](Decompressor::helped) are let in.
pub struct Decompressor<R: Read>(Inner<R>);

enum Inner<R: Read> {
    None(BufReader<R>),
    Gzip(Box<Gunzip<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decompressor<R> {
    /// Reads `stream`, which is compressed as said.
    pub fn new(stream: R, compression: Compression) -> io::Result<Decompressor<R>> {
        Self::buffered(BufReader::with_capacity(BUFFER, stream), compression)
    }

    /// Reads `stream`, whose first bytes tell the compression.
    pub fn detect(stream: R) -> io::Result<Decompressor<R>> {
        let mut stream = BufReader::with_capacity(BUFFER, stream);
        let compression = compression_of(stream.fill_buf()?);
        Self::buffered(stream, compression)
    }

    fn buffered(stream: BufReader<R>, compression: Compression) -> io::Result<Decompressor<R>> {
        Ok(Decompressor(match compression {
            Compression::None => Inner::None(stream),
            Compression::Gzip => Inner::Gzip(Box::new(Gunzip::new(stream, Helpers::Exactly(0)))),
            Compression::Zstd => Inner::Zstd(zstd::Decoder::with_buffer(stream)?),
        }))
    }

    /// Lets helpers in, before anything is read. Each takes up to 5 MiB of memory (three more such pieces wait or are
    /// handed out), and some mebibytes are read ahead of what comes out.
    pub fn helped(mut self, helpers: Helpers) -> Decompressor<R> {
        if let Inner::Gzip(decoder) = &mut self.0 {
            decoder.let_in(helpers);
        }
        self
    }

    /// The compression that was given or found.
    pub fn compression(&self) -> Compression {
        match self.0 {
            Inner::None(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }

    /// The compressed stream.
    pub fn get_ref(&self) -> &R {
        match &self.0 {
            Inner::None(stream) => stream.get_ref(),
            Inner::Gzip(decoder) => decoder.get_ref().get_ref(),
            Inner::Zstd(decoder) => decoder.get_ref().get_ref(),
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(stream) => stream.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
