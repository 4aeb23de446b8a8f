//! The same image with its layers in another form.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use common::{Host, registry};
use gantry_engine::images::Image;
use gantry_engine::transfer::{Convert, LayerForm, ProgressSink, Unpack};
use gantry_engine::{ErrorKind, HasKind, Platform};
use gantry_registry::image::{self, Builder};
use gantry_types::media_type::Compression;

async fn pulled() -> (Host, Image) {
    let (host, fake) = (Host::new().await, registry().await);
    let image = Builder::new()
        .file("etc/hello", "from below", 0o644)
        .file("etc/gone", "", 0o644)
        .layer()
        .file("bin/program", vec![7; 300_000], 0o755)
        .hard_link("bin/same", "bin/program")
        .symlink("bin/to", "program")
        .file("etc/.wh.gone", "", 0o644)
        .docker()
        .build();
    let reference = fake.put_image("library/test", "latest", &image);
    let image = host.pull(&reference).await.unwrap();
    (host, image)
}

fn to(source: &Image, form: LayerForm, target: &str) -> Convert {
    Convert { source: source.name.clone(), target: target.into(), form, platforms: Vec::new() }
}

async fn json(host: &Host, digest: &gantry_types::Digest) -> serde_json::Value {
    serde_json::from_slice(&host.engine.content.read_all(&host.scope, digest, 1 << 20).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_form_unpacks_to_the_same_files_and_is_the_same_each_time() {
    let (host, source) = pulled().await;
    let forms = [
        (LayerForm::Plain, "application/vnd.oci.image.layer.v1.tar"),
        (LayerForm::Gzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (LayerForm::Zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (LayerForm::Estargz, "application/vnd.oci.image.layer.v1.tar+gzip"),
    ];
    for (form, media_type) in forms {
        let name = format!("localhost/{}:1", format!("{form:?}").to_lowercase());
        let converted = host.engine.transfer.convert(&host.scope, &to(&source, form, &name)).await.unwrap();
        let again =
            host.engine.transfer.convert(&host.scope, &to(&converted, form, "localhost/again:1")).await.unwrap();
        assert_eq!(converted.target, again.target, "{form:?}");
        host.engine.gc.collect().await.unwrap();
        let manifest = json(&host, &converted.target.digest).await;
        for layer in manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], media_type, "{form:?}");
            let table = &layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"];
            assert_eq!(table.is_string(), form == LayerForm::Estargz, "{layer}");
        }
        let unpack = Unpack::new(Platform::host(), "");
        let top = host.engine.transfer.unpack(&host.scope, &converted, &unpack, ProgressSink::default()).await.unwrap();
        assert_eq!(host.file(&top, "etc/hello").await.as_deref(), Some(&b"from below"[..]));
        assert_eq!(host.file(&top, "bin/same").await, Some(vec![7; 300_000]));
        assert_eq!(host.file(&top, "bin/to").await.map(|bytes| bytes.len()), Some(300_000));
        assert_eq!(host.file(&top, "etc/gone").await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_what_is_here_is_converted() {
    let (host, fake) = (Host::new().await, registry().await);
    let one = |arch: &str| {
        let platform = format!("linux/{arch}").parse().unwrap();
        Builder::new().platform(platform).file("arch", arch, 0o644).compression(Compression::Gzip).build()
    };
    let other = if Platform::host().architecture == "amd64" { "arm64" } else { "amd64" };
    let index = image::Image::index(vec![one(other), one(&Platform::host().architecture)], false);
    let source = host.pull(&fake.put_image("library/many", "1", &index)).await.unwrap();
    let target =
        host.engine.transfer.convert(&host.scope, &to(&source, LayerForm::Zstd, "localhost/z:1")).await.unwrap();
    let manifests = json(&host, &target.target.digest).await["manifests"].clone();
    assert_eq!(manifests.as_array().unwrap().len(), 1, "{manifests}");
    assert_eq!(manifests[0]["platform"]["architecture"], Platform::host().architecture.as_str());
    let mut foreign = to(&source, LayerForm::Zstd, "localhost/f:1");
    foreign.platforms = vec![format!("linux/{other}").parse().unwrap()];
    let error = host.engine.transfer.convert(&host.scope, &foreign).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
