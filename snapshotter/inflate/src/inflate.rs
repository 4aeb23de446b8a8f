//! The decoder of one thread.

use crate::Error;
use crate::decoder::{Decoder, Stop};
use crate::flat::{Flat, WINDOW};
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
    /// It stopped behind a block, as it was told to, and all before was written.
    pub(crate) paused: bool,
}

/// Decodes one stream. It keeps 160 KiB of output, 20 KiB of tables and at most 63 bits of input, whatever comes.
pub struct Inflate {
    decoder: Decoder,
    rest: (u64, u32),
    flat: Flat<u8>,
    /// Bytes of `flat` that were handed out.
    given: usize,
    /// Why the decoder stopped, unless that is said or done with.
    stop: Option<Stop>,
}

impl Default for Inflate {
    fn default() -> Inflate {
        Inflate::new()
    }
}

impl Inflate {
    /// Is at the beginning of a stream.
    pub fn new() -> Inflate {
        let (decoder, flat) = (Decoder::new(), Flat::new(WINDOW + ROOM));
        Inflate { decoder, rest: (0, 0), flat, given: 0, stop: None }
    }

    /// Is at the beginning of another stream.
    pub fn reset(&mut self) {
        self.decoder.reset();
        (self.rest, self.flat.at, self.given, self.stop) = ((0, 0), 0, 0, None);
    }

    /// Decodes what `input` has as far as `output` has room. If nothing is taken or made and the stream has not ended,
    /// `output` or `input` is empty. Behind the end of the stream nothing is taken.
    pub fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Error> {
        self.step(input, output, false)
    }

    /// As [`Inflate::inflate`]; with `pause` no further than a block.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8], pause: bool) -> Result<Step, Error> {
        let (mut taken, mut made) = (0, 0);
        loop {
            made += self.give(&mut output[made..]);
            let (ended, paused) = (self.stop == Some(Stop::End), pause && self.stop == Some(Stop::Block));
            if self.given < self.flat.at {
                return Ok(Step { taken, made, ended: false, paused: false });
            }
            if ended || paused || self.stop == Some(Stop::Input) || made == output.len() {
                self.stop = self.stop.filter(|_| ended);
                return Ok(Step { taken, made, ended, paused });
            }
            self.slide();
            let mut input = Input::new(&input[taken..], self.rest);
            self.stop = Some(self.decoder.run(&mut input, &mut self.flat)?);
            self.rest = input.rest();
            taken += input.at;
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

    /// How many bits of the input that was taken are not used yet.
    pub(crate) fn kept(&self) -> u64 {
        u64::from(self.rest.1)
    }

    /// The window: the last 32 KiB, if there were as many. All before is handed out.
    pub(crate) fn window(&self) -> Option<&[u8]> {
        Some(&self.flat.symbols[self.flat.at.checked_sub(WINDOW)?..self.flat.at])
    }

    /// Goes on with a block elsewhere: `rest` is what of the byte before is not used yet, `window` writes what is before.
    pub(crate) fn go_on(&mut self, rest: (u64, u32), window: impl FnOnce(&mut [u8])) {
        self.decoder.reset();
        window(&mut self.flat.symbols[..WINDOW]);
        (self.rest, self.flat.at, self.given, self.stop) = (rest, WINDOW, WINDOW, None);
    }
}
