//! Blocks from the middle of a stream, decoded before what is in front of them is known.
//!
//! What matches refer to before the first block is written as marks, which are copied as bytes are; whoever knows the
//! window that was before puts its bytes in their place. Once the last 32 KiB hold no mark, none can come any more, and
//! decoding goes on with bytes alone.

use std::sync::Arc;

use crate::decoder::{Decoder, Stop};
use crate::find;
use crate::flat::{Flat, WINDOW};
use crate::input::Input;

/// What a piece may take: two bytes for each symbol that was decoded with marks, one for each of the others.
pub(crate) const LIMIT: usize = 4 << 20;
/// A value from here on stands for a byte of the window.
const MARK: u16 = 1 << 15;
/// By so many symbols an output grows.
const STEP: usize = 64 << 10;
/// Trying a place costs as much as so many bytes.
const TRIED: usize = 1 << 10;

/// A chunk of the stream, to be decoded from the first block that is found in it to the first behind it.
pub(crate) struct Job {
    pub(crate) bytes: Arc<Vec<u8>>,
    /// What follows.
    pub(crate) next: Arc<Vec<u8>>,
    /// The first bit of `bytes`.
    pub(crate) base: u64,
    pub(crate) outputs: Outputs,
}

/// Memory that is used for one piece after the other.
pub(crate) struct Outputs {
    marked: Flat<u16>,
    plain: Flat<u8>,
}

impl Outputs {
    pub(crate) fn new() -> Outputs {
        let (mut marked, plain) = (Flat::new(WINDOW), Flat::new(0));
        // Nothing writes there any more.
        (MARK..=u16::MAX).zip(&mut marked.symbols).for_each(|(mark, symbol)| *symbol = mark);
        Outputs { marked, plain }
    }
}

/// Decoded blocks.
pub(crate) struct Piece {
    /// The first bit of the first block.
    pub(crate) start: u64,
    end: End,
    outputs: Outputs,
}

/// The end of a block.
#[derive(Clone, Copy)]
struct End {
    /// The first bit behind it.
    bit: u64,
    /// How much of both outputs belongs to what was decoded by then, the windows before them among it.
    marked: usize,
    plain: usize,
}

impl Job {
    /// Decodes what can be; gives the memory back where that is nothing.
    pub(crate) fn run(mut self, decoder: &mut Decoder) -> Result<Piece, Outputs> {
        let (mut from, mut spent) = (0, 0);
        while spent < LIMIT
            && let Some(place) = find::candidate(&self.bytes, from)
        {
            let end = self.decode(decoder, place);
            if let Some(end) = end {
                return Ok(Piece { start: self.base + place, end, outputs: self.outputs });
            }
            // Hostile bytes have many places that go well for long.
            spent += TRIED + self.outputs.marked.at + self.outputs.plain.at - WINDOW;
            from = place + 1;
        }
        Err(self.outputs)
    }

    /// Decodes from a bit of this chunk on; says where the last whole block ends, if there is one.
    fn decode(&mut self, decoder: &mut Decoder, place: u64) -> Option<End> {
        let Outputs { marked, plain } = &mut self.outputs;
        let mut source = Source::new(&self.bytes, &self.next, place);
        decoder.reset();
        marked.grow(WINDOW + STEP);
        (marked.at, plain.at) = (WINDOW, 0);
        let mut end = None;
        loop {
            let stop = match plain.at {
                0 => source.run(|input| decoder.run(input, marked)),
                _ => source.run(|input| decoder.run(input, plain)),
            };
            match stop {
                Ok(Stop::Block) => {
                    let bit = self.base + source.place();
                    end = Some(End { bit, marked: marked.at, plain: plain.at });
                    if source.in_next() {
                        return end;
                    }
                }
                Ok(Stop::Output) if 2 * marked.at + plain.at < LIMIT => {
                    if plain.at > 0 {
                        plain.grow(plain.at + 4 * STEP);
                    } else if !clear(marked, plain) {
                        marked.grow(marked.at + STEP);
                    }
                }
                // The last block, too, is for those who know what follows it.
                _ => return end,
            }
        }
    }
}

