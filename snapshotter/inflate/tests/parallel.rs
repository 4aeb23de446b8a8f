//! Helpers change nothing but the time.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read};

use common::{how, packed, plain, random, reference, text};
use gantry_inflate::Reader;
use proptest::prelude::*;

/// How a stream is read: helpers, their chunk, how much is read alone before, input and output at once.
type Way = (usize, usize, usize, usize, usize);

fn ways() -> impl Strategy<Value = Way> {
    (1..=4_usize, 300..8_000_usize, 0..4_000_usize, 1..10_000_usize, 1..100_000_usize)
}

/// Reads streams with a byte between them until none is left; says what came, and how it ended.
fn read(bytes: &[u8], (helpers, chunk, alone, input, output): Way) -> (Vec<Vec<u8>>, Option<ErrorKind>) {
    let mut reader = Reader::new(BufReader::with_capacity(input, bytes));
    let (mut all, mut buffer) = (vec![Vec::new()], vec![0; output]);
    loop {
        if reader.taken() >= alone as u64 {
            reader.help(helpers, chunk);
        }
        match reader.inflate(&mut buffer) {
            Err(error) => return (all, Some(error.kind())),
            Ok(0) if reader.read(&mut [0]).unwrap() == 0 => return (all, None),
            Ok(0) if reader.fill_buf().unwrap().is_empty() => return (all, None),
            Ok(0) => all.push(Vec::new()),
            Ok(made) => all.last_mut().unwrap().extend_from_slice(&buffer[..made]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn helpers_make_the_same_of_streams_one_behind_the_other(
        members in prop::collection::vec((plain(300_000), how()), 1..4), way in ways(),
    ) {
        let packed = members.iter().flat_map(|(plain, (level, piece, full))| [packed(plain, *level, *piece, *full), vec![7]].concat());
        let (all, error) = read(&packed.collect::<Vec<u8>>(), way);
        prop_assert_eq!(error, None);
        prop_assert!(all.iter().eq(members.iter().map(|(plain, _)| plain)));
    }

    #[test]
    fn helpers_make_the_same_of_what_is_cut_off_or_changed(
        plain in plain(300_000), (level, piece, full) in how(), way in ways(),
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
        let expected = reference(&packed);
        packed.truncate(expected.as_ref().map_or(packed.len(), |(_, taken)| *taken));
        let (all, error) = read(&packed, way);
        let alone = read(&packed, (0, 1, 0, 1 << 20, 1 << 16));
        prop_assert_eq!(error, alone.1);
        match expected {
            Some((plain, _)) => prop_assert!(all == [plain]),
            None => prop_assert!(error.is_some()),
        }
    }
}

#[test]
fn most_of_a_long_stream_is_decoded_by_helpers() {
    let plain = text(5, 8 << 20);
    let packed = packed(&plain, 6, 0, false);
    for helpers in 1..=4 {
        let mut reader = Reader::new(&packed[..]);
        reader.help(helpers, 64 << 10);
        let (mut all, mut buffer) = (Vec::new(), vec![0; 128 << 10]);
        loop {
            match reader.inflate(&mut buffer).unwrap() {
                0 => break,
                made => all.extend_from_slice(&buffer[..made]),
            }
        }
        assert!(all == plain);
        assert!(reader.helped() > 6 << 20, "{} of {}", reader.helped(), plain.len());
    }
}

#[test]
fn a_reader_that_is_dropped_ends_its_helpers() {
    let packed = packed(&random(1, 1 << 20), 6, 0, false);
    for taken in [0, 1, 100_000] {
        let mut reader = Reader::new(&packed[..]);
        reader.help(3, 4 << 10);
        assert!(reader.inflate(&mut vec![0; taken]).is_ok());
    }
}

#[test]
fn a_bomb_among_helpers_comes_out_as_it_is() {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    (0..1024).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
    let packed = encoder.finish().unwrap();
    let mut reader = Reader::new(&packed[..]);
    reader.help(2, 100 << 10);
    let (mut buffer, mut total) = (vec![0; 128 << 10], 0);
    loop {
        match reader.inflate(&mut buffer).unwrap() {
            0 => break,
            made => total += made,
        }
    }
    assert_eq!(total, 1 << 30);
}
