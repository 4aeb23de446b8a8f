//! Resolving and fetching from a registry that behaves.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use futures::StreamExt;
use gantry_registry::fake::{Fault, Options, Rule};
use gantry_registry::image::{Builder, Image};
use gantry_registry::{Access, Config, Ranged, Reason, Registry};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, media_type};

#[tokio::test]
async fn a_tag_resolves_by_head_and_its_manifest_and_blobs_are_what_was_put() {
    let (fake, image) = (fake().await, small_image());
    let reference = fake.put_image("a/b", "v1", &image);
    let registry = Registry::new(quick());
    let resolved = registry.resolve(&reference, &Access::anonymous()).await.unwrap();
    assert_eq!(&resolved.descriptor, image.descriptor());
    assert!(resolved.body.is_none() && resolved.host == fake.host());
    let bytes = registry.manifest(&reference, &resolved.descriptor, &Access::anonymous()).await.unwrap();
    assert_eq!(bytes, image.manifests()[0].1);
    for (descriptor, bytes) in image.blobs() {
        assert_eq!(&fetch(&registry, &reference, descriptor).await.unwrap(), bytes);
    }
    let config = &image.blobs()[0];
    assert_eq!(registry.manifest(&reference, &config.0, &Access::anonymous()).await.unwrap(), config.1);
}

#[tokio::test]
async fn docker_types_indexes_and_references_by_digest_resolve() {
    let fake = fake().await;
    let one = |platform: &str| Builder::new().docker().platform(platform.parse().unwrap()).build();
    let index = Image::index(vec![one("linux/amd64"), one("linux/arm64")], true);
    fake.put_image("multi", "latest", &index);
    let registry = Registry::new(quick());
    let by_digest = fake.reference(&format!("multi@{}", index.descriptor().digest));
    let resolved = registry.resolve(&by_digest, &Access::anonymous()).await.unwrap();
    assert_eq!(resolved.descriptor.media_type, media_type::DOCKER_INDEX);
    assert_eq!(fake.count("HEAD /v2/multi/manifests/sha256:"), 1);
}

#[tokio::test]
async fn a_registry_that_dislikes_head_is_asked_by_get_and_the_body_is_kept() {
    let fake = fake_with(Options { head: false, ..Options::default() }).await;
    let image = small_image();
    let reference = fake.put_image("a", "v1", &image);
    let resolved = Registry::new(quick()).resolve(&reference, &Access::anonymous()).await.unwrap();
    assert_eq!(&resolved.descriptor, image.descriptor());
    assert_eq!(resolved.body.unwrap(), image.manifests()[0].1);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_the_error_says_who_said_so() {
    let fake = fake().await;
    let registry = Registry::new(quick());
    let reference = fake.reference("no/such:tag");
    let error = registry.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&format!("{reference}: resolve at {}: status 404", fake.host())), "{error}");
    let descriptor = Descriptor::new("x", Digest::of(b"x"), 1);
    let error = fetch(&registry, &reference, &descriptor).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains(descriptor.digest.as_str()) && text.contains("BLOB_UNKNOWN"), "{text}");
    assert_eq!(fake.count("GET /v2/no/such/blobs"), 1, "a 404 is not asked for again");
}

#[tokio::test]
async fn a_fetch_goes_on_from_an_offset_with_and_without_ranges() {
    for ranges in [true, false] {
        let fake = fake_with(Options { ranges, ..Options::default() }).await;
        let bytes = noise(300_000);
        let descriptor = fake.put_blob("a", "x", bytes.clone());
        let (registry, reference) = (Registry::new(quick()), fake.reference("a:x"));
        let blob = registry.fetch(&reference, &descriptor, 100_001, &Access::anonymous()).await.unwrap();
        assert_eq!(blob.size(), 199_999);
        assert_eq!(collect(blob).await.unwrap(), &bytes[100_001..]);
        let blob = registry.fetch_range(&reference, &descriptor, 5..1_000, &Access::anonymous()).await.unwrap();
        assert_eq!(collect(blob).await.unwrap(), &bytes[5..1_000]);
        let end = registry.fetch(&reference, &descriptor, 300_000, &Access::anonymous()).await.unwrap();
        assert!(collect(end).await.unwrap().is_empty());
        let beyond = registry.fetch(&reference, &descriptor, 300_001, &Access::anonymous()).await.unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::InvalidArgument);
    }
}

fn in_parts() -> Config {
    Config { ranged: Ranged { threshold: 200_000, chunk: 65_536, parallel: 3, ..Ranged::default() }, ..quick() }
}

#[tokio::test]
async fn a_big_blob_comes_in_parts_in_order_even_when_some_break() {
    let fake = fake().await;
    let bytes = noise(1_000_003);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    fake.fault(Rule::new("/blobs/", Fault::CutAt(1_000)).after(3).times(2));
    fake.fault(Rule::new("/blobs/", Fault::Status(503, None)).after(5).times(1));
    let registry = Registry::new(in_parts());
    let reference = fake.reference("a:x");
    assert_eq!(fetch(&registry, &reference, &descriptor).await.unwrap(), bytes);
    assert!(fake.count("GET") >= 16 + 3, "{}", fake.count("GET"));
    let requests = fake.requests();
    assert!(requests.iter().all(|r| r.header("range").is_some()));
}

