//! Blocks, one behind the other, out of slices of input that may end anywhere.

use crate::Error;
use crate::fast;
use crate::flat::{Flat, Symbol};
use crate::input::{Input, mask};
use crate::table::{self, BAD, DISTANCE_BITS, LENGTH_BITS, LINK, LITERAL, LITERAL_BITS, OTHER, Set};

/// Why decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All input is used, or kept by who remembers [`Input::rest`].
    Input,
    /// The output is full.
    Output,
    /// Behind a block that is not the last one.
    Block,
    /// Behind the last block.
    End,
}

/// The tables of a block.
pub(crate) struct Tables {
    pub(crate) literals: table::Literals,
    pub(crate) distances: table::Distances,
    lengths: table::Lengths,
}

#[derive(Clone, Copy)]
enum State {
    Header,
    StoredLength,
    Stored {
        left: usize,
    },
    Counts,
    /// Lengths of the codes for code lengths are read; this is the next.
    Precode {
        next: usize,
    },
    /// Lengths of codes are read; this is the next.
    Lengths {
        next: usize,
    },
    Symbols,
    Ended,
}

/// What is known of a stream between two slices.
pub(crate) struct Decoder {
    state: State,
    /// The block is the last one.
    last: bool,
    /// How many literals and lengths, distances and code lengths have a code.
    counts: [usize; 3],
    lengths: [u8; 320],
    tables: Box<Tables>,
    /// The tables are those of fixed codes.
    fixed: bool,
}

/// The order in which lengths of codes for code lengths come (3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

impl Decoder {
    pub(crate) fn new() -> Decoder {
        let tables = Tables { literals: [0; 1 << 12], distances: [0; 1 << 9], lengths: [0; 1 << 7] };
        Decoder {
            state: State::Header,
            last: false,
            counts: [0; 3],
            lengths: [0; 320],
            tables: Box::new(tables),
            fixed: false,
        }
    }

    /// Is about to read the header of a block.
    pub(crate) fn reset(&mut self) {
        self.state = State::Header;
    }

    /// Decodes until one of four things happens. Unless that is the end of the input, whole bytes that are not used are
    /// still in the slice. After an error there is nothing to go on with.
    pub(crate) fn run<S: Symbol>(&mut self, input: &mut Input<'_>, out: &mut Flat<S>) -> Result<Stop, Error> {
        let stop = self.advance(input, out)?.unwrap_or(Stop::Input);
        if stop != Stop::Input {
            input.give_back();
        }
        Ok(stop)
    }

    /// As [`Decoder::run`]; nothing if the input ended.
    fn advance<S: Symbol>(&mut self, input: &mut Input<'_>, out: &mut Flat<S>) -> Result<Option<Stop>, Error> {
        loop {
            match self.state {
                State::Ended => return Ok(Some(Stop::End)),
                State::Symbols => match self.symbols(input, out)? {
                    Stop::Block => return Ok(Some(self.end_block())),
                    Stop::Input => return Ok(None),
                    stop => return Ok(Some(stop)),
                },
                State::Stored { left } => {
                    let left = stored(input, out, left);
                    self.state = State::Stored { left };
                    match left {
                        0 => return Ok(Some(self.end_block())),
                        _ if out.at >= out.limit => return Ok(Some(Stop::Output)),
                        _ => return Ok(None),
                    }
                }
                _ => match self.header(input)? {
                    Some(state) => self.state = state,
                    None => return Ok(None),
                },
            }
        }
    }

    fn end_block(&mut self) -> Stop {
        let (state, stop) = if self.last { (State::Ended, Stop::End) } else { (State::Header, Stop::Block) };
        self.state = state;
        stop
    }

    /// Reads to the first symbol of a block; each step reads at most what a filled buffer has.
    fn header(&mut self, input: &mut Input<'_>) -> Result<Option<State>, Error> {
        Ok(Some(match self.state {
            State::Header => {
                let Some(bits) = input.take(3) else { return Ok(None) };
                self.last = bits & 1 != 0;
                match bits >> 1 {
                    0 => {
                        input.align();
                        State::StoredLength
                    }
                    1 => {
                        self.fixed()?;
                        State::Symbols
                    }
                    2 => State::Counts,
                    _ => return Err(Error::Kind),
                }
            }
            State::StoredLength => {
                let Some(bits) = input.take(32) else { return Ok(None) };
                if bits >> 16 != !bits & 0xffff {
                    return Err(Error::Stored);
                }
                State::Stored { left: (bits & 0xffff) as usize }
            }
            State::Counts => {
                let Some(bits) = input.take(14) else { return Ok(None) };
                self.counts = [257 + (bits & 31) as usize, 1 + (bits >> 5 & 31) as usize, 4 + (bits >> 10) as usize];
                if self.counts[0] > 286 || self.counts[1] > 30 {
                    return Err(Error::Count);
                }
                self.lengths[..19].fill(0);
                State::Precode { next: 0 }
            }
            State::Precode { next } if next < self.counts[2] => {
                let Some(bits) = input.take(3) else { return Ok(None) };
                self.lengths[ORDER[next]] = bits as u8;
                State::Precode { next: next + 1 }
            }
            State::Precode { .. } => {
                table::fill(&mut self.tables.lengths, LENGTH_BITS, &self.lengths[..19], Set::Lengths)?;
                State::Lengths { next: 0 }
            }
            State::Lengths { next } if next < self.counts[0] + self.counts[1] => {
                let next = self.lengths(input, next)?;
                self.state = State::Lengths { next };
                if next < self.counts[0] + self.counts[1] {
                    return Ok(None);
                }
                self.state
            }
            State::Lengths { .. } => {
                self.dynamic()?;
                State::Symbols
            }
            state => state,
        }))
    }

