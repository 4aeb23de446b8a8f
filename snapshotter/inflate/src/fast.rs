//! The loop in which nearly all time is spent: symbols of a block as long as there is room on both sides. It looks at its
//! limits once a round, and does not check again what follows from that; all `unsafe` of this crate is here.
//!
//! What made it fast: the next entry is looked up before the bits behind it are put into the buffer, and most matches are
//! copied without a loop.
#![allow(unsafe_code)]

use crate::Error;
use crate::decoder::Tables;
use crate::flat::{Flat, MARGIN, Symbol};
use crate::input::{FILLED, Input, mask};
use crate::table::{BAD, DISTANCE_BITS, LINK, LITERAL, LITERAL_BITS, OTHER};

/// What a round may read: two words, the second at most eight bytes behind the first, and some more.
const READ: usize = 32;
/// Symbols that are copied at once.
const BLOCK: usize = 16;
/// The longest match (RFC 1951, 3.2.5).
const LONGEST: usize = 258;
// A round writes two literals and a match with the rest of its last block, or three literals.
const _: () = assert!(2 + LONGEST + 2 * BLOCK <= MARGIN);

/// Decodes symbols until the end of the block (`true`), or until the input has few bytes left or the output no room;
/// what is left of either is for the careful loop. Needs a filled `out` up to its position.
pub(crate) fn symbols<S: Symbol>(input: &mut Input<'_>, out: &mut Flat<S>, tables: &Tables) -> Result<bool, Error> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi1") && std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has the instructions.
        return unsafe { symbols_bmi(input, out, tables) };
    }
    rounds(input, out, tables)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn symbols_bmi<S: Symbol>(input: &mut Input<'_>, out: &mut Flat<S>, tables: &Tables) -> Result<bool, Error> {
    rounds(input, out, tables)
}

#[inline(always)]
fn rounds<S: Symbol>(input: &mut Input<'_>, flat: &mut Flat<S>, tables: &Tables) -> Result<bool, Error> {
    let (bytes, out, limit) = (input.bytes, flat.symbols.as_mut_slice(), flat.limit);
    assert!(limit <= out.len().saturating_sub(MARGIN));
    let Some(last) = bytes.len().checked_sub(READ) else { return Ok(false) };
    if input.at > last || flat.at >= limit {
        return Ok(false);
    }
    // Above its lowest six bits `count` is nothing: whole entries are subtracted from it.
    let (mut buffer, mut count, mut read, mut at) = (input.buffer, input.count, input.at, flat.at);
    macro_rules! fill {
        () => {
            // SAFETY: `read` is not behind `last` at the beginning of a round, moves by at most seven, and there are two
            // of these in a round.
            buffer |= unsafe { word(bytes, read) } << (count & 63);
            read += ((count & 63) ^ 63) as usize >> 3;
            count |= FILLED;
        };
    }
    macro_rules! take {
        ($entry:ident) => {
            buffer >>= $entry & 63;
            count = count.wrapping_sub($entry);
        };
    }
    macro_rules! put {
        ($entry:ident) => {
            // SAFETY: `at` is before `limit` at the beginning of a round, which puts at most three.
            unsafe { *out.get_unchecked_mut(at) = S::of(($entry >> 16) as u8) };
            at += 1;
            take!($entry);
        };
    }
    macro_rules! look {
        () => {
            tables.literals[(buffer & mask(LITERAL_BITS)) as usize]
        };
    }
    fill!();
    let mut entry = look!();
    // A round begins with a filled buffer and the entry that it begins with.
    let end = loop {
        let round = 'literals: {
            if entry & LITERAL == 0 {
                break 'literals false;
            }
            put!(entry);
            entry = look!();
            if entry & LITERAL == 0 {
                break 'literals false;
            }
            put!(entry);
            entry = look!();
            if entry & LITERAL == 0 {
                break 'literals false;
            }
            put!(entry);
            true
        };
        if !round {
            if entry & LINK != 0 {
                entry = linked(&tables.literals, LITERAL_BITS, entry, buffer);
            }
            if entry & LITERAL != 0 {
                put!(entry);
            } else if entry & BAD != 0 {
                break Err(Error::Code);
            } else if entry & OTHER != 0 {
                take!(entry);
                break Ok(true);
            } else {
                // Two literals and a length took at most 42 bits: a main entry can be asked before more are there.
                let length = value(entry, buffer);
                take!(entry);
                let mut far = tables.distances[(buffer & mask(DISTANCE_BITS)) as usize];
                fill!();
                if far & LINK != 0 {
                    far = linked(&tables.distances, DISTANCE_BITS, far, buffer);
                }
                if far & BAD != 0 {
                    break Err(Error::Code);
                }
                let distance = value(far, buffer);
                take!(far);
                if distance > at {
                    break Err(Error::Far);
                }
                entry = look!();
                fill!();
                // SAFETY: the distance leads to what is written already, and behind `limit` there is a margin.
                unsafe { copy(out, at, distance, length) };
                at += length;
                if read > last || at >= limit {
                    break Ok(false);
                }
                continue;
            }
        }
        entry = look!();
        fill!();
        if read > last || at >= limit {
            break Ok(false);
        }
    };
    (input.buffer, input.count, input.at, flat.at) = (buffer & mask(count & 63), count & 63, read, at);
    input.give_back();
    end
}

