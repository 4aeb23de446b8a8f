//! Registries that misbehave: each ends in a typed error or is got over, within its time.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use futures::StreamExt;
use gantry_registry::fake::{Fake, Fault, Options, Rule};
use gantry_registry::{Access, Config, Error, Reason, Registry};
use gantry_types::{Descriptor, ErrorKind, HasKind};

struct Scene {
    fake: Fake,
    registry: Registry,
    descriptor: Descriptor,
    bytes: bytes::Bytes,
}

async fn scene() -> Scene {
    let fake = fake().await;
    let bytes = noise(2_500_000);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    Scene { fake, registry: Registry::new(quick()), descriptor, bytes }
}

impl Scene {
    async fn fetch(&self) -> Result<Vec<u8>, Error> {
        fetch(&self.registry, &self.fake.reference("a:x"), &self.descriptor).await
    }

    /// Fetches under a fault that stays, then without it.
    async fn fails_by(&self, fault: Fault) -> Error {
        self.fake.fault(Rule::new("/blobs/", fault));
        let start = Instant::now();
        let error = self.fetch().await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}: {error}", start.elapsed());
        assert!(error.to_string().contains(self.descriptor.digest.as_str()), "{error}");
        assert!(error.to_string().contains(&self.fake.host()), "{error}");
        self.fake.clear_faults();
        assert_eq!(self.fetch().await.unwrap(), self.bytes, "the next fetch succeeds");
        error
    }

    async fn is_got_over(&self, rule: Rule) {
        self.fake.fault(rule);
        assert_eq!(self.fetch().await.unwrap(), self.bytes);
    }
}

