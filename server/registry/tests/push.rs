//! Pushing.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use gantry_registry::fake::{Fault, Login, Options, Rule};
use gantry_registry::{Access, Config, Pushed, Reason, Registry};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind};

#[tokio::test]
async fn an_image_is_pushed_whole_or_in_chunks_and_a_second_time_costs_nothing() {
    for push_chunk in [0, 100_000] {
        let (fake, image) = (fake().await, small_image());
        let registry = Registry::new(Config { push_chunk, ..quick() });
        let (access, reference) = (Access::anonymous(), fake.reference("a/b:v1"));
        let big = noise(350_001);
        let descriptor = Descriptor::new("x", Digest::of(&big), big.len() as u64);
        for expected in [Pushed::Sent, Pushed::Existed] {
            assert_eq!(registry.push_blob(&reference, &descriptor, &big, &[], &access).await.unwrap(), expected);
            for (descriptor, bytes) in image.blobs() {
                assert_eq!(registry.push_blob(&reference, descriptor, bytes, &[], &access).await.unwrap(), expected);
            }
            let (descriptor, bytes) = &image.manifests()[0];
            let pushed = registry.push_manifest(&reference, descriptor, bytes.clone(), &access).await.unwrap();
            assert_eq!(pushed, expected);
        }
        assert_eq!(fake.blob("a/b", &descriptor.digest).unwrap(), big);
        assert_eq!(fake.manifest("a/b", "v1").unwrap().1, image.manifests()[0].1);
        assert_eq!(fake.count("PATCH") > 3, push_chunk > 0);
    }
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted_and_otherwise_sent() {
    let fake = fake().await;
    let bytes = noise(1_000);
    let descriptor = fake.put_blob("from", "x", bytes.clone());
    let (registry, access) = (Registry::new(quick()), Access::anonymous());
    let from = ["nowhere".to_owned(), "from".to_owned()];
    let to = fake.reference("to:v1");
    assert_eq!(registry.push_blob(&to, &descriptor, &bytes, &from, &access).await.unwrap(), Pushed::Mounted);
    let other = fake.reference("other:v1");
    assert_eq!(registry.push_blob(&other, &descriptor, &bytes, &from[..1], &access).await.unwrap(), Pushed::Sent);
    assert_eq!(fake.blob("other", &descriptor.digest).unwrap(), bytes);
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_where_the_registry_is() {
    for push_chunk in [0, 400_000] {
        let fake = fake().await;
        let bytes = noise(1_000_000);
        let descriptor = Descriptor::new("x", Digest::of(&bytes), 1_000_000);
        fake.fault(Rule::new("/uploads/", Fault::CutAt(150_000)).method("PUT").times(1));
        fake.fault(Rule::new("/uploads/", Fault::CutAt(250_000)).method("PATCH").times(2));
        let registry = Registry::new(Config { push_chunk, ..quick() });
        let pushed = registry.push_blob(&fake.reference("a:x"), &descriptor, &bytes, &[], &Access::anonymous()).await;
        assert_eq!(pushed.unwrap(), Pushed::Sent);
        assert_eq!(fake.blob("a", &descriptor.digest).unwrap(), bytes);
        assert!(fake.count("GET /v2/a/blobs/uploads/") >= 1);
    }
}

#[tokio::test]
async fn a_push_with_a_token_asks_for_what_it_needs() {
    let (username, password) = ("u".to_owned(), "hunter22".to_owned());
    let life = std::time::Duration::from_secs(60);
    let login_of = Login::Token { username, password, anonymous_pull: true, life, post_only: false };
    let fake = fake_with(Options { login: login_of, ..Options::default() }).await;
    let bytes = noise(1_000);
    let descriptor = fake.put_blob("from", "x", bytes.clone());
    let registry = Registry::new(quick());
    let (reference, from) = (fake.reference("to:v1"), ["from".to_owned()]);
    let access = login(&fake.host(), "u", "hunter22");
    let other = Descriptor::new("x", Digest::of(b"other"), 5);
    registry.push_blob(&reference, &other, &bytes::Bytes::from_static(b"other"), &[], &access).await.unwrap();
    assert_eq!(registry.push_blob(&reference, &descriptor, &bytes, &from, &access).await.unwrap(), Pushed::Mounted);
    let error = registry.push_blob(&fake.reference("no:v1"), &descriptor, &bytes, &[], &Access::anonymous()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn what_is_pushed_wrongly_is_refused_before_or_by_the_registry() {
    let fake = fake().await;
    let (registry, access, reference) = (Registry::new(quick()), Access::anonymous(), fake.reference("a:x"));
    let descriptor = Descriptor::new("x", Digest::of(b"right"), 5);
    let wrong = bytes::Bytes::from_static(b"wrong");
    let error = registry.push_manifest(&reference, &descriptor, wrong.clone(), &access).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Request(_)), "{error}");
    let error = registry.push_blob(&reference, &descriptor, &wrong, &[], &access).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    let short = bytes::Bytes::from_static(b"rig");
    let error = registry.push_blob(&reference, &descriptor, &short, &[], &access).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(fake.blob("a", &descriptor.digest).is_none());
}

#[tokio::test]
async fn a_registry_that_takes_nothing_ends_a_push() {
    let fake = fake().await;
    fake.fault(Rule::new("/uploads/", Fault::Silence).method("PUT"));
    let bytes = noise(5_000_000);
    let descriptor = Descriptor::new("x", Digest::of(&bytes), bytes.len() as u64);
    let push = async {
        let registry = Registry::new(quick());
        registry.push_blob(&fake.reference("a:x"), &descriptor, &bytes, &[], &Access::anonymous()).await
    };
    let error = tokio::time::timeout(std::time::Duration::from_secs(10), push).await.unwrap().unwrap_err();
    assert!(matches!(error.reason(), Reason::TooSlow { .. } | Reason::Timeout { .. }), "{error}");
}
