//! Plain data of several natures, packed in several ways.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Decompress, FlushCompress, FlushDecompress, Status};
use proptest::prelude::*;

/// Bytes that follow from `seed` (xorshift64).
pub fn random(mut seed: u64, length: usize) -> Vec<u8> {
    seed |= 1;
    let next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Words of a small vocabulary.
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = ["layer ", "a ", "/usr/lib/", "\n", "of the ", "0644", "whiteout, ", "block"];
    let words = random(seed, length).into_iter().flat_map(|byte| match byte {
        0..16 => vec![byte],
        _ => WORDS[usize::from(byte) % 8].as_bytes().to_vec(),
    });
    words.take(length).collect()
}

/// Pieces whose matches are as far away as they can be.
pub fn far(seed: u64, length: usize) -> Vec<u8> {
    random(seed, 32 << 10).into_iter().cycle().take(length).collect()
}

/// Plain data of one nature or two.
pub fn plain(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let one = move || {
        (0..5_u8, any::<u64>(), 0..most).prop_map(|(nature, seed, length)| match nature {
            0 => random(seed, length),
            1 => text(seed, length),
            2 => vec![seed as u8; length],
            3 => far(seed, length),
            _ => random(seed, 1 + seed as usize % 40).into_iter().cycle().take(length).collect(),
        })
    };
    (one(), one()).prop_map(|(one, other)| [one, other].concat())
}

/// Packs `plain`, with a flush each `piece` bytes: at level 0 blocks are stored, small ones have fixed codes.
pub fn packed(plain: &[u8], level: u32, piece: usize, full: bool) -> Vec<u8> {
    if piece == 0 {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(plain).unwrap();
        return encoder.finish().unwrap();
    }
    let mut compress = flate2::Compress::new(Compression::new(level), false);
    let mut packed = Vec::with_capacity(plain.len() * 2 + (plain.len() / piece + 2) * 64);
    let flush = if full { FlushCompress::Full } else { FlushCompress::Sync };
    for piece in plain.chunks(piece) {
        compress.compress_vec(piece, &mut packed, flush).unwrap();
    }
    while compress.compress_vec(&[], &mut packed, FlushCompress::Finish).unwrap() != Status::StreamEnd {
        packed.reserve(1 << 10);
    }
    packed
}

/// How data may be packed.
pub fn how() -> impl Strategy<Value = (u32, usize, bool)> {
    (0..=9_u32, prop_oneof![Just(0_usize), 50..20_000_usize], any::<bool>())
}

/// What flate2 makes of a stream, and how much of it it takes; nothing where it fails or misses something.
pub fn reference(packed: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut decompress = Decompress::new(false);
    let (mut plain, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let (taken, made) = (decompress.total_in(), decompress.total_out());
        let status = decompress.decompress(&packed[taken as usize..], &mut buffer, FlushDecompress::None).ok()?;
        plain.extend_from_slice(&buffer[..(decompress.total_out() - made) as usize]);
        if status == Status::StreamEnd {
            return Some((plain, decompress.total_in() as usize));
        }
        if (taken, made) == (decompress.total_in(), decompress.total_out()) {
            return None;
        }
    }
}