#[tokio::test]
async fn a_body_cut_again_and_again_goes_on_where_it_broke() {
    let scene = scene().await;
    scene.is_got_over(Rule::new("/blobs/", Fault::CutAt(1_100_000)).times(2)).await;
    let ranges: Vec<_> = scene.fake.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges[..2], [None, Some("bytes=1100000-2499999".to_owned())]);
    // Eight breaks, more than failures are allowed in a row, but each time there was progress.
    let fake = &scene.fake;
    let bytes = noise(10_000_000);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    fake.fault(Rule::new("/blobs/", Fault::CutAt(1_200_000)).times(8));
    assert!(fetch(&scene.registry, &fake.reference("a:x"), &descriptor).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_body_always_cut_after_a_few_bytes_is_given_up() {
    let error = scene().await.fails_by(Fault::CutAt(10)).await;
    assert!(matches!(error.reason(), Reason::Broken(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn wrong_lengths_are_found_however_they_are_announced() {
    let scene = scene().await;
    for length in [2_499_999, 2_500_001, 0] {
        let error = scene.fails_by(Fault::WrongLength(length)).await;
        assert!(matches!(error.reason(), Reason::WrongLength { expected: 2_500_000, .. }), "{length}: {error}");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }
    let error = scene.fails_by(Fault::Longer(1)).await;
    assert!(matches!(error.reason(), Reason::WrongLength { .. }), "{error}");
    let error = scene.fails_by(Fault::Shorter(1_000)).await;
    // The rest is asked for as a part, which the fault cuts as well; either way too few bytes came.
    assert!(matches!(error.reason(), Reason::Short { .. } | Reason::WrongLength { .. }), "{error}");
}

#[tokio::test]
async fn a_server_error_or_two_are_got_over_and_endless_ones_are_unavailable() {
    let scene = scene().await;
    for status in [429, 500, 502, 503, 504] {
        scene.is_got_over(Rule::new("/blobs/", Fault::Status(status, None)).times(2)).await;
    }
    let error = scene.fails_by(Fault::Status(500, None)).await;
    assert!(matches!(error.reason(), Reason::Status { status: 500, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("scripted failure"), "{error}");
}

#[tokio::test]
async fn retry_after_is_waited_for_and_one_that_is_too_long_is_an_error_at_once() {
    let scene = scene().await;
    let start = Instant::now();
    scene.is_got_over(Rule::new("/blobs/", Fault::Status(429, Some("1".into()))).times(1)).await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    let error = scene.fails_by(Fault::Status(429, Some("3600".into()))).await;
    assert!(matches!(error.reason(), Reason::Status { status: 429, retry_after: Some(_), .. }), "{error}");
}

#[tokio::test]
async fn a_trickle_is_given_up_and_a_slow_start_is_not() {
    let scene = scene().await;
    let error = scene.fails_by(Fault::Trickle(1, Duration::from_millis(50))).await;
    assert!(matches!(error.reason(), Reason::TooSlow { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    scene.is_got_over(Rule::new("/blobs/", Fault::Slow(Duration::from_millis(200)))).await;
}

#[tokio::test]
async fn silence_ends_in_an_error_that_names_the_wait() {
    let error = scene().await.fails_by(Fault::Silence).await;
    assert!(matches!(error.reason(), Reason::Timeout { waited_for: "answer", .. }), "{error}");
    assert!(error.to_string().contains("no answer within 600ms"), "{error}");
}

#[tokio::test]
async fn a_slow_reader_is_not_held_against_the_registry() {
    let scene = scene().await;
    let blob = scene.registry.fetch(&scene.fake.reference("a:x"), &scene.descriptor, 0, &Access::anonymous()).await;
    let mut blob = blob.unwrap();
    let mut received = blob.next().await.unwrap().unwrap().len();
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    while let Some(bytes) = blob.next().await {
        received += bytes.unwrap().len();
    }
    assert_eq!(received, scene.bytes.len());
    assert_eq!(scene.fake.count("GET"), 1);
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever_and_not_to_nonsense() {
    let scene = scene().await;
    let error = scene.fails_by(Fault::RedirectLoop).await;
    assert!(matches!(error.reason(), Reason::Redirect(_)), "{error}");
    for nonsense in ["ftp://x/", "http://user:pw@x/", "http://"] {
        let error = scene.fails_by(Fault::Redirect(nonsense.into())).await;
        assert!(matches!(error.reason(), Reason::Redirect(_)), "{error}");
        assert!(!error.to_string().contains("pw"), "{error}");
    }
    let elsewhere = fake().await;
    elsewhere.put_blob("b", "x", scene.bytes.clone());
    let target = format!("{}/v2/b/blobs/{}?signature=s3cr3t", elsewhere.url(), scene.descriptor.digest);
    scene.is_got_over(Rule::new("/blobs/", Fault::Redirect(target))).await;
    assert_eq!(elsewhere.count("GET /v2/b/blobs"), 1);
}

#[tokio::test]
async fn giant_headers_and_401_loops_end() {
    let scene = scene().await;
    let error = scene.fails_by(Fault::GiantHeaders(1 << 20)).await;
    assert!(matches!(error.reason(), Reason::Broken(_)), "{error}");
    scene.fake.clear_requests();
    scene.fake.fault(Rule::new("/blobs/", Fault::Unauthorized));
    let error = scene.fetch().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unauthenticated | ErrorKind::NotFound), "{error}");
    assert!(scene.fake.requests().len() < 10);
}

#[tokio::test]
async fn wrong_manifests_are_found_by_digest_and_length() {
    let (fake, image) = (fake().await, small_image());
    let reference = fake.put_image("a", "v1", &image);
    let registry = Registry::new(quick());
    let get = async || registry.manifest(&reference, image.descriptor(), &Access::anonymous()).await;
    fake.fault(Rule::new("/manifests/", Fault::WrongBytes));
    assert!(matches!(get().await.unwrap_err().reason(), Reason::WrongDigest { .. }));
    fake.clear_faults();
    fake.fault(Rule::new("/manifests/", Fault::WrongLength(10)));
    assert!(matches!(get().await.unwrap_err().reason(), Reason::WrongLength { .. }));
    fake.clear_faults();
    fake.fault(Rule::new("/manifests/", Fault::Longer(100 << 20)));
    assert!(matches!(get().await.unwrap_err().reason(), Reason::TooBig { .. }));
    fake.clear_faults();
    fake.fault(Rule::new("/manifests/", Fault::WrongDigestHeader));
    let by_digest = fake.reference(&format!("a@{}", image.descriptor().digest));
    let error = registry.resolve(&by_digest, &Access::anonymous()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::WrongDigest { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn a_body_that_does_not_have_the_announced_digest_is_not_resolved() {
    let fake = fake_with(Options { head: false, ..Options::default() }).await;
    let reference = fake.put_image("a", "v1", &small_image());
    fake.fault(Rule::new("/manifests/", Fault::WrongDigestHeader).method("GET"));
    let error = Registry::new(quick()).resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::WrongDigest { .. }), "{error}");
}

#[tokio::test]
async fn a_dropped_fetch_stops_and_gives_its_slot_back() {
    let scene = scene().await;
    let registry = Registry::new(Config { max_transfers: 1, ..quick() });
    let reference = scene.fake.reference("a:x");
    for _ in 0..3 {
        let blob = registry.fetch(&reference, &scene.descriptor, 0, &Access::anonymous()).await.unwrap();
        drop(blob);
    }
    scene.fake.fault(Rule::new("/blobs/", Fault::Silence).times(1));
    let stuck = fetch(&registry, &reference, &scene.descriptor);
    assert!(tokio::time::timeout(Duration::from_millis(100), stuck).await.is_err());
    assert_eq!(fetch(&registry, &reference, &scene.descriptor).await.unwrap(), scene.bytes);
}

#[tokio::test]
async fn a_limit_on_bytes_a_second_holds() {
    let scene = scene().await;
    let registry = Registry::new(Config { max_bytes_per_second: 5_000_000, ..quick() });
    let start = Instant::now();
    fetch(&registry, &scene.fake.reference("a:x"), &scene.descriptor).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
}

#[tokio::test]
async fn random_faults_never_give_a_wrong_byte_or_a_hang() {
    let scene = scene().await;
    let faults = [
        Fault::CutAt(700_000),
        Fault::Status(503, None),
        Fault::Shorter(1_500_000),
        Fault::WrongLength(3_000_000),
        Fault::Slow(Duration::from_millis(20)),
        Fault::Longer(7),
        Fault::RedirectLoop,
    ];
    let mut good = 0;
    for round in 0..60 {
        scene.fake.clear_faults();
        for (at, fault) in faults.iter().enumerate() {
            if (round * 7 + at * 3) % 5 == 0 {
                scene.fake.fault(Rule::new("/blobs/", fault.clone()).after((round % 3) as u32).times(1));
            }
        }
        let fetched = tokio::time::timeout(Duration::from_secs(5), scene.fetch()).await.unwrap();
        if let Ok(bytes) = fetched {
            assert!(bytes == scene.bytes, "round {round}");
            good += 1;
        }
    }
    assert!(good > 10, "{good}");
}
