//! Which frames a server of unary calls takes, and what it tells the peer about the others.

use gantry_types::ErrorKind;

use crate::Status;
use crate::frame::{Decoded, Frame, Kind, REMOTE_OPEN, TooLarge};

/// The rule for the streams of one connection: odd, rising numbers, one request each, no streaming.
#[derive(Debug, Default)]
pub struct StreamRule {
    last: u32,
}

impl StreamRule {
    /// A request to answer; or nothing, for what is to be ignored.
    ///
    /// # Errors
    /// The stream that must be told, and what.
    pub fn admit(&mut self, decoded: Decoded) -> Result<Option<Frame>, (u32, Status)> {
        let frame = match decoded {
            Decoded::Frame(frame) => frame,
            Decoded::Oversized(header) => {
                let text = TooLarge { length: header.length as usize }.to_string();
                return Err((header.stream, Status::new(ErrorKind::ResourceExhausted, text)));
            }
        };
        let stream = frame.stream;
        let refuse = |kind, text: &str| Err((stream, Status::new(kind, text)));
        match frame.kind {
            _ if stream % 2 != 1 => refuse(ErrorKind::InvalidArgument, "stream numbers of clients must be odd"),
            Kind::Data => refuse(ErrorKind::InvalidArgument, "the stream is not open for data"),
            Kind::Response | Kind::Other(_) => Ok(None),
            Kind::Request if stream <= self.last => {
                refuse(ErrorKind::InvalidArgument, "stream numbers must rise and cannot be used again")
            }
            Kind::Request => {
                self.last = stream;
                if frame.flags & REMOTE_OPEN != 0 {
                    return refuse(ErrorKind::Unimplemented, "streaming calls are not served here");
                }
                Ok(Some(frame))
            }
        }
    }
}
