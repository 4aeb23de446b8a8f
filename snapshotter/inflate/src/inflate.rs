//! The decoder of one thread.

use crate::Error;
use crate::decoder::{Decoder, Flat, Stop, WINDOW};
use crate::input::Input;

/// Bytes that are decoded before they are handed out, behind the window.
const ROOM: usize = 128 << 10;

/// What a step of [`Inflate::inflate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that were used.
    pub taken: usize,
    /// Bytes of the output that were written.
    pub made: usize,
    /// The stream has ended, and all of it was written.
    pub ended: bool,
}

/// Decodes one stream. It keeps 160 KiB of output, 20 KiB of tables and at most 63 bits of input, whatever comes.
pub struct Inflate {
    pub(crate) decoder: Decoder,
    pub(crate) rest: (u64, u32),
    pub(crate) flat: Flat<u8>,
    /// Bytes of `flat` that were handed out.
    pub(crate) given: usize,
    ended: bool,
}

impl Default for Inflate {
    fn default() -> Inflate {
        Inflate::new()
    }
}

impl Inflate {
    /// Is at the beginning of a stream.
    pub fn new() -> Inflate {
        Inflate { decoder: Decoder::new(), rest: (0, 0), flat: Flat::new(WINDOW + ROOM), given: 0, ended: false }
    }

    /// Is at the beginning of another stream.
    pub fn reset(&mut self) {
        self.decoder.reset();
        (self.rest, self.flat.at, self.given, self.ended) = ((0, 0), 0, 0, false);
    }

    /// Decodes what `input` has as far as `output` has room. If nothing is taken or made and the stream has not ended,
    /// `output` or `input` is empty. Behind the end of the stream nothing is taken.
    pub fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Error> {
        let (mut taken, mut made) = (0, 0);
        loop {
            made += self.give(&mut output[made..]);
            if made == output.len() || self.ended {
                let ended = self.ended && self.given == self.flat.at;
                return Ok(Step { taken, made, ended });
            }
            self.slide();
            let mut input = Input::new(&input[taken..], self.rest);
            let stop = self.decoder.run(&mut input, &mut self.flat)?;
            self.rest = input.rest();
            taken += input.at;
            self.ended = stop == Stop::End;
            if stop == Stop::Input && self.given == self.flat.at {
                return Ok(Step { taken, made, ended: false });
            }
        }
    }

    fn give(&mut self, output: &mut [u8]) -> usize {
        let count = output.len().min(self.flat.at - self.given);
        output[..count].copy_from_slice(&self.flat.symbols[self.given..self.given + count]);
        self.given += count;
        count
    }

    /// Makes room, where all is handed out: keeps the window.
    fn slide(&mut self) {
        if self.flat.at >= self.flat.limit {
            self.flat.symbols.copy_within(self.flat.at - WINDOW..self.flat.at, 0);
            (self.flat.at, self.given) = (WINDOW, WINDOW);
        }
    }
}
