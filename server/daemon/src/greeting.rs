//! What a client says of itself before its first call: the preface of HTTP/2 and its settings. The library that speaks
//! HTTP/2 for us keeps them to itself.

/// What every client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes before the payload of a frame: its length in three, type, flags, and the stream in four (section 4.1).
const HEAD: usize = 9;

/// The type of the frame that has settings, each an identifier in two bytes and a value in four (section 6.5).
const SETTINGS: u8 = 4;
const SETTING: usize = 6;

/// The identifier of the largest payload that a client takes, and what it is where it says nothing (section 6.5.2).
const MAX_FRAME_SIZE: u16 = 5;
const USUAL_FRAME: u32 = 16 << 10;

/// The beginning of what a client sends, as far as it has come.
#[derive(Default)]
pub(crate) struct Greeting(Vec<u8>);

impl Greeting {
    /// Adds the next bytes. Gives the largest payload of a frame that the client takes, in bytes, once it is known.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Option<u32> {
        let room = (PREFACE.len() + HEAD + USUAL_FRAME as usize).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        max_frame(&self.0)
    }
}

/// The largest payload by a client's first bytes; none where more of them have to come. What is no HTTP/2 is not judged
/// here.
fn max_frame(greeting: &[u8]) -> Option<u32> {
    let frame = greeting.get(PREFACE.len()..)?;
    let head = frame.get(..HEAD)?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    if !greeting.starts_with(PREFACE) || head[3] != SETTINGS || len > USUAL_FRAME {
        return Some(USUAL_FRAME);
    }
    let payload = frame[HEAD..].get(..len as usize)?;
    let mut sizes = payload.chunks_exact(SETTING).filter_map(|setting| {
        let (id, value) = setting.split_first_chunk::<2>()?;
        (u16::from_be_bytes(*id) == MAX_FRAME_SIZE).then(|| value.try_into().map(u32::from_be_bytes).ok())?
    });
    // Of several values the last counts (section 6.5.3).
    Some(sizes.next_back().unwrap_or(USUAL_FRAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(settings: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(&(settings.len() as u32 * 6).to_be_bytes()[1..]);
        bytes.extend([SETTINGS, 0, 0, 0, 0, 0]);
        for (id, value) in settings {
            bytes.extend(id.to_be_bytes());
            bytes.extend(value.to_be_bytes());
        }
        bytes
    }

    /// Reads it in pieces of `piece` bytes; tells with how many it was known, too.
    fn known(bytes: &[u8], piece: usize) -> Option<(u32, usize)> {
        let mut greeting = Greeting::default();
        let mut came = 0;
        bytes.chunks(piece).find_map(|bytes| {
            came += bytes.len();
            Some((greeting.add(bytes)?, came))
        })
    }

    #[test]
    fn the_frame_a_client_asks_for_is_known_with_its_settings_however_they_come() {
        let cases: [(&[(u16, u32)], u32); 4] = [
            (&[], USUAL_FRAME),
            (&[(4, 65_535), (3, 100)], USUAL_FRAME),
            (&[(4, 1 << 20), (5, 1 << 18)], 1 << 18),
            (&[(5, 1 << 15), (5, 1 << 16), (1, 0)], 1 << 16),
        ];
        for (settings, size) in cases {
            let bytes = greeting(settings);
            for piece in [1, 5, 33, bytes.len()] {
                let (found, came) = known(&bytes, piece).expect("all of it came");
                assert_eq!(found, size, "{settings:?} in pieces of {piece}");
                assert!(came >= bytes.len() || settings.is_empty());
            }
            assert_eq!(known(&bytes[..bytes.len() - 1], 7), None, "{settings:?}");
        }
    }

    #[test]
    fn what_is_no_greeting_of_http2_is_taken_for_a_client_with_usual_frames() {
        let mut other_frame = greeting(&[(5, 1 << 18)]);
        other_frame[PREFACE.len() + 3] = 0;
        let mut long = greeting(&[]);
        long[PREFACE.len()] = 0xff;
        for bytes in [b"GET / HTTP/1.1\r\nhost: some-name\r\n\r\n".to_vec(), other_frame, long] {
            assert_eq!(known(&bytes, 4).map(|(size, _)| size), Some(USUAL_FRAME));
        }
    }
}
