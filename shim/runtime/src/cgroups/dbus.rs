//! A D-Bus client of a few calls (D-Bus specification 0.43): SASL EXTERNAL, method calls with their replies, signals.
//!
//! Blocking, with one deadline for the whole conversation. What the bus says is taken as hostile: lengths are bounded
//! and every read is checked.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::marshal::{Reader, Value, Writer, pad};

/// No message that concerns us is longer.
const LONGEST: usize = 1 << 20;
/// Signals kept while a reply is awaited.
const MOST_SIGNALS: usize = 4096;

const METHOD_RETURN: u8 = 2;
const METHOD_ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The bus would not have us.
    #[error("the bus refused authentication: {0}")]
    Refused(String),
    /// The bus said something that is not D-Bus.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// The call failed at the other end.
    #[error("{name}: {text}")]
    Call {
        /// The error's name.
        name: String,
        /// What it says.
        text: String,
    },
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
}

/// A message that arrived.
#[derive(Debug, Default)]
pub(crate) struct Message {
    kind: u8,
    reply_to: u32,
    error: String,
    /// The signal's name.
    pub(crate) member: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// Its arguments, if they are of this signature (`s`, `o` and `u` only).
    pub(crate) fn arguments(&self, signature: &str) -> Result<Vec<String>, BusError> {
        if self.signature != signature {
            return Err(BusError::Malformed("unexpected signature"));
        }
        let mut reader = Reader::new(&self.body);
        signature
            .chars()
            .map(|kind| match kind {
                'u' => reader.u32().map(|number| number.to_string()),
                _ => reader.string(),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or(BusError::Malformed("short body"))
    }
}

/// A method to call.
pub(crate) struct Call<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
    /// The arguments' signature and bytes.
    pub(crate) signature: &'a str,
    pub(crate) body: Vec<u8>,
}

impl Call<'_> {
    /// The message.
    pub(crate) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&[b'l', 1, 0, 1]);
        out.u32(self.body.len() as u32);
        out.u32(serial);
        out.array(8, |out| {
            let mut field = |code: u8, kind: char, value: &str| {
                out.align(8);
                out.byte(code);
                match kind {
                    'g' => out.variant(&Value::Signature(value)),
                    'o' => out.variant(&Value::Path(value)),
                    _ => out.variant(&Value::Text(value)),
                }
            };
            field(1, 'o', self.path);
            field(2, 's', self.interface);
            field(3, 's', self.member);
            field(6, 's', self.destination);
            if !self.signature.is_empty() {
                field(8, 'g', self.signature);
            }
        });
        out.align(8);
        out.bytes(&self.body);
        out.finish()
    }
}

/// A connection.
pub(crate) struct Bus {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects and authenticates as this user. Every later call shares the deadline.
    pub(crate) fn connect(address: &Path, within: Duration) -> Result<Bus, BusError> {
        let stream = UnixStream::connect(address)?;
        let mut bus = Bus { stream, deadline: Instant::now() + within, serial: 0, signals: VecDeque::new() };
        let user = nix::unistd::geteuid().to_string();
        let user = user.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        bus.send(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let answer = bus.line()?;
        if !answer.starts_with("OK ") {
            return Err(BusError::Refused(answer));
        }
        bus.send(b"BEGIN\r\n")?;
        Ok(bus)
    }

    fn line(&mut self) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 4096 {
                return Err(BusError::Malformed("long line"));
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn left(&self) -> Result<Duration, BusError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(BusError::Timeout) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes).map_err(timed)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BusError> {
        let mut at = 0;
        while at < bytes.len() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(&mut bytes[at..]) {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(length) => at += length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed(error)),
            }
        }
        Ok(())
    }

    /// Calls a method and waits for its reply; signals that come before it are kept.
    pub(crate) fn call(&mut self, call: &Call<'_>) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.encode(serial))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return Ok(message),
                METHOD_ERROR if message.reply_to == serial => {
                    let text = Reader::new(&message.body).string().unwrap_or_default();
                    return Err(BusError::Call { name: message.error, text });
                }
                SIGNAL if self.signals.len() < MOST_SIGNALS => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub(crate) fn signal(&mut self) -> Result<Message, BusError> {
        if let Some(message) = self.signals.pop_front() {
            return Ok(message);
        }
        loop {
            let message = self.receive()?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut head = [0; 16];
        self.fill(&mut head)?;
        let (body, fields) = lengths(&head)?;
        let mut rest = vec![0; pad(fields, 8) + body];
        self.fill(&mut rest)?;
        parse(head[1], &rest, fields)
    }
}

/// A message's body's and header fields' lengths.
fn lengths(head: &[u8; 16]) -> Result<(usize, usize), BusError> {
    if head[0] != b'l' || head[3] != 1 {
        return Err(BusError::Malformed("foreign byte order or version"));
    }
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    if body > LONGEST || fields > LONGEST {
        return Err(BusError::Malformed("too long"));
    }
    Ok((body, fields))
}

fn parse(kind: u8, rest: &[u8], fields: usize) -> Result<Message, BusError> {
    let short = || BusError::Malformed("short header");
    let mut message =
        Message { kind, body: rest.get(pad(fields, 8)..).ok_or_else(short)?.to_vec(), ..Message::default() };
    // The fields start 16 bytes into the message, which is aligned to 8.
    let mut reader = Reader::new(rest.get(..fields).ok_or_else(short)?);
    while !reader.is_empty() {
        reader.align(8).ok_or_else(short)?;
        let code = reader.byte().ok_or_else(short)?;
        let kind = reader.signature().ok_or_else(short)?;
        let mut number = 0;
        let mut text = String::new();
        match kind.as_str() {
            "u" => number = reader.u32().ok_or_else(short)?,
            "g" => text = reader.signature().ok_or_else(short)?,
            "s" | "o" => text = reader.string().ok_or_else(short)?,
            _ => return Err(BusError::Malformed("unknown header field")),
        }
        match code {
            3 => message.member = text,
            4 => message.error = text,
            5 => message.reply_to = number,
            8 => message.signature = text,
            _ => {}
        }
    }
    Ok(message)
}

fn timed(error: std::io::Error) -> BusError {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => BusError::Timeout,
        _ => BusError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail_other_than_by_an_error(kind: u8, rest: Vec<u8>, fields in 0usize..200) {
            if let Ok(message) = parse(kind, &rest, fields) {
                let _ = message.arguments("uoss");
                let _ = message.arguments("o");
            }
        }
    }
}
