//! Plain bytes out of gzip (RFC 1952): framing and checks are here, inflating is in a crate of its own. The checksum is
//! computed by the code that has the processor's instructions for it, an eighth of the time that inflating takes otherwise.

use std::io::{self, BufRead, ErrorKind, Read};

use crc32fast::Hasher;
use gantry_inflate::{CHUNK, Reader};

use crate::Helpers;
use crate::spare::{Taken, processors};

/// Reads all members of a stream, one behind the other.
pub(crate) struct Gunzip<R> {
    stream: Reader<R>,
    /// Who is to help, until that is seen to.
    helpers: Option<Helpers>,
    /// Dropped when the helpers have ended, with the stream.
    _taken: Option<Taken>,
    /// Of the plain bytes of this member.
    sum: Hasher,
    /// How many they are, modulo 2³².
    length: u32,
    state: State,
}

/// A stream of so many compressed bytes is worth helpers.
const LARGE: u64 = 8 << 20;

enum State {
    /// Before a member; at the first, the stream must not end.
    Between {
        first: bool,
    },
    Inside,
    Ended,
}

/// Flags of a member's header (RFC 1952, 2.3.1).
const HAS_HEADER_SUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;

impl<R: BufRead> Gunzip<R> {
    pub(crate) fn new(stream: R, helpers: Helpers) -> Gunzip<R> {
        let state = State::Between { first: true };
        let (stream, helpers) = (Reader::new(stream), Some(helpers));
        Gunzip { stream, helpers, _taken: None, sum: Hasher::new(), length: 0, state }
    }

    /// Has others help than was said first.
    pub(crate) fn let_in(&mut self, helpers: Helpers) {
        self.helpers = Some(helpers);
    }

    pub(crate) fn get_ref(&self) -> &R {
        self.stream.get_ref()
    }

    /// Inflates into `buffer`: some bytes, or none at the end of the member, which is checked.
    fn inside(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.help();
        let made = self.stream.inflate(buffer)?;
        self.sum.update(&buffer[..made]);
        // A buffer may be larger than what counts.
        self.length = self.length.wrapping_add(made as u32);
        if made == 0 {
            self.trailer()?;
        }
        Ok(made)
    }

    /// Gets help when it is time. The helpers are threads of this one, so that they are confined as it is.
    fn help(&mut self) {
        let count = match self.helpers {
            Some(Helpers::Exactly(count)) => count,
            Some(Helpers::Spare) if self.stream.taken() >= LARGE => {
                self._taken = processors().take();
                self._taken.as_ref().map_or(0, |taken| taken.count)
            }
            _ => return,
        };
        self.stream.help(count, CHUNK);
        self.helpers = None;
    }

    /// Reads what is behind a member, and makes ready for the next.
    fn trailer(&mut self) -> io::Result<()> {
        let (mut sum, mut length) = ([0; 4], [0; 4]);
        self.stream.read_exact(&mut sum)?;
        self.stream.read_exact(&mut length)?;
        let expected = (u32::from_le_bytes(sum), u32::from_le_bytes(length));
        if expected != (std::mem::take(&mut self.sum).finalize(), std::mem::take(&mut self.length)) {
            return Err(bad("gzip: wrong checksum"));
        }
        self.state = State::Between { first: false };
        Ok(())
    }

    /// Reads the header of a member; says whether there is one.
    fn header(&mut self, first: bool) -> io::Result<bool> {
        if !first && at_end(&mut self.stream)? {
            return Ok(false);
        }
        let mut header = Header { stream: &mut self.stream, sum: Hasher::new() };
        let [magic1, magic2, method, flags, ..] = header.take::<10>()?;
        if [magic1, magic2, method] != [0x1f, 0x8b, 8] {
            return Err(bad("gzip: no header"));
        }
        if flags & HAS_EXTRA != 0 {
            let length = u16::from_le_bytes(header.take()?);
            (0..length).try_for_each(|_| header.take::<1>().map(drop))?;
        }
        for text in [HAS_NAME, HAS_COMMENT] {
            while flags & text != 0 && header.take()? != [0] {}
        }
        let sum = header.sum.clone().finalize();
        if flags & HAS_HEADER_SUM != 0 && u32::from(u16::from_le_bytes(header.take()?)) != sum & 0xffff {
            return Err(bad("gzip: wrong checksum of a header"));
        }
        Ok(true)
    }
}

