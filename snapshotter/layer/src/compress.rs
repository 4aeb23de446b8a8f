//! A compressed stream out of plain bytes.

use std::io::{self, Write};

use gantry_types::media_type::Compression;

/// Compresses what is written to it. The output depends on nothing but the input: no time, no name, nor the sizes of the
/// pieces in which the input comes.
pub struct Compressor<W: Write>(Inner<W>);

enum Inner<W: Write> {
    None(W),
    Gzip(Steady<flate2::write::GzEncoder<W>>),
    Zstd(Steady<zstd::Encoder<'static, W>>),
}

impl<W: Write> Compressor<W> {
    /// Writes to `out`, compressed as said (gzip level 6, zstd level 3 with a checksum).
    pub fn new(out: W, compression: Compression) -> io::Result<Compressor<W>> {
        Ok(Compressor(match compression {
            Compression::None => Inner::None(out),
            Compression::Gzip => {
                Inner::Gzip(Steady::new(flate2::GzBuilder::new().write(out, flate2::Compression::new(6))))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Inner::Zstd(Steady::new(encoder))
            }
        }))
    }

    /// The writer behind; what it got so far may be taken away.
    pub fn get_mut(&mut self) -> &mut W {
        match &mut self.0 {
            Inner::None(out) => out,
            Inner::Gzip(encoder) => encoder.out.get_mut(),
            Inner::Zstd(encoder) => encoder.out.get_mut(),
        }
    }

    /// Writes what is left and the trailer, and gives the writer back. Without this call the stream is cut short.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::None(out) => Ok(out),
            Inner::Gzip(encoder) => encoder.end()?.finish(),
            Inner::Zstd(encoder) => encoder.end()?.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(out) => out.write(bytes),
            Inner::Gzip(encoder) => encoder.write(bytes),
            Inner::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::None(out) => out.flush(),
            Inner::Gzip(encoder) => encoder.flush(),
            Inner::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Size of the pieces that encoders get.
const PIECE: usize = 64 << 10;

/// Hands bytes on in pieces of one size whatever the sizes in which they come: what an encoder makes of the same bytes
/// may depend on how they were cut.
pub(crate) struct Steady<W: Write> {
    out: W,
    gathered: Vec<u8>,
}

impl<W: Write> Steady<W> {
    pub(crate) fn new(out: W) -> Steady<W> {
        Steady { out, gathered: Vec::with_capacity(PIECE) }
    }

    /// Hands on what is left, and gives the writer back.
    pub(crate) fn end(mut self) -> io::Result<W> {
        self.out.write_all(&self.gathered)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Steady<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..length]);
        if self.gathered.len() == PIECE {
            self.out.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        Ok(length)
    }

    /// Only what was handed on: a flush in the middle would be a cut.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_give_the_same_stream_however_they_are_cut() {
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 25) as u8 & 31).collect();
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let made = |piece: usize| {
                let mut out = Compressor::new(Vec::new(), compression).unwrap();
                bytes.chunks(piece).for_each(|piece| out.write_all(piece).unwrap());
                out.finish().unwrap()
            };
            let whole = made(bytes.len());
            for piece in [7, 512, 65_535, 65_537, 300_000] {
                assert!(made(piece) == whole, "{compression:?} in pieces of {piece}");
            }
        }
    }
}