/// Where no mark is left in reach, goes on with bytes.
fn clear(marked: &Flat<u16>, plain: &mut Flat<u8>) -> bool {
    let window = &marked.symbols[marked.at - WINDOW..marked.at];
    if window.iter().fold(0, |all, symbol| all | symbol) >= MARK {
        return false;
    }
    plain.grow(WINDOW + 4 * STEP);
    plain.symbols.iter_mut().zip(window).for_each(|(byte, symbol)| *byte = *symbol as u8);
    plain.at = WINDOW;
    true
}

/// Two slices, one behind the other.
struct Source<'a> {
    slices: [&'a [u8]; 2],
    rest: (u64, u32),
    /// The slice, and how much of it is used.
    at: (usize, usize),
}

impl<'a> Source<'a> {
    /// Begins at a bit of the first slice.
    fn new(first: &'a [u8], second: &'a [u8], place: u64) -> Source<'a> {
        let (byte, bit) = ((place / 8) as usize, (place % 8) as u32);
        let rest = first.get(byte).map_or((0, 0), |first| (u64::from(first >> bit), 8 - bit));
        Source { slices: [first, second], rest, at: (0, byte + 1) }
    }

    /// Takes a step with what there is.
    fn run<E>(&mut self, mut step: impl FnMut(&mut Input<'_>) -> Result<Stop, E>) -> Result<Stop, E> {
        loop {
            let (slice, at) = self.at;
            let mut input = Input::new(&self.slices[slice][at..], self.rest);
            let stop = step(&mut input)?;
            (self.rest, self.at.1) = (input.rest(), at + input.at);
            if stop != Stop::Input || slice == 1 {
                return Ok(stop);
            }
            self.at = (1, 0);
        }
    }

    /// The next bit, from the first of the first slice.
    fn place(&self) -> u64 {
        let before = if self.in_second() { self.slices[0].len() } else { 0 };
        8 * (before + self.at.1) as u64 - u64::from(self.rest.1)
    }

    fn in_second(&self) -> bool {
        self.at.0 == 1
    }

    /// The next bit is not one of the first slice.
    fn in_next(&self) -> bool {
        self.place() >= 8 * self.slices[0].len() as u64
    }
}

impl Piece {
    /// The first bit behind the last block.
    pub(crate) fn end(&self) -> u64 {
        self.end.bit
    }

    pub(crate) fn into_outputs(self) -> Outputs {
        self.outputs
    }

    /// Writes the bytes from `from` on to `output`, as many as there are and have room; marks become what they are in
    /// `bytes`.
    pub(crate) fn give(&self, from: usize, bytes: &Bytes, output: &mut [u8]) -> usize {
        let marked = &self.outputs.marked.symbols[WINDOW..self.end.marked];
        if let Some(rest) = marked.get(from..)
            && !rest.is_empty()
        {
            output.iter_mut().zip(rest).for_each(|(byte, symbol)| *byte = bytes.0[usize::from(*symbol)]);
            return rest.len().min(output.len());
        }
        let plain = self.outputs.plain.symbols.get(WINDOW..self.end.plain).unwrap_or(&[]);
        let rest = plain.get(from - marked.len()..).unwrap_or(&[]);
        let count = rest.len().min(output.len());
        output[..count].copy_from_slice(&rest[..count]);
        count
    }

    /// Writes the last 32 KiB to `window`.
    pub(crate) fn window(&self, bytes: &Bytes, window: &mut [u8]) {
        let Outputs { marked, plain } = &self.outputs;
        match self.end.plain.checked_sub(WINDOW) {
            Some(from) => window.copy_from_slice(&plain.symbols[from..self.end.plain]),
            None => {
                let symbols = &marked.symbols[self.end.marked - WINDOW..self.end.marked];
                window.iter_mut().zip(symbols).for_each(|(byte, symbol)| *byte = bytes.0[usize::from(*symbol)]);
            }
        }
    }
}

/// The byte of each symbol.
pub(crate) struct Bytes(Box<[u8; 1 << 16]>);

impl Bytes {
    pub(crate) fn new() -> Bytes {
        Bytes(Box::new(std::array::from_fn(|symbol| symbol as u8)))
    }

    /// Marks stand for the bytes of `window`, all 32 KiB of it.
    pub(crate) fn know(&mut self, window: &[u8]) {
        self.0[usize::from(MARK)..].copy_from_slice(window);
    }
}