/// A header that is being read.
struct Header<'a, R> {
    stream: &'a mut R,
    sum: Hasher,
}

impl<R: BufRead> Header<'_, R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

fn at_end(stream: &mut impl BufRead) -> io::Result<bool> {
    loop {
        match stream.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            filled => return filled.map(<[u8]>::is_empty),
        }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::Between { first } => {
                    self.state = if self.header(first)? { State::Inside } else { State::Ended };
                }
                State::Inside => match self.inside(buffer)? {
                    0 => {}
                    made => return Ok(made),
                },
                State::Ended => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use flate2::write::GzEncoder;
    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;

    use super::*;

    fn packed(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Gunzip::new(packed, Helpers::default()).read_to_end(&mut plain).map(|_| plain)
    }

    proptest! {
        #[test]
        fn members_come_out_as_they_went_in_through_buffers_of_any_size(
            members in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..4),
            (input, output) in (1_usize..600, 1_usize..600),
        ) {
            let stream: Vec<u8> = members.iter().flat_map(|plain| packed(plain)).collect();
            let mut gunzip = Gunzip::new(BufReader::with_capacity(input, stream.as_slice()), Helpers::default());
            let (mut plain, mut buffer) = (Vec::new(), vec![0; output]);
            loop {
                match gunzip.read(&mut buffer).unwrap() {
                    0 => break,
                    length => plain.extend_from_slice(&buffer[..length]),
                }
            }
            prop_assert_eq!(plain, members.concat());
        }

        #[test]
        fn what_is_cut_off_changed_or_followed_by_something_else_is_an_error(
            plain in prop::collection::vec(any::<u8>(), 0..2000),
            (at, bit) in (any::<prop::sample::Index>(), 0_u32..8),
        ) {
            let whole = packed(&plain);
            let cut = at.index(whole.len());
            prop_assert_eq!(unpacked(&whole[..cut]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            prop_assert!(unpacked(&[&whole, &plain[..], b"\0"].concat()).is_err());
            let mut changed = whole.clone();
            changed[cut] ^= 1_u8 << bit;
            // Of the header's time, system and flags, and of what fills up the last byte, nothing depends.
            prop_assert!((3..10).contains(&cut) || unpacked(&changed).is_ok_and(|out| out == plain) || unpacked(&changed).is_err());
        }

        #[test]
        fn any_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = unpacked(&[&[0x1f, 0x8b, 8], &bytes[..]].concat());
        }
    }

    #[test]
    fn members_that_helpers_inflate_come_out_as_they_went_in() {
        let members: Vec<Vec<u8>> = (1..4_u32)
            .map(|i| (0..i * 700_000).flat_map(|n| (n.wrapping_mul(i) ^ n >> 7).to_le_bytes()).collect())
            .collect();
        let stream: Vec<u8> = members.iter().flat_map(|plain| packed(plain)).collect();
        for helpers in 0..4 {
            let mut plain = Vec::new();
            Gunzip::new(&stream[..], Helpers::Exactly(helpers)).read_to_end(&mut plain).unwrap();
            assert!(plain == members.concat());
            let cut = Gunzip::new(&stream[..stream.len() - 1], Helpers::Exactly(helpers)).read_to_end(&mut plain);
            assert_eq!(cut.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_header_may_have_a_name_a_comment_and_more() {
        let builder = GzBuilder::new().filename("name").comment("said of it").extra(vec![7; 300]);
        let mut encoder = builder.write(Vec::new(), Compression::default());
        encoder.write_all(b"plain").unwrap();
        let mut packed = encoder.finish().unwrap();
        assert_eq!(unpacked(&packed).unwrap(), b"plain");
        let length = 10 + 2 + 300 + "name".len() + 1 + "said of it".len() + 1;
        packed[3] |= HAS_HEADER_SUM;
        let sum = crc32fast::hash(&packed[..length]) as u16;
        packed.splice(length..length, sum.to_le_bytes());
        assert_eq!(unpacked(&packed).unwrap(), b"plain");
        packed[length] ^= 1;
        assert_eq!(unpacked(&packed).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
