//! Pulling and unpacking, from a registry that behaves and from one that does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Host, pull, registry};
use gantry_engine::transfer::{Access, Credential, ProgressSink, Pull, Secret, Unpack};
use gantry_engine::{ErrorKind, Filter, HasKind, Platform};
use gantry_registry::Provided;
use gantry_registry::fake::{Fake, Fault, Login, Options, Rule};
use gantry_registry::image::{self, Builder, Image};
use gantry_types::media_type::Compression;
use gantry_types::{Digest, Reference};

fn two_layers() -> Image {
    Builder::new()
        .file("etc/hello", "from the first layer", 0o644)
        .file("etc/gone", "for a while", 0o600)
        .layer()
        .file("bin/program", vec![7; 300_000], 0o755)
        .file("etc/.wh.gone", "", 0o644)
        .entrypoint(&["/bin/program"])
        .build()
}

async fn serve(image: &Image) -> (Fake, Reference) {
    let fake = registry().await;
    let reference = fake.put_image("library/test", "latest", image);
    (fake, reference)
}

/// Layers' blobs; the configuration comes first in the image.
fn layers(image: &Image) -> Vec<Digest> {
    let layer = |d: &gantry_types::Descriptor| gantry_types::media_type::layer_compression(&d.media_type).is_some();
    image.blobs().iter().filter(|(d, _)| layer(d)).map(|(d, _)| d.digest.clone()).collect()
}

fn top_snapshot(labels: &gantry_engine::Labels) -> String {
    labels["containerd.io/gc.ref.snapshot.overlayfs"].clone()
}