    /// Reads lengths of codes from the one given on; says which comes next.
    fn lengths(&mut self, input: &mut Input<'_>, mut next: usize) -> Result<usize, Error> {
        let total = self.counts[0] + self.counts[1];
        while next < total {
            input.fill();
            let entry = self.tables.lengths[(input.buffer & mask(LENGTH_BITS)) as usize];
            let (used, symbol) = (entry & 63, (entry >> 16) as u8);
            let (more, least) = match symbol {
                16 => (2, 3),
                17 => (3, 3),
                18 => (7, 11),
                _ => (0, 1),
            };
            if used + more > input.count {
                return Ok(next);
            }
            let count = least + (input.buffer >> used & mask(more)) as usize;
            input.drop(used + more);
            let length = match symbol {
                16 => *self.lengths.get(next.wrapping_sub(1)).ok_or(Error::Repeat)?,
                17 | 18 => 0,
                _ => symbol,
            };
            self.lengths[..total].get_mut(next..next + count).ok_or(Error::Repeat)?.fill(length);
            next += count;
        }
        Ok(next)
    }

    fn dynamic(&mut self) -> Result<(), Error> {
        self.fixed = false;
        let [literals, distances, _] = self.counts;
        let (literals, distances) = self.lengths[..literals + distances].split_at(literals);
        if literals[256] == 0 {
            return Err(Error::Endless);
        }
        table::fill(&mut self.tables.literals, LITERAL_BITS, literals, Set::Literals)?;
        table::fill(&mut self.tables.distances, DISTANCE_BITS, distances, Set::Distances)
    }

    /// The codes that need not be told (3.2.6).
    fn fixed(&mut self) -> Result<(), Error> {
        if !self.fixed {
            let length = |symbol| match symbol {
                0..144 | 280.. => 8,
                144..256 => 9,
                256..280 => 7,
            };
            let literals: [u8; 288] = std::array::from_fn(length);
            table::fill(&mut self.tables.literals, LITERAL_BITS, &literals, Set::Literals)?;
            table::fill(&mut self.tables.distances, DISTANCE_BITS, &[5; 32], Set::Distances)?;
            self.fixed = true;
        }
        Ok(())
    }

    /// Decodes symbols: fast as long as there is room, then one at a time.
    fn symbols<S: Symbol>(&self, input: &mut Input<'_>, out: &mut Flat<S>) -> Result<Stop, Error> {
        if fast::symbols(input, out, &self.tables)? {
            return Ok(Stop::Block);
        }
        while out.at < out.limit {
            input.fill();
            let entry = look(&self.tables.literals, LITERAL_BITS, input.buffer);
            let used = entry & 63;
            if used > input.count {
                return Ok(Stop::Input);
            }
            if entry & LITERAL != 0 {
                out.symbols[out.at] = S::of((entry >> 16) as u8);
                out.at += 1;
            } else if entry & BAD != 0 {
                return Err(Error::Code);
            } else if entry & OTHER != 0 {
                input.drop(used);
                return Ok(Stop::Block);
            } else {
                let rest = input.buffer >> used;
                let far = look(&self.tables.distances, DISTANCE_BITS, rest);
                if used + (far & 63) > input.count {
                    return Ok(Stop::Input);
                }
                if far & BAD != 0 {
                    return Err(Error::Code);
                }
                let (length, distance) = (fast::value(entry, input.buffer), fast::value(far, rest));
                if distance > out.at {
                    return Err(Error::Far);
                }
                for at in out.at..out.at + length {
                    out.symbols[at] = out.symbols[at - distance];
                }
                out.at += length;
                input.drop(far & 63);
            }
            input.drop(used);
        }
        Ok(Stop::Output)
    }
}

/// The entry of the code that `bits` begin with.
fn look<const N: usize>(table: &[u32; N], main: u32, bits: u64) -> u32 {
    let entry = table[(bits & mask(main)) as usize % N];
    if entry & LINK == 0 { entry } else { fast::linked(table, main, entry, bits) }
}

/// Copies bytes of a stored block as far as both sides go; says how many are left.
fn stored<S: Symbol>(input: &mut Input<'_>, out: &mut Flat<S>, mut left: usize) -> usize {
    // Those that are in the buffer come first. It may have more than can be given back to this slice.
    while left > 0 && input.count >= 8 && out.at < out.limit {
        out.symbols[out.at] = S::of(input.buffer as u8);
        input.drop(8);
        (out.at, left) = (out.at + 1, left - 1);
    }
    if input.count > 0 {
        return left;
    }
    let count = left.min(input.bytes.len() - input.at).min(out.limit.saturating_sub(out.at));
    let from = &input.bytes[input.at..input.at + count];
    out.symbols[out.at..out.at + count].iter_mut().zip(from).for_each(|(symbol, byte)| *symbol = S::of(*byte));
    // Whatever was above the bits of the buffer is behind now.
    (input.at, input.buffer) = (input.at + count, 0);
    out.at += count;
    left - count
}