/// The entry of a code that is longer than what the main part is asked with.
#[inline(always)]
pub(crate) fn linked<const N: usize>(table: &[u32; N], main: u32, link: u32, bits: u64) -> u32 {
    table[((link >> 16) as usize + (bits >> main & mask(link & 63)) as usize) % N]
}

/// The length or distance of an entry, `bits` beginning with its code.
#[inline(always)]
pub(crate) fn value(entry: u32, bits: u64) -> usize {
    (entry >> 16) as usize + ((bits & mask(entry & 63)) >> (entry >> 8 & 15)) as usize
}

/// The eight bytes at `at`, the first lowest.
///
/// # Safety
///
/// There are eight.
#[inline(always)]
unsafe fn word(bytes: &[u8], at: usize) -> u64 {
    debug_assert!(at + 8 <= bytes.len());
    // SAFETY: as the caller says; any alignment will do.
    u64::from_le(unsafe { bytes.as_ptr().add(at).cast::<u64>().read_unaligned() })
}

/// Copies `length` symbols from `distance` before `at`, which may be among those that are copied. What is behind may
/// become anything, up to the rest of two blocks.
///
/// # Safety
///
/// `0 < distance <= at`, and there are `length` symbols and two blocks more at `at`.
#[inline(always)]
unsafe fn copy<S: Symbol>(out: &mut [S], at: usize, distance: usize, length: usize) {
    debug_assert!(0 < distance && distance <= at && at + length + 2 * BLOCK <= out.len());
    let (from, end) = (at - distance, at + length);
    if distance >= length.min(BLOCK) {
        // SAFETY: all blocks begin before `end` or one behind `at`; so there is another one behind each.
        unsafe {
            block(out, from, at);
            block(out, from + BLOCK, at + BLOCK);
            let mut to = at + 2 * BLOCK;
            while to < end {
                block(out, to - distance, to);
                to += BLOCK;
            }
        }
        return;
    }
    // What is repeated is shorter than a block. Once it is there twice, it may as well be twice as long.
    let (mut to, mut distance) = (at, distance);
    while to < end {
        // SAFETY: as above; the distance is at most what was written since `from`.
        unsafe { block(out, to - distance, to) };
        to += distance.min(BLOCK);
        distance = if distance < BLOCK { 2 * distance } else { distance };
    }
}

/// Copies a block.
///
/// # Safety
///
/// There is one at both places.
#[inline(always)]
unsafe fn block<S: Symbol>(out: &mut [S], from: usize, to: usize) {
    debug_assert!(from.max(to) + BLOCK <= out.len());
    let out = out.as_mut_ptr();
    // SAFETY: as the caller says; a block is read before it is written, so both may overlap.
    unsafe { out.add(to).cast::<[S; BLOCK]>().write_unaligned(out.add(from).cast::<[S; BLOCK]>().read_unaligned()) };
}
