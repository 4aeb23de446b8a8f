//! Frames without I/O: ten bytes of header (length, stream, type, flags; big endian) and a bounded payload.

/// Bytes in front of every payload.
pub const HEADER_LEN: usize = 10;
/// Longest payload either side may send, in bytes.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// The sender sends nothing more on this stream.
pub const REMOTE_CLOSED: u8 = 0x1;
/// The sender will send data on this stream.
pub const REMOTE_OPEN: u8 = 0x2;
/// A data frame that carries no message.
pub const NO_DATA: u8 = 0x4;

/// How much is reserved on the word of a header alone; the rest grows as bytes really come.
const FIRST_RESERVE: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first message of a stream, from its client.
    Request,
    /// The answer that ends a unary call.
    Response,
    /// A message of a streaming call.
    Data,
    /// A type this version does not know; such frames are skipped.
    Other(u8),
}

impl Kind {
    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(byte) => byte,
        }
    }

    const fn of(byte: u8) -> Kind {
        match byte {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => Kind::Other(other),
        }
    }
}

/// The ten bytes in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload that follow.
    pub length: u32,
    /// The stream; odd for those a client opened.
    pub stream: u32,
    /// What the payload is.
    pub kind: Kind,
    /// [`REMOTE_CLOSED`], [`REMOTE_OPEN`], [`NO_DATA`].
    pub flags: u8,
}

impl Header {
    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind.byte(), self.flags]
    }

    /// The header these bytes spell; every ten bytes spell one.
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Header {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Header {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind::of(kind),
            flags,
        }
    }
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to.
    pub stream: u32,
    /// What the payload is.
    pub kind: Kind,
    /// Flags of the header.
    pub flags: u8,
    /// The encoded message.
    pub payload: Vec<u8>,
}

/// What a peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame.
    Frame(Frame),
    /// A header whose payload exceeds [`MAX_PAYLOAD`]; the payload is being skipped, and the stream deserves an error.
    Oversized(Header),
}

/// Appends a frame to `out`.
///
/// # Errors
/// [`TooLarge`] when the payload exceeds [`MAX_PAYLOAD`]; `out` is then unchanged.
pub fn encode(stream: u32, kind: Kind, flags: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), TooLarge> {
    let length = match u32::try_from(payload.len()) {
        Ok(length) if payload.len() <= MAX_PAYLOAD => length,
        _ => return Err(TooLarge { length: payload.len() }),
    };
    out.reserve(HEADER_LEN + payload.len());
    out.extend_from_slice(&Header { length, stream, kind, flags }.to_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// A message longer than the protocol allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of {length} bytes exceeds the limit of {MAX_PAYLOAD}")]
pub struct TooLarge {
    /// Its length in bytes.
    pub length: usize,
}

impl gantry_types::HasKind for TooLarge {
    fn kind(&self) -> gantry_types::ErrorKind {
        gantry_types::ErrorKind::ResourceExhausted
    }
}

/// Cuts a byte stream into frames. Holds at most one payload; any bytes are legal input.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_LEN], filled: usize },
    Payload { header: Header, payload: Vec<u8> },
    Skip { left: usize },
}

impl Default for State {
    fn default() -> State {
        State::Header { bytes: [0; HEADER_LEN], filled: 0 }
    }
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes off the front of `input` until a frame is whole (then call again) or `input` is empty (then none).
    pub fn feed(&mut self, input: &mut &[u8]) -> Option<Decoded> {
        loop {
            match &mut self.state {
                State::Header { bytes, filled } => {
                    let part = take(input, HEADER_LEN - *filled);
                    bytes[*filled..*filled + part.len()].copy_from_slice(part);
                    *filled += part.len();
                    if *filled < HEADER_LEN {
                        return None;
                    }
                    let header = Header::from_bytes(*bytes);
                    if let Some(oversized) = self.begin(header) {
                        return Some(oversized);
                    }
                }
                State::Payload { header, payload } => {
                    payload.extend_from_slice(take(input, header.length as usize - payload.len()));
                    if payload.len() < header.length as usize {
                        return None;
                    }
                    let Header { stream, kind, flags, .. } = *header;
                    let payload = std::mem::take(payload);
                    self.state = State::default();
                    return Some(Decoded::Frame(Frame { stream, kind, flags, payload }));
                }
                State::Skip { left } => {
                    *left -= take(input, *left).len();
                    if *left > 0 {
                        return None;
                    }
                    self.state = State::default();
                }
            }
        }
    }

    /// Whether the stream may end here: no frame is half read.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { filled: 0, .. })
    }

    fn begin(&mut self, header: Header) -> Option<Decoded> {
        let length = header.length as usize;
        if length > MAX_PAYLOAD {
            self.state = State::Skip { left: length };
            return Some(Decoded::Oversized(header));
        }
        self.state = State::Payload { header, payload: Vec::with_capacity(length.min(FIRST_RESERVE)) };
        None
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (part, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    part
}