#[tokio::test]
async fn a_slow_reader_holds_no_more_than_the_parts_in_flight() {
    let fake = fake().await;
    let bytes = noise(2_000_000);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    let registry = Registry::new(in_parts());
    let mut blob = registry.fetch(&fake.reference("a:x"), &descriptor, 0, &Access::anonymous()).await.unwrap();
    let mut received = blob.next().await.unwrap().unwrap().to_vec();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(fake.count("GET") <= 4, "{}", fake.count("GET"));
    received.extend(collect(blob).await.unwrap());
    assert!(received == bytes);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_a_big_blob_once() {
    let fake = fake_with(Options { ranges: false, ..Options::default() }).await;
    let bytes = noise(1_000_003);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    assert_eq!(fetch(&Registry::new(in_parts()), &fake.reference("a:x"), &descriptor).await.unwrap(), bytes);
    assert_eq!(fake.count("GET"), 1);
}

#[tokio::test]
async fn tags_and_repositories_are_listed_over_all_pages() {
    let fake = fake_with(Options { page: 7, ..Options::default() }).await;
    let image = small_image();
    let mut expected: Vec<String> = (0..30).map(|n| format!("t{n}")).collect();
    for tag in &expected {
        fake.put_image("many", tag, &image);
    }
    fake.put_image("other/one", "x", &image);
    expected.sort();
    let registry = Registry::new(quick());
    assert_eq!(registry.tags(&fake.reference("many:x"), &Access::anonymous()).await.unwrap(), expected);
    assert_eq!(registry.catalog(&fake.host(), &Access::anonymous()).await.unwrap(), ["many", "other/one"]);
    assert_eq!(fake.count("/tags/list"), 5);
}

#[tokio::test]
async fn referrers_come_from_the_api_or_from_the_fallback_tag() {
    for referrers in [true, false] {
        let fake = fake_with(Options { referrers, ..Options::default() }).await;
        let image = small_image();
        let reference = fake.put_image("a", "v1", &image);
        let subject = image.descriptor();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "x/signature",
            "config": subject, "layers": [], "subject": subject,
        });
        let mut signature = fake.put_manifest("a", None, media_type::OCI_MANIFEST, manifest.to_string().into());
        signature.artifact_type = Some("x/signature".into());
        if !referrers {
            let index =
                serde_json::json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [signature] });
            let tag = subject.digest.as_str().replace(':', "-");
            fake.put_manifest("a", Some(&tag), media_type::OCI_INDEX, index.to_string().into());
        }
        let registry = Registry::new(quick());
        let list =
            async |kind| registry.referrers(&reference, &subject.digest, kind, &Access::anonymous()).await.unwrap();
        assert_eq!(list(None).await, std::slice::from_ref(&signature));
        assert_eq!(list(Some("x/signature")).await, std::slice::from_ref(&signature));
        assert!(list(Some("x/other")).await.is_empty());
        let none = registry.referrers(&reference, &signature.digest, None, &Access::anonymous()).await.unwrap();
        assert!(none.is_empty());
    }
}

#[tokio::test]
async fn old_big_wide_and_ambiguous_manifests_are_refused() {
    let fake = fake().await;
    let registry = Registry::new(Config { max_manifest_size: 50_000, max_entries: 10, ..quick() });
    let entry = Descriptor::new(media_type::OCI_LAYER, Digest::of(b""), 0);
    let wide = serde_json::json!({ "schemaVersion": 2, "layers": vec![entry.clone(); 11] }).to_string();
    let both = serde_json::json!({ "schemaVersion": 2, "layers": [], "manifests": [] }).to_string();
    let schema1 = serde_json::json!({ "schemaVersion": 1, "fsLayers": [] }).to_string();
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    type Case<'a> = (&'a str, &'a str, String, fn(&Reason) -> bool);
    let cases: [Case<'_>; 6] = [
        ("big", media_type::OCI_MANIFEST, " ".repeat(50_001), |r| matches!(r, Reason::TooBig { limit: 50_000, .. })),
        ("wide", "text/plain", wide, |r| matches!(r, Reason::TooBig { limit: 10, .. })),
        ("both", "text/plain", both, |r| matches!(r, Reason::Invalid(_))),
        ("schema1", "application/json", schema1.clone(), |r| matches!(r, Reason::Schema1)),
        ("signed", signed, schema1, |r| matches!(r, Reason::Schema1)),
        ("html", "text/html", "<html>".into(), |r| matches!(r, Reason::Invalid(_))),
    ];
    for (tag, kind, text, expected) in cases {
        fake.put_manifest("bad", Some(tag), kind, text.into());
        let reference = fake.reference(&format!("bad:{tag}"));
        let error = registry.resolve(&reference, &Access::anonymous()).await.unwrap_err();
        assert!(expected(error.reason()), "{tag}: {error}");
    }
}
