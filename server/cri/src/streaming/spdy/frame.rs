//! Frames of SPDY/3.1, read and written without I/O: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

use bytes::BufMut;

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
/// Bytes before a frame's contents.
pub(super) const HEADER: usize = 8;
/// Largest control frame that is read; headers of streams have a few hundred bytes.
const MAX_CONTROL: usize = 64 << 10;
/// Flag: the sender's last frame of the stream.
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const WINDOW_UPDATE: u16 = 9;
/// Setting: bytes that may be sent on a new stream before a WINDOW_UPDATE.
const INITIAL_WINDOW: u32 = 7;

/// The eight bytes that begin a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Data of a stream.
    Data { stream: u32, fin: bool, length: usize },
    /// Something else.
    Control { kind: u16, flags: u8, length: usize },
}

/// What came, without data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// A new stream. The headers are compressed.
    Open { stream: u32, fin: bool, headers: Vec<u8> },
    /// Headers that need no answer, but belong to the compressor's state.
    Headers { headers: Vec<u8> },
    /// The end of a stream by force.
    Reset { stream: u32 },
    /// An answer is wanted.
    Ping { id: u32 },
    /// More may be sent.
    Window { stream: u32, bytes: u32 },
    /// How much may be sent on streams to come.
    InitialWindow { bytes: u32 },
    /// No more streams come.
    GoAway,
    /// Something that needs no care.
    Other,
}

/// Understands the start of a frame.
///
/// # Errors
/// What is wrong with it.
pub(super) fn head(bytes: [u8; HEADER]) -> Result<Head, String> {
    let [a, b, c, d, flags, high, middle, low] = bytes;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    let first = u16::from_be_bytes([a, b]);
    if first & CONTROL == 0 {
        return Ok(Head::Data { stream: u32::from_be_bytes([a, b, c, d]), fin: flags & FIN != 0, length });
    }
    if first != CONTROL | VERSION {
        return Err(format!("a frame of version {}, only 3 is spoken", first & !CONTROL));
    }
    if length > MAX_CONTROL {
        return Err(format!("a control frame of {length} bytes, {MAX_CONTROL} is the limit"));
    }
    Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length })
}

/// Understands a control frame's contents.
///
/// # Errors
/// What is wrong with it.
pub(super) fn control(kind: u16, flags: u8, body: &[u8]) -> Result<Control, String> {
    let number = |at: usize| -> Result<u32, String> {
        let bytes = body.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes
            .map(u32::from_be_bytes)
            .ok_or_else(|| format!("a frame of kind {kind} with {} bytes is too short", body.len()))
    };
    let stream = || number(0).map(|id| id & 0x7fff_ffff);
    let after = |at: usize| body.get(at..).map(<[u8]>::to_vec).unwrap_or_default();
    Ok(match kind {
        SYN_STREAM => {
            number(6)?;
            Control::Open { stream: stream()?, fin: flags & FIN != 0, headers: after(10) }
        }
        SYN_REPLY | 8 => {
            stream()?;
            Control::Headers { headers: after(4) }
        }
        RST_STREAM => Control::Reset { stream: stream()? },
        SETTINGS => settings(body, number(0)?),
        PING => Control::Ping { id: number(0)? },
        GOAWAY => Control::GoAway,
        WINDOW_UPDATE => Control::Window { stream: stream()?, bytes: number(4)? & 0x7fff_ffff },
        _ => Control::Other,
    })
}

/// Of all settings only one matters here.
fn settings(body: &[u8], count: u32) -> Control {
    let entries = body.get(4..).unwrap_or_default().chunks_exact(8).take(count as usize);
    let numbers = entries.filter_map(|entry| {
        let (id, value) = entry.split_at(4);
        Some((u32::from_be_bytes(id.try_into().ok()?) & 0x00ff_ffff, u32::from_be_bytes(value.try_into().ok()?)))
    });
    let initial = numbers.rev().find(|(id, _)| *id == INITIAL_WINDOW);
    initial.map_or(Control::Other, |(_, bytes)| Control::InitialWindow { bytes: bytes & 0x7fff_ffff })
}

/// Writes the start of a data frame.
pub(super) fn put_data(to: &mut impl BufMut, stream: u32, fin: bool, length: usize) {
    to.put_u32(stream & 0x7fff_ffff);
    to.put_u32(u32::from(if fin { FIN } else { 0 }) << 24 | (length as u32 & 0x00ff_ffff));
}

fn put_control(to: &mut impl BufMut, kind: u16, body: &[u8]) {
    to.put_u16(CONTROL | VERSION);
    to.put_u16(kind);
    to.put_u32(body.len() as u32 & 0x00ff_ffff);
    to.put_slice(body);
}

/// Writes the answer to a new stream; the headers are compressed.
pub(super) fn put_reply(to: &mut impl BufMut, stream: u32, headers: &[u8]) {
    put_control(to, SYN_REPLY, &[&stream.to_be_bytes(), headers].concat());
}

/// Writes the end of a stream by force.
pub(super) fn put_reset(to: &mut impl BufMut, stream: u32, status: u32) {
    put_control(to, RST_STREAM, &[stream.to_be_bytes(), status.to_be_bytes()].concat());
}

/// Writes a ping, or the answer to one.
pub(super) fn put_ping(to: &mut impl BufMut, id: u32) {
    put_control(to, PING, &id.to_be_bytes());
}

/// Writes that more may be sent.
pub(super) fn put_window(to: &mut impl BufMut, stream: u32, bytes: u32) {
    put_control(to, WINDOW_UPDATE, &[stream.to_be_bytes(), bytes.to_be_bytes()].concat());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put_data(&mut bytes, 7, true, 0x012345);
        assert_eq!(
            head(bytes[..8].try_into().unwrap()).unwrap(),
            Head::Data { stream: 7, fin: true, length: 0x012345 }
        );
        let mut bytes = Vec::new();
        put_window(&mut bytes, 5, 1000);
        let Head::Control { kind, flags, length } = head(bytes[..8].try_into().unwrap()).unwrap() else { panic!() };
        assert_eq!(length, 8);
        assert_eq!(control(kind, flags, &bytes[8..]).unwrap(), Control::Window { stream: 5, bytes: 1000 });
    }

    #[test]
    fn what_is_too_large_too_short_or_of_another_version_is_refused() {
        assert!(head([0x80, 2, 0, 1, 0, 0, 0, 1]).unwrap_err().contains("version 2"));
        assert!(head([0x80, 3, 0, 1, 0, 1, 0, 1]).unwrap_err().contains("65537 bytes"));
        assert!(control(SYN_STREAM, 0, &[0; 9]).unwrap_err().contains("too short"));
        assert!(control(PING, 0, &[]).is_err());
        assert_eq!(control(4711, 0, &[]).unwrap(), Control::Other);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(start in any::<[u8; 8]>(), kind in 0..12u16, flags in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = head(start);
            let _ = control(kind, flags, &body);
        }
    }
}