async fn config_labels(host: &Host, image: &Image) -> gantry_engine::Labels {
    let is_config = |d: &gantry_types::Descriptor| gantry_types::media_type::is_config(&d.media_type);
    let config = image.blobs().iter().find(|(d, _)| is_config(d)).unwrap();
    host.engine.content.info(&host.scope, &config.0.digest).await.unwrap().labels
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_named_unpacked_labelled_and_kept() {
    let (host, image) = (Host::new().await, two_layers());
    let (_fake, reference) = serve(&image).await;
    let pulled = host.pull(&reference).await.unwrap();
    assert_eq!(
        (pulled.name.as_str(), &pulled.target.digest),
        (reference.to_string().as_str(), &image.descriptor().digest)
    );
    host.engine.gc.collect().await.unwrap();
    let labels = config_labels(&host, &image).await;
    let top = top_snapshot(&labels);
    assert_eq!(host.file(&top, "etc/hello").await.as_deref(), Some(&b"from the first layer"[..]));
    assert_eq!(host.file(&top, "bin/program").await.map(|f| f.len()), Some(300_000));
    assert_eq!(host.file(&top, "etc/gone").await, None, "whiteouts hold");
    assert_eq!(labels["containerd.io/distribution.source.127.0.0.1"], "library/test");
    let manifest = host.engine.content.info(&host.scope, &pulled.target.digest).await.unwrap();
    assert!(manifest.labels.contains_key("containerd.io/gc.ref.content.config"));
    assert!(manifest.labels.contains_key("containerd.io/gc.ref.content.l.1"));
    for layer in layers(&image) {
        let labels = host.engine.content.info(&host.scope, &layer).await.unwrap().labels;
        assert!(labels["containerd.io/uncompressed"].starts_with("sha256:"), "{labels:?}");
    }
    assert!(host.engine.leases.list(&host.scope, &Filter::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_are_fetched_at_once_than_asked_for() {
    let image = (0..4).fold(Builder::new(), |b, n| b.layer().file(&format!("file-{n}"), [n], 0o644)).build();
    let layers = &layers(&image);
    let asked = |fake: &Fake| layers.iter().filter(|layer| fake.count(layer.hex()) > 0).count();
    let host = Host::with(|config| config.registry.answer_timeout = Duration::from_secs(1)).await;
    for (limit, fewest, most) in [(1, 1, 1), (2, 1, 2)] {
        let (fake, reference) = serve(&image).await;
        layers.iter().for_each(|layer| fake.fault(Rule::new(layer.hex(), Fault::Silence)));
        let pull = Pull { concurrent_downloads: Some(limit), ..pull(&reference) };
        // The first that is not answered ends it, and none that waited for its turn begins.
        host.engine.transfer.pull(&host.scope, pull, ProgressSink::default()).await.unwrap_err();
        assert!((fewest..=most).contains(&asked(&fake)), "{limit}: {}", asked(&fake));
    }
    // Without a limit none waits for another.
    let host = Host::new().await;
    let (fake, reference) = serve(&image).await;
    layers.iter().for_each(|layer| fake.fault(Rule::new(layer.hex(), Fault::Silence)));
    let pull = Pull { concurrent_downloads: Some(usize::MAX), ..pull(&reference) };
    let all = async {
        while asked(&fake) < layers.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        pulled = host.engine.transfer.pull(&host.scope, pull, ProgressSink::default()) => panic!("{pulled:?}"),
        all = tokio::time::timeout(Duration::from_secs(20), all) => all.expect("all layers are asked for within 20 s"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_leaves_nothing() {
    let (host, image) = (Host::new().await, two_layers());
    let (_fake, reference) = serve(&image).await;
    host.pull(&reference).await.unwrap();
    host.engine.images.delete(&host.scope, &reference.to_string(), None, true).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_and_dockers_types_unpack_alike() {
    for (compression, docker) in [(Compression::Gzip, true), (Compression::Zstd, false), (Compression::None, false)] {
        let host = Host::new().await;
        let mut builder = Builder::new().file("a/b", "c", 0o644).compression(compression);
        if docker {
            builder = builder.docker();
        }
        let image = builder.build();
        let (_fake, reference) = serve(&image).await;
        host.pull(&reference).await.unwrap();
        let top = top_snapshot(&config_labels(&host, &image).await);
        assert_eq!(host.file(&top, "a/b").await.as_deref(), Some(&b"c"[..]), "{compression:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_only_the_platform_asked_for_is_fetched() {
    let host = Host::new().await;
    let one = |arch: &str| {
        Builder::new().platform(format!("linux/{arch}").parse().unwrap()).file("arch", arch, 0o644).build()
    };
    let other = if Platform::host().architecture == "amd64" { "arm64" } else { "amd64" };
    let images = vec![one(other), one(&Platform::host().architecture)];
    let foreign = layers(&images[0]);
    let index = Image::index(images, false);
    let (fake, reference) = serve(&index).await;
    let pulled = host.pull(&reference).await.unwrap();
    assert_eq!(pulled.target.digest, index.descriptor().digest);
    assert_eq!(fake.count(foreign[0].as_str()), 0);
    let mut none = pull(&reference);
    none.platforms = vec!["linux/s390x".parse().unwrap()];
    none.name = "other".into();
    let error = host.engine.transfer.pull(&host.scope, none, ProgressSink::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_share_one_fetch_and_one_unpacking() {
    let (host, image) = (Host::new().await, two_layers());
    let (fake, reference) = serve(&image).await;
    let mut events = host.engine.events.subscribe(Filter::parse(&["topic==\"/snapshot/commit\""]).unwrap());
    let pulls = (0..8).map(|_| host.pull(&reference));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    for layer in layers(&image) {
        assert_eq!(fake.count(layer.as_str()), 1, "one request for {layer}");
    }
    let mut commits = 0;
    while tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_ok() {
        commits += 1;
    }
    assert_eq!(commits, 2, "one commit for each layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_image_moves_only_the_layer_it_does_not_share() {
    let host = Host::new().await;
    let base = || Builder::new().file("base", vec![1; 10_000], 0o644);
    let (first, second) = (base().build(), base().layer().file("more", "x", 0o644).build());
    let fake = registry().await;
    host.pull(&fake.put_image("test/first", "1", &first)).await.unwrap();
    fake.clear_requests();
    host.pull(&fake.put_image("test/second", "1", &second)).await.unwrap();
    let shared: BTreeSet<_> = layers(&first).into_iter().collect();
    for layer in layers(&second) {
        assert_eq!(fake.count(layer.as_str()), usize::from(!shared.contains(&layer)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_names_every_blob_and_ends_with_the_image() {
    let (host, image) = (Host::new().await, two_layers());
    let (_fake, reference) = serve(&image).await;
    let (sink, mut told) = ProgressSink::channel();
    host.engine.transfer.pull(&host.scope, pull(&reference), sink).await.unwrap();
    let mut events = Vec::new();
    while let Ok(progress) = told.try_recv() {
        events.push((progress.event, progress.name));
    }
    for layer in layers(&image) {
        for event in ["waiting", "complete", "extracting", "extracted"] {
            assert!(events.contains(&(event.into(), format!("layer-{layer}"))), "{event} of {layer} in {events:?}");
        }
    }
    assert_eq!(events.last().unwrap().0, format!("Completed pull from OCI Registry ({reference})"));
}

/// Pulls under a fault, checks the error and that nothing stays, then that the next pull works.
async fn fails_cleanly(image: &Image, rule: impl FnOnce(&Image) -> Rule, check: impl FnOnce(&gantry_engine::Error)) {
    let host = Host::new().await;
    let (fake, reference) = serve(image).await;
    fake.fault(rule(image));
    let error = host.pull(&reference).await.expect_err("the pull must fail");
    check(&error);
    host.assert_empty().await;
    fake.clear_faults();
    host.pull(&reference).await.expect("the next pull must succeed");
    assert_eq!(host.images().await.len(), 1);
}

fn of_layer(image: &Image, number: usize, fault: Fault) -> Rule {
    Rule::new(layers(image)[number].to_string(), fault)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_other_bytes_is_refused() {
    for number in [0, 1] {
        let named = layers(&two_layers())[number].to_string();
        fails_cleanly(
            &two_layers(),
            |i| of_layer(i, number, Fault::WrongBytes),
            |error| {
                let error = error.to_string();
                assert!(
                    error.contains(&named) && error.contains("127.0.0.1"),
                    "{error} should name {named} and the registry"
                );
                assert!(error.contains("unexpected commit digest"), "{error} should say what is wrong");
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer_is_refused() {
    fails_cleanly(&two_layers(), |i| of_layer(i, 0, Fault::Shorter(20)), |_| {}).await;
    fails_cleanly(&two_layers(), |i| of_layer(i, 1, Fault::CutAt(10)), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_say_no_end_in_their_kind_of_error() {
    for (status, kind) in
        [(404, ErrorKind::NotFound), (429, ErrorKind::ResourceExhausted), (500, ErrorKind::Unavailable)]
    {
        for of_manifest in [true, false] {
            let rule = |i: &Image| match of_manifest {
                true => Rule::new("/manifests/", Fault::Status(status, None)),
                false => of_layer(i, 0, Fault::Status(status, None)),
            };
            fails_cleanly(&two_layers(), rule, |error| {
                let kinds = [kind, ErrorKind::Unavailable];
                assert!(kinds.contains(&error.kind()), "{status}: {:?} {error}", error.kind());
                assert!(error.to_string().contains(&status.to_string()), "{error} should name {status}");
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_know_who_we_are_is_an_error_of_its_own_kind() {
    let login = Login::Basic { username: "u".into(), password: "p".into() };
    let fake = Fake::start(Options { login, ..Options::default() }).await.unwrap();
    let reference = fake.put_image("library/test", "latest", &two_layers());
    let host = Host::new().await;
    let error = host.pull(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    host.assert_empty().await;
    let credential = Credential::from_pair("u", Secret::new("p"));
    let access = Access::new(Arc::new(Provided::new(reference.host(), credential)));
    let with = Pull { access, ..pull(&reference) };
    host.engine.transfer.pull(&host.scope, with, ProgressSink::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_holds_something_else_than_the_configuration_says_is_refused() {
    let host = Host::new().await;
    let honest = Builder::new().file("a", "b", 0o644).build();
    let bytes = honest.blobs().iter().find(|(d, _)| d.digest == layers(&honest)[0]).unwrap().1.clone();
    let lying = Builder::new().blob(bytes, Compression::Gzip, Digest::of(b"something else")).build();
    let (_fake, reference) = serve(&lying).await;
    let error = host.pull(&reference).await.unwrap_err();
    assert!(
        error.to_string().contains("configuration says") && error.to_string().starts_with(&reference.to_string()),
        "{error}"
    );
    host.assert_empty().await;
}

fn tar_of(entries: &[(&str, char, &str)]) -> bytes::Bytes {
    let mut tar = Vec::new();
    for (path, kind, link) in entries {
        let mut header = [0u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(b"00000000000");
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = *kind as u8;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(&header);
    }
    tar.extend_from_slice(&[0; 1024]);
    tar.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_layer_writes_nothing_outside_and_leaves_nothing() {
    for entries in [
        &[("../../../../escaped", '0', "")][..],
        &[("link", '2', "../../../../"), ("link/escaped", '0', "")][..],
        &[("hard", '1', "../../../../etc/passwd")][..],
    ] {
        let host = Host::new().await;
        let image = Builder::new().tar(tar_of(entries)).build();
        let (_fake, reference) = serve(&image).await;
        let pulled = host.pull(&reference).await;
        let escaped = common::files_below(host.dir.path()).into_iter().filter(|p| p.ends_with("escaped"));
        let outside: Vec<_> = escaped.filter(|p| !p.to_string_lossy().contains("/snapshots/")).collect();
        assert!(outside.is_empty(), "{outside:?}");
        if pulled.is_err() {
            host.assert_empty().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zip_bomb_is_stopped_at_the_limit() {
    let host = Host::with(|config| config.unpack.max_bytes = 1 << 20).await;
    let image = Builder::new().file("bomb", vec![0; 8 << 20], 0o644).build();
    let (_fake, reference) = serve(&image).await;
    let error = host.pull(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_broken_off_goes_on_where_it_was() {
    let host = Host::new().await;
    let noise: Vec<u8> = (0..2_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = Builder::new().file("noise", noise, 0o644).build();
    let (fake, reference) = serve(&image).await;
    fake.fault(of_layer(&image, 0, Fault::Trickle(64 << 10, Duration::from_millis(20))));
    let broken = tokio::time::timeout(Duration::from_millis(700), host.pull(&reference)).await;
    assert!(broken.is_err(), "the trickle is slow enough to be broken off");
    let statuses = host.engine.content.statuses(&host.scope, &Filter::default()).await.unwrap();
    assert_eq!(statuses.len(), 1, "the ingest waits");
    let directories = host.dir.path().join("root/snapshots/overlayfs/snapshots");
    let made = || std::fs::read_dir(&directories).into_iter().flatten().flatten().count();
    for _ in 0..40 {
        if made() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(made(), 0, "no half unpacked directory stays");
    assert!(host.engine.leases.list(&host.scope, &Filter::default()).await.unwrap().is_empty(), "no lease stays");
    fake.clear_faults();
    fake.clear_requests();
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.pull(&reference).await.unwrap();
    let ranged = fake.requests().into_iter().filter(|r| r.path.contains(layers(&image)[0].as_str()));
    assert!(
        ranged.clone().all(|r| r.header("range").is_some_and(|range| !range.starts_with("bytes=0-"))),
        "{:?}",
        ranged.collect::<Vec<_>>()
    );
    let active: Vec<_> = host.snapshots().await.into_iter().filter(|s| s.key.starts_with("extract-")).collect();
    assert!(active.is_empty(), "no half unpacked snapshot: {active:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_unpacked_later_and_tagged() {
    let (host, image) = (Host::new().await, two_layers());
    let (_fake, reference) = serve(&image).await;
    let mut only_fetch = pull(&reference);
    only_fetch.unpacks.clear();
    let pulled = host.engine.transfer.pull(&host.scope, only_fetch, ProgressSink::default()).await.unwrap();
    assert!(host.snapshots().await.is_empty());
    for snapshotter in ["native", "overlayfs"] {
        let unpack = Unpack::new(Platform::host(), snapshotter);
        let top = host.engine.transfer.unpack(&host.scope, &pulled, &unpack, ProgressSink::default()).await.unwrap();
        host.engine.gc.collect().await.unwrap();
        let snapshot = host.engine.snapshots.stat(&host.scope, snapshotter, &top).await.unwrap();
        assert_eq!(snapshot.kind, gantry_engine::snapshots::SnapshotKind::Committed);
    }
    let tagged = host.engine.transfer.tag(&host.scope, &pulled.name, "localhost/other:1", Default::default(), false);
    assert_eq!(tagged.await.unwrap().target, pulled.target);
    let again =
        host.engine.transfer.tag(&host.scope, &pulled.name, "localhost/other:1", Default::default(), false).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reopening_images_are_there_and_orphans_are_gone() {
    let (host, image) = (Host::new().await, two_layers());
    let (_fake, reference) = serve(&image).await;
    host.pull(&reference).await.unwrap();
    let Host { engine, scope, dir } = host;
    engine.close().await;
    drop(engine);
    let engine = reopen(dir.path()).await;
    let host = Host { engine, scope, dir };
    assert_eq!(host.images().await, [reference.to_string()]);
    let top = top_snapshot(&config_labels(&host, &image).await);
    assert!(host.file(&top, "etc/hello").await.is_some());
}

/// Opens once the former engine has let go of its files.
async fn reopen(dir: &std::path::Path) -> gantry_engine::Engine {
    for _ in 0..50 {
        match gantry_engine::Engine::open(common::config(dir)).await {
            Ok((engine, report)) => {
                assert!(report.repairs.is_empty(), "{:?}", report.repairs);
                return engine;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the former engine does not let go");
}

#[test]
fn the_fake_registrys_compressions_are_the_ones_we_know() {
    assert!(!image::compress(b"x", Compression::Gzip).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_two_repositories_says_both() {
    let (host, image) = (Host::new().await, two_layers());
    let fake = registry().await;
    for repository in ["one/name", "other/name"] {
        host.pull(&fake.put_image(repository, "1", &image)).await.unwrap();
    }
    for digest in layers(&image).iter().chain([&image.descriptor().digest]) {
        let labels = host.engine.content.info(&host.scope, digest).await.unwrap().labels;
        assert_eq!(labels["containerd.io/distribution.source.127.0.0.1"], "one/name,other/name");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_deletions_and_collections_at_once_harm_nobody() {
    let host = Host::with(|config| config.gc.schedule_delay = Duration::ZERO).await;
    let fake = registry().await;
    let base = || Builder::new().file("base", vec![3; 50_000], 0o644);
    let images: Vec<_> = (0..4).map(|n| base().layer().file(&format!("own-{n}"), "x", 0o644).build()).collect();
    let references: Vec<_> =
        images.iter().map(|i| fake.put_image("many/images", &i.descriptor().digest.hex()[..8], i)).collect();
    let rounds = references.iter().map(|reference| async {
        for _ in 0..5 {
            host.pull(reference).await.unwrap();
            host.engine.images.delete(&host.scope, &reference.to_string(), None, false).await.unwrap();
        }
        host.pull(reference).await.unwrap();
    });
    futures::future::join_all(rounds).await;
    host.engine.gc.collect().await.unwrap();
    for (number, image) in images.iter().enumerate() {
        let top = top_snapshot(&config_labels(&host, image).await);
        assert!(host.file(&top, &format!("own-{number}")).await.is_some());
        assert_eq!(host.file(&top, "base").await.map(|f| f.len()), Some(50_000));
        for layer in layers(image) {
            let bytes = host.engine.content.read_all(&host.scope, &layer, 1 << 20).await.unwrap();
            assert_eq!(Digest::of(&bytes), layer);
        }
    }
    for reference in &references {
        host.engine.images.delete(&host.scope, &reference.to_string(), None, true).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_layers_go_are_not_fetched_for_what_is_unpacked_and_come_again_for_a_push() {
    let host = Host::with(|config| config.discard_unpacked_layers = true).await;
    let image = two_layers();
    let (fake, reference) = serve(&image).await;
    host.pull(&reference).await.unwrap();
    host.engine.gc.collect().await.unwrap();
    for layer in layers(&image) {
        assert_eq!(host.engine.content.info(&host.scope, &layer).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let top = top_snapshot(&config_labels(&host, &image).await);
    assert!(host.file(&top, "etc/hello").await.is_some());
    fake.clear_requests();
    host.pull(&reference).await.unwrap();
    assert!(layers(&image).iter().all(|layer| fake.count(layer.as_str()) == 0), "what is unpacked is not fetched");
    let mut archive = tokio::io::duplex(64 << 10);
    let export = gantry_engine::transfer::Export { names: vec![reference.to_string()], ..Default::default() };
    let writing = host.engine.transfer.export(&host.scope, Box::new(archive.0), export, ProgressSink::default());
    let reading = async { tokio::io::copy(&mut archive.1, &mut tokio::io::sink()).await.unwrap() };
    let (written, bytes) = tokio::join!(writing, reading);
    written.unwrap();
    assert!(bytes > 1000, "the archive has {bytes} bytes");
    host.engine.images.delete(&host.scope, &reference.to_string(), None, true).await.unwrap();
    host.assert_empty().await;
}
