//! One thread's decoder beside flate2.

mod common;

use common::{how, packed, plain, random, reference};
use gantry_inflate::{Error, Inflate};
use proptest::prelude::*;

/// Decodes with slices of input and output of the given sizes; says what came and how much was taken.
fn decoded(packed: &[u8], input: usize, output: usize) -> Result<Option<(Vec<u8>, usize)>, Error> {
    let mut inflate = Inflate::new();
    let (mut plain, mut at, mut buffer) = (Vec::new(), 0, vec![0; output]);
    loop {
        let step = inflate.inflate(&packed[at..packed.len().min(at + input)], &mut buffer)?;
        plain.extend_from_slice(&buffer[..step.made]);
        at += step.taken;
        if step.ended {
            return Ok(Some((plain, at)));
        }
        if step.taken == 0 && step.made == 0 {
            assert_eq!(at, packed.len(), "it stops before the end");
            return Ok(None);
        }
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1..40_usize, 40..5000_usize, Just(1 << 20)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_was_packed_comes_out_through_slices_of_any_size(
        plain in plain(100_000), (level, piece, full) in how(), input in sizes(), output in sizes(), behind in 0..20_usize,
    ) {
        let mut packed = packed(&plain, level, piece, full);
        let length = packed.len();
        packed.extend(random(3, behind));
        let (out, taken) = decoded(&packed, input, output).unwrap().unwrap();
        prop_assert!(out == plain);
        prop_assert_eq!(taken, length);
    }

    #[test]
    fn what_is_cut_off_or_changed_has_the_verdict_of_flate2(
        plain in plain(20_000), (level, piece, full) in how(), input in sizes(), output in sizes(),
        cut in any::<prop::sample::Index>(), bits in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let mut packed = packed(&plain, level, piece, full);
        if bits.is_empty() {
            packed.truncate(cut.index(packed.len()));
        }
        for bit in bits {
            let bit = bit.index(packed.len() * 8);
            packed[bit / 8] ^= 1_u8 << (bit % 8);
        }
        prop_assert!(decoded(&packed, input, output).ok().flatten() == reference(&packed));
    }

    #[test]
    fn any_bytes_have_the_verdict_of_flate2(
        mut bytes in prop::collection::vec(any::<u8>(), 1..400), kind in 0..4_u8, input in sizes(), output in sizes(),
    ) {
        // Mostly dynamic codes.
        bytes[0] = bytes[0] & !7 | if kind == 0 { 3 } else { 5 };
        prop_assert!(decoded(&bytes, input, output).ok().flatten() == reference(&bytes));
    }
}

/// Values of so many bits each, the lowest first.
fn bits(values: &[(u32, u32)]) -> Vec<u8> {
    let all = values.iter().flat_map(|(value, count)| (0..*count).map(move |bit| value >> bit & 1));
    let all: Vec<u32> = all.collect();
    all.chunks(8).map(|byte| byte.iter().rev().fold(0, |byte, bit| byte << 1 | *bit as u8)).collect()
}

/// The header of a last block with dynamic codes: these many, and the lengths of codes for code lengths as they come.
fn dynamic(literals: u32, distances: u32, lengths: &[u32]) -> Vec<(u32, u32)> {
    let counts = [(5, 3), (literals - 257, 5), (distances - 1, 5), (lengths.len() as u32 - 4, 4)];
    counts.into_iter().chain(lengths.iter().map(|length| (*length, 3))).collect()
}

/// As `dynamic`, with codes of one bit for 18 (eleven zeros and more: `1`) and of two for 1 (`01` in the stream).
fn sparse(literals: u32, distances: u32) -> Vec<(u32, u32)> {
    // In the order of 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1: 18 and 1 have a bit each.
    dynamic(literals, distances, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

const ONE: (u32, u32) = (0, 1);
const ZEROS: fn(u32) -> [(u32, u32); 2] = |count| [(1, 1), (count - 11, 7)];

#[test]
fn each_mistake_has_its_error() {
    let error = |values: &[(u32, u32)]| decoded(&[bits(values), vec![0; 8]].concat(), 1 << 20, 100).unwrap_err();
    assert_eq!(error(&[(7, 3)]), Error::Kind);
    assert_eq!(error(&[(1, 8), (5, 16), (5, 16)]), Error::Stored);
    assert_eq!(error(&[(5, 3), (30, 5)]), Error::Count);
    assert_eq!(error(&[(5, 3), (0, 5), (30, 5)]), Error::Count);
    // Three codes of one bit; one of two.
    assert_eq!(error(&dynamic(257, 1, &[1, 1, 1, 0])), Error::Codes);
    assert_eq!(error(&dynamic(257, 1, &[2, 0, 0, 0])), Error::Codes);
    // 16 comes first (its code is 0: 0 and 16 have a bit each, 0 the first); too many zeros.
    let first = [dynamic(257, 1, &[1, 0, 0, 1]), vec![(1, 1), (0, 2)]].concat();
    assert_eq!(error(&first), Error::Repeat);
    let many = [sparse(257, 1), ZEROS(138).to_vec(), ZEROS(138).to_vec()].concat();
    assert_eq!(error(&many), Error::Repeat);
    let endless = [sparse(257, 1), vec![ONE, ONE], ZEROS(138).to_vec(), ZEROS(118).to_vec()].concat();
    assert_eq!(error(&endless), Error::Endless);
    // Fixed codes: 286 (11000110) and 287, a distance of 30 (11110), and matches before the first byte.
    assert_eq!(error(&[(3, 3), (0b0110_0011, 8)]), Error::Code);
    assert_eq!(error(&[(3, 3), (0b1110_0011, 8)]), Error::Code);
    assert_eq!(error(&[(3, 3), (0b0000_1100, 8), (0b100_0000, 7), (0b01111, 5)]), Error::Code);
    assert_eq!(error(&[(3, 3), (0b0000_1100, 8), (0b100_0000, 7), (0b10000, 5)]), Error::Far);
}

#[test]
fn codes_may_be_missing_where_none_is_used() {
    // 0 and 256 have a bit each, no distance has one.
    let none = [sparse(257, 1), vec![ONE], ZEROS(138).to_vec(), ZEROS(117).to_vec(), vec![ONE]].concat();
    let zero = |rest: &[(u32, u32)]| bits(&[&none[..], rest].concat());
    let all = zero(&[(1, 1), (0, 7), (1, 1)]);
    assert_eq!(decoded(&all, 1 << 20, 100).ok(), reference(&all).map(Some));
    for byte in 0..=255 {
        let any = [zero(&[]), vec![byte; 9]].concat();
        assert_eq!(decoded(&any, 1 << 20, 100).ok().flatten(), reference(&any));
    }
}

#[test]
fn a_bomb_takes_no_more_memory_than_anything_else() {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    (0..1024).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
    let packed = encoder.finish().unwrap();
    let (mut inflate, mut buffer) = (Inflate::new(), vec![0; 128 << 10]);
    let (mut at, mut total) = (0, 0);
    loop {
        let step = inflate.inflate(&packed[at..], &mut buffer).unwrap();
        assert!(buffer[..step.made].iter().all(|byte| *byte == 0));
        (at, total) = (at + step.taken, total + step.made);
        if step.ended {
            break;
        }
    }
    assert_eq!(total, 1 << 30);
}
