//! Tables that say what a code means (RFC 1951, 3.2.2 and 3.2.5).
//!
//! A table is asked with the next bits of the input. Its main part has an entry for each value of so many bits; longer
//! codes lead from there to a part of their own behind it. An entry has all that is known of a symbol:
//!
//! | bits | literal | length, distance | link to a part |
//! |---|---|---|---|
//! | 0–5 | bits to use | bits to use, with those that follow the code | bits that tell the entry in the part |
//! | 8–11 | length of the code | length of the code | |
//! | 13–15 | | | [`LINK`], [`OTHER`] |
//! | 16–30 | the byte | base | where the part begins |
//! | 31 | [`LITERAL`] | | |
//!
//! The end of a block has [`OTHER`], what has no meaning [`OTHER`] and [`BAD`].

use crate::Error;

pub(crate) const LITERAL: u32 = 1 << 31;
pub(crate) const OTHER: u32 = 1 << 15;
pub(crate) const LINK: u32 = 1 << 14;
pub(crate) const BAD: u32 = 1 << 13;

/// Bits that ask the main parts.
pub(crate) const LITERAL_BITS: u32 = 11;
pub(crate) const DISTANCE_BITS: u32 = 8;
pub(crate) const LENGTH_BITS: u32 = 7;

/// Literals, lengths and the end of a block: 288 codes of up to 15 bits take at most 2,342 entries; the power of two lets
/// a masked index need no check.
pub(crate) type Literals = [u32; 1 << 12];
/// 32 codes of up to 15 bits take at most 402 entries.
pub(crate) type Distances = [u32; 1 << 9];
/// Code lengths of the other two.
pub(crate) type Lengths = [u32; 1 << LENGTH_BITS];

/// The longest code.
const LONGEST: usize = 15;

/// What is to be decoded with a set of codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    Lengths,
    Literals,
    Distances,
}

/// Entries without the length of the code.
static LITERAL_SYMBOLS: [u32; 288] = literal_symbols();
static DISTANCE_SYMBOLS: [u32; 32] = distance_symbols();

const fn literal_symbols() -> [u32; 288] {
    let mut all = [OTHER | BAD; 288];
    let mut symbol = 0;
    while symbol < 256 {
        all[symbol] = LITERAL | (symbol as u32) << 16;
        symbol += 1;
    }
    all[256] = OTHER;
    // Eight lengths without further bits, then four each with one bit more; the last, 258, has none.
    let (mut symbol, mut base) = (257, 3);
    while symbol < 285 {
        let more = if symbol < 265 { 0 } else { (symbol as u32 - 261) / 4 };
        all[symbol] = base << 16 | more;
        base += 1 << more;
        symbol += 1;
    }
    all[285] = 258 << 16;
    all
}

const fn distance_symbols() -> [u32; 32] {
    let mut all = [OTHER | BAD; 32];
    let (mut symbol, mut base) = (0, 1);
    while symbol < 30 {
        let more = if symbol < 2 { 0 } else { symbol as u32 / 2 - 1 };
        all[symbol] = base << 16 | more;
        base += 1 << more;
        symbol += 1;
    }
    all
}

/// Fills `table`, whose main part is asked with `main` bits, for codes of the given lengths (0: no code, at most 15), one
/// a symbol.
///
/// Fails unless the codes fill their space exactly. As in zlib, a set of one code of one bit may leave the other one
/// unused, and there may be no codes at all for distances: using what has no code is an error then.
pub(crate) fn fill(table: &mut [u32], main: u32, lengths: &[u8], set: Set) -> Result<(), Error> {
    let (order, counts) = sorted(lengths);
    check(&counts, set)?;
    let entry = |index: usize, length: usize| {
        let symbol = usize::from(order[index]);
        let symbol = match set {
            Set::Lengths => (symbol as u32) << 16,
            Set::Literals => LITERAL_SYMBOLS[symbol],
            Set::Distances => DISTANCE_SYMBOLS[symbol],
        };
        symbol + (length as u32) * 0x101
    };
    // The part that is filled has as many entries as codes of the length in turn could have; for one bit more, it is
    // doubled. The first bit of a code is its lowest in an index.
    let (mut index, mut code) = (0, 0_usize);
    table[0] = OTHER | BAD | 0x101;
    for (length, count) in counts.iter().enumerate().take(main as usize + 1).skip(1) {
        let half = 1 << (length - 1);
        table.copy_within(..half, half);
        for _ in 0..*count {
            table[code] = entry(index, length);
            (index, code) = (index + 1, next(code, length));
        }
    }
    let (inner, mut end, mut part) = ((1 << main) - 1, 1 << main, (usize::MAX, 0, 0));
    for length in main as usize + 1..=LONGEST {
        let mut left = counts[length];
        while left > 0 {
            if part.0 != code & inner {
                let bits = part_bits(&counts, length, left, main as usize);
                part = (code & inner, end, bits);
                table[code & inner] = OTHER | LINK | (end as u32) << 16 | bits as u32;
                end += 1 << bits;
            }
            let (entry, step) = (entry(index, length), 1 << (length - main as usize));
            for at in (code >> main..1 << part.2).step_by(step) {
                table[part.1 + at] = entry;
            }
            (index, code, left) = (index + 1, next(code, length), left - 1);
        }
    }
    Ok(())
}

/// The symbols that have a code, by its length, and how many have each.
fn sorted(lengths: &[u8]) -> ([u16; 288], [u16; LONGEST + 1]) {
    let mut counts = [0_u16; LONGEST + 1];
    for length in lengths {
        counts[usize::from(*length & 15)] += 1;
    }
    let mut places = [0_u16; LONGEST + 2];
    for length in 1..=LONGEST {
        places[length + 1] = places[length] + counts[length];
    }
    let mut order = [0; 288];
    for (symbol, length) in (0..).zip(lengths).filter(|(_, length)| **length != 0) {
        let place = &mut places[usize::from(*length & 15)];
        order[usize::from(*place)] = symbol;
        *place += 1;
    }
    (order, counts)
}

fn check(counts: &[u16; LONGEST + 1], set: Set) -> Result<(), Error> {
    let mut left = 1_i32;
    for count in &counts[1..] {
        left = 2 * left - i32::from(*count);
        if left < 0 {
            return Err(Error::Codes);
        }
    }
    let longest = (1..=LONGEST).rfind(|length| counts[*length] > 0).unwrap_or(0);
    match (left, set, longest) {
        (0, ..) | (_, Set::Distances, 0) | (_, Set::Distances | Set::Literals, 1) => Ok(()),
        _ => Err(Error::Codes),
    }
}

/// The code after `code`, both with their first bit lowest.
fn next(code: usize, length: usize) -> usize {
    let zeros = !code & ((1 << length) - 1);
    match zeros.checked_ilog2() {
        Some(bit) => code & ((1 << bit) - 1) | 1 << bit,
        None => 0,
    }
}

/// How many bits tell the codes of one beginning apart whose first has `length`, of which there are `left`.
fn part_bits(counts: &[u16; LONGEST + 1], length: usize, left: u16, main: usize) -> usize {
    let mut bits = length - main;
    let mut used = i32::from(left);
    while used < 1 << bits && main + bits < LONGEST {
        bits += 1;
        used = 2 * used + i32::from(counts[main + bits]);
    }
    bits
}
