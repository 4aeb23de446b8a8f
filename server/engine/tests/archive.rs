//! Push, export and import: what goes out comes back the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use common::{Host, registry};
use gantry_engine::transfer::{Export, ImageReference, Import, ProgressSink, Push, Unpack};
use gantry_engine::{ErrorKind, HasKind, Platform};
use gantry_registry::image::Builder;

async fn pulled(host: &Host) -> (gantry_registry::fake::Fake, gantry_engine::images::Image) {
    let fake = registry().await;
    let image = Builder::new().file("a", "one", 0o644).layer().file("b", "two", 0o600).entrypoint(&["/a"]).build();
    let reference = fake.put_image("test/image", "1", &image);
    let image = host.pull(&reference).await.unwrap();
    (fake, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_can_be_pulled_by_another() {
    let host = Host::new().await;
    let (fake, image) = pulled(&host).await;
    let to = fake.reference("other/place:2");
    let push =
        Push { name: image.name.clone(), reference: to.clone(), platforms: Vec::new(), access: Default::default() };
    let (sink, mut told) = ProgressSink::channel();
    host.engine.transfer.push(&host.scope, push, sink).await.unwrap();
    let mut lines = Vec::new();
    while let Ok(progress) = told.try_recv() {
        lines.push(progress);
    }
    let manifest = lines.iter().find(|line| line.name == format!("manifest-{}", image.target.digest)).unwrap();
    assert_eq!((manifest.event.as_str(), &manifest.parents), ("waiting", &vec![image.name.clone()]));
    let other = Host::new().await;
    assert_eq!(other.pull(&to).await.unwrap().target.digest, image.target.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_is_imported_unpacked_and_the_same() {
    let host = Host::new().await;
    let (_fake, image) = pulled(&host).await;
    let path = host.dir.path().join("archive.tar");
    let file = tokio::fs::File::create(&path).await.unwrap();
    let export = Export { names: vec![image.name.clone()], ..Export::default() };
    host.engine.transfer.export(&host.scope, Box::new(file), export, ProgressSink::default()).await.unwrap();
    let other = Host::new().await;
    let file = tokio::fs::File::open(&path).await.unwrap();
    let unpack = Unpack::new(Platform::host(), "");
    let every_name = ImageReference { is_prefix: true, allow_overwrite: true, ..ImageReference::default() };
    let import = Import { unpacks: vec![unpack], references: vec![every_name], ..Import::default() };
    let images =
        other.engine.transfer.import(&other.scope, Box::new(file), import, ProgressSink::default()).await.unwrap();
    assert_eq!(
        images.iter().map(|i| (&i.name, &i.target.digest)).collect::<Vec<_>>(),
        [(&image.name, &image.target.digest)]
    );
    other.engine.gc.collect().await.unwrap();
    let config = other.engine.transfer.config_of(&other.scope, &image.target, &Platform::host()).await.unwrap();
    let labels = other.engine.content.info(&other.scope, &config.digest).await.unwrap().labels;
    let top = &labels["containerd.io/gc.ref.snapshot.overlayfs"];
    assert_eq!(other.file(top, "b").await.as_deref(), Some(&b"two"[..]));
    other.engine.images.delete(&other.scope, &image.name, None, true).await.unwrap();
    other.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_archive_is_refused_and_leaves_nothing() {
    for bytes in [&b"no archive at all"[..], &[0; 10_240][..], &[0x1f, 0x8b, 8, 0, 1][..]] {
        let host = Host::new().await;
        let archive = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let refused =
            host.engine.transfer.import(&host.scope, archive, Import::default(), ProgressSink::default()).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
        host.assert_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_archive_leaves_nothing() {
    let host = Host::new().await;
    let (_fake, image) = pulled(&host).await;
    let path = host.dir.path().join("archive.tar");
    let file = tokio::fs::File::create(&path).await.unwrap();
    let export = Export { names: vec![image.name], ..Export::default() };
    host.engine.transfer.export(&host.scope, Box::new(file), export, ProgressSink::default()).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    let other = Host::new().await;
    let half = Box::new(std::io::Cursor::new(whole[..whole.len() / 2].to_vec()));
    let refused = other.engine.transfer.import(&other.scope, half, Import::default(), ProgressSink::default()).await;
    assert!(refused.is_err());
    other.assert_empty().await;
}
