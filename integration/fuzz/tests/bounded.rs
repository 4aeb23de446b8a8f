//! Each target for a bounded time on any compiler: from seeds of its own kind, changed at random. The numbers are the same
//! in each run; `GANTRY_FUZZ_SECONDS` asks for other and more.
#![allow(clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use gantry_fuzz::TARGETS;

/// A small generator of numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap_or(0)
    }
}

/// Bytes that mean something to one of the readers.
const TELLING: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"..",
    b"/",
    b"\"",
    b"\\",
    b"\n",
    b"[",
    b"{",
    b"=",
    b"~=",
    b",",
    b":",
    b"@sha256:",
    b"%2e",
    b"-1",
    b"18446744073709551616",
    b"\xf0\x9f\x92\xa9",
    b"ustar\x0000",
    b"[[",
    b"'''",
    b"null",
    b"1e999",
];

fn changed(seed: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = u8::try_from(random.next() & 0xff).unwrap_or(0);
            }
            2 => drop(bytes.splice(at..at, TELLING[random.below(TELLING.len())].iter().copied())),
            3 => bytes.truncate(at),
            4 => {
                let end = at + random.below(bytes.len() - at + 1).min(64);
                bytes.drain(at..end);
            }
            5 => {
                let end = at + random.below(bytes.len() - at + 1).min(1024);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len() + 1);
                bytes.extend_from_slice(&other[from..(from + 512).min(other.len())]);
            }
        }
        bytes.truncate(64 << 10);
    }
    bytes
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("each target has seeds").flatten().map(|e| e.path()).collect();
    files.sort();
    files.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
}

#[test]
fn whatever_comes_from_outside_nothing_panics_and_what_is_understood_holds() {
    let seconds = std::env::var("GANTRY_FUZZ_SECONDS").ok().and_then(|text| text.parse::<u64>().ok());
    let only = std::env::var("GANTRY_FUZZ_TARGET").ok();
    for (name, target) in TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let mut random = Random(if seconds.is_some() { now | 1 } else { 0x9e37_79b9_7f4a_7c15 });
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        let start = Instant::now();
        let most = if seconds.is_some() { u64::MAX } else { 4000 };
        let limit = Duration::from_secs(seconds.unwrap_or(4));
        let mut count = 0_u64;
        while count < most && start.elapsed() < limit {
            let bytes = changed(&seeds[random.below(seeds.len())], &seeds, &mut random);
            let broken = std::panic::catch_unwind(|| target(&bytes)).is_err();
            if broken {
                let kept = std::env::temp_dir().join(format!("gantry-fuzz-{name}-{:016x}", random.0));
                std::fs::write(&kept, &bytes).expect("keep the input");
                panic!("{name} is broken by the input kept at {}", kept.display());
            }
            count += 1;
        }
        println!("{name}: {count} inputs in {:?}", start.elapsed());
    }
}
