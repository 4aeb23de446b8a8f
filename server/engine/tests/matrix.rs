//! Very many pulls from a registry that misbehaves at random: none hangs, none leaks, none leaves half an image.
//!
//! `GANTRY_PULLS` says how many (120 by default), `GANTRY_SEED` where chance begins.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::time::Duration;

use common::Host;
use gantry_engine::Filter;
use gantry_engine::check::Range;
use gantry_registry::fake::{Fake, Fault, Rule};
use gantry_registry::image::{Builder, Image};
use gantry_types::Reference;
use gantry_types::media_type::Compression;

/// Pulls at once.
const TOGETHER: usize = 8;
/// Far longer than any pull may take with these settings.
const HANGS: Duration = Duration::from_secs(60);

/// A small generator: the same seed gives the same faults.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }

    fn fault(&mut self) -> Fault {
        let bytes = self.below(40_000);
        match self.below(15) {
            0 => Fault::Slow(Duration::from_millis(self.below(400) as u64)),
            1 | 2 => Fault::CutAt(bytes),
            3 => Fault::Unauthorized,
            4 => Fault::Status([500, 502, 503, 429, 404, 403][self.below(6)], None),
            5 => Fault::Status(429, Some("1".into())),
            6 => Fault::WrongBytes,
            7 => Fault::WrongLength(bytes),
            8 => Fault::Longer(1 + bytes),
            9 => Fault::Shorter(bytes),
            10 => Fault::Trickle(1 + self.below(2000), Duration::from_millis(5)),
            11 => Fault::RedirectLoop,
            12 => Fault::GiantHeaders(1 << 18),
            13 => Fault::Silence,
            _ => Fault::WrongDigestHeader,
        }
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Images that share nothing, of three layers each.
fn serve(fake: &Fake) -> Vec<(Image, Reference)> {
    let one = |number: usize| {
        let compression = [Compression::Gzip, Compression::Zstd, Compression::None][number % 3];
        let noise: Vec<u8> =
            (0..30_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number as u8).collect();
        let builder = Builder::new().compression(compression).file(&format!("big-{number}"), noise, 0o644);
        let builder = builder.layer().directory("d", 0o750).file(&format!("d/{number}"), "x", 0o600);
        let image = builder.layer().file("d/.wh.gone", "", 0o644).file(&format!("top-{number}"), "y", 0o644).build();
        let reference = fake.put_image(&format!("matrix/n{number}"), "1", &image);
        (image, reference)
    };
    (0..TOGETHER).map(one).collect()
}

fn misbehave(fake: &Fake, chance: &mut Chance, served: &[(Image, Reference)]) {
    fake.clear_faults();
    for (image, reference) in served {
        for _ in 0..chance.below(4) {
            let blobs = image.blobs();
            let path = match chance.below(3) {
                0 => format!("{}/manifests/", reference.path()),
                _ => format!("{}/blobs/{}", reference.path(), blobs[chance.below(blobs.len())].0.digest),
            };
            let times = 1 + u32::try_from(chance.below(5)).unwrap();
            fake.fault(Rule::new(path, chance.fault()).times(times).after(u32::try_from(chance.below(2)).unwrap()));
        }
    }
}

/// What became of the pulls of a round: whole, refused, or broken off by their caller.
#[derive(Default, Debug)]
struct Tally {
    whole: u64,
    refused: u64,
    broken_off: u64,
}

async fn round(host: &Host, chance: &mut Chance, served: &[(Image, Reference)], tally: &mut Tally) {
    let patience: Vec<Duration> = served
        .iter()
        .map(|_| if chance.below(6) == 0 { Duration::from_millis(chance.below(120) as u64) } else { HANGS })
        .collect();
    let pulls = served
        .iter()
        .zip(&patience)
        .map(|((_, reference), patience)| async move { tokio::time::timeout(*patience, host.pull(reference)).await });
    let outcomes = futures::future::join_all(pulls).await;
    let named = host.images().await;
    for (((_, reference), outcome), patience) in served.iter().zip(outcomes).zip(&patience) {
        let name = reference.to_string();
        match outcome {
            Ok(Ok(_)) => {
                tally.whole += 1;
                let range = Range::Images(host.scope.namespace.clone(), vec![name.clone()]);
                let report = host.engine.check.check(range, false).await.unwrap();
                assert_eq!(report.findings, [], "{name}");
                assert!(report.snapshots == 3 && report.blobs == 5, "all of {name} is here: {report:?}");
                host.engine.images.delete(&host.scope, &name, None, true).await.unwrap();
            }
            Ok(Err(_)) => {
                tally.refused += 1;
                assert!(!named.contains(&name), "{name} was refused, and is there");
            }
            Err(_) => {
                assert!(*patience < HANGS, "the pull of {name} hangs: {:?}", host.engine.ops.list());
                tally.broken_off += 1;
                // A name that came at the last moment is of a whole image.
                let _ = host.engine.images.delete(&host.scope, &name, None, true).await;
            }
        }
    }
}

/// With the registry well again every image comes at once, which no leaked permit lets it; then nothing is left.
async fn all_is_well(host: &Host, fake: &Fake, served: &[(Image, Reference)]) {
    fake.clear_faults();
    let pulls = served.iter().map(|(_, reference)| tokio::time::timeout(HANGS, host.pull(reference)));
    for pulled in futures::future::join_all(pulls).await {
        pulled.expect("no permit was leaked").unwrap();
    }
    for (_, reference) in served {
        host.engine.images.delete(&host.scope, &reference.to_string(), None, true).await.unwrap();
    }
    for status in host.engine.content.statuses(&host.scope, &Filter::default()).await.unwrap() {
        // Those of pulls that were broken off are kept for the next one, for a while.
        host.engine.content.abort(&host.scope, &status.reference).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_from_a_registry_that_misbehaves_at_random_end_whole_or_not_at_all() {
    let (pulls, seed) = (variable("GANTRY_PULLS", 120), variable("GANTRY_SEED", 20_260_101));
    let host = Host::with(|config| {
        config.concurrent_unpacks = 2;
        let registry = &mut config.registry;
        registry.max_transfers = 3;
        registry.answer_timeout = Duration::from_millis(300);
        registry.slow_window = Duration::from_millis(500);
        registry.max_failures = 2;
        registry.backoff = Duration::from_millis(2);
        registry.max_retry_after = Duration::from_millis(20);
    })
    .await;
    let fake = common::registry().await;
    let served = serve(&fake);
    let (mut chance, mut tally) = (Chance(seed | 1), Tally::default());
    let rounds = pulls.div_ceil(TOGETHER as u64);
    for number in 0..rounds {
        misbehave(&fake, &mut chance, &served);
        round(&host, &mut chance, &served, &mut tally).await;
        fake.clear_requests();
        if number % 50 == 49 {
            all_is_well(&host, &fake, &served).await;
            println!("{} pulls: {tally:?}", (number + 1) * TOGETHER as u64);
        }
    }
    all_is_well(&host, &fake, &served).await;
    println!("seed {seed}: {tally:?}");
    assert!(tally.whole > 0 && tally.refused > 0, "{tally:?}");
}
