//! A compressed stream out of plain bytes.

use std::io::{self, Write};

use gantry_types::media_type::Compression;

/// Compresses what is written to it. The output depends on nothing but the input: no time, no name.
pub struct Compressor<W: Write>(Inner<W>);

enum Inner<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// Writes to `out`, compressed as said (gzip level 6, zstd level 3 with a checksum).
    pub fn new(out: W, compression: Compression) -> io::Result<Compressor<W>> {
        Ok(Compressor(match compression {
            Compression::None => Inner::None(out),
            Compression::Gzip => Inner::Gzip(flate2::GzBuilder::new().write(out, flate2::Compression::new(6))),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Inner::Zstd(encoder)
            }
        }))
    }

    /// The writer behind; what it got so far may be taken away.
    pub fn get_mut(&mut self) -> &mut W {
        match &mut self.0 {
            Inner::None(out) => out,
            Inner::Gzip(encoder) => encoder.get_mut(),
            Inner::Zstd(encoder) => encoder.get_mut(),
        }
    }

    /// Writes what is left and the trailer, and gives the writer back. Without this call the stream is cut short.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::None(out) => Ok(out),
            Inner::Gzip(encoder) => encoder.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
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
