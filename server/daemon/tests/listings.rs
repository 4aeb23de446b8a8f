//! Listings are encoded by hand: what they tell of a record is what `Get` tells.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use futures::TryStreamExt as _;
use gantry_api::pb::containerd::services::containers::v1 as containers;
use gantry_api::pb::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::pb::containerd::services::images::v1 as images;
use gantry_api::pb::containerd::services::images::v1::images_client::ImagesClient;
use gantry_api::pb::containerd::types::Descriptor;
use gantry_daemon::app;
use gantry_daemon::config::Config;
use gantry_daemon::reload::Control;
use prost_types::Any;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

fn in_test<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "test".parse().unwrap());
    request
}

/// With everything a record can hold, with little, and with long texts.
fn container(n: usize) -> containers::Container {
    let any = |value: String| Any { type_url: "example.test/Type".into(), value: value.into() };
    let full = n.is_multiple_of(3);
    containers::Container {
        id: format!("c{n}"),
        labels: (0..n % 4).map(|k| (format!("label/{k}"), format!("value {n}").repeat(k * 40 + 1))).collect(),
        image: if full { format!("example.test/image:{n}") } else { String::new() },
        runtime: Some(containers::container::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: full.then(|| any("options".repeat(n + 1))),
        }),
        spec: (!n.is_multiple_of(5)).then(|| any(format!("{{\"process\": {n}}}").repeat(n * 10))),
        snapshotter: if full { "overlayfs".into() } else { String::new() },
        snapshot_key: if full { format!("key{n}") } else { String::new() },
        extensions: (0..n % 3).map(|k| (format!("extension {k}"), any("e".repeat(k * 300)))).collect(),
        sandbox: if full { "pod".into() } else { String::new() },
        ..Default::default()
    }
}

fn image(n: usize) -> images::Image {
    images::Image {
        name: format!("example.test/i{n}:latest"),
        labels: (0..n).map(|k| (format!("label/{k}"), "v".repeat(k * 50 + 1))).collect(),
        target: Some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            digest: format!("sha256:{n:064x}"),
            size: i64::MAX - n as i64,
            annotations: (0..n).map(|k| (format!("annotation {k}"), format!("a{k}"))).collect(),
        }),
        ..Default::default()
    }
}

async fn containers_are_listed(channel: Channel) {
    let mut client = ContainersClient::new(channel);
    let mut known = Vec::new();
    for n in 0..40 {
        let made = containers::CreateContainerRequest { container: Some(container(n)) };
        client.create(in_test(made)).await.unwrap();
        let wanted = containers::GetContainerRequest { id: format!("c{n}") };
        known.extend(client.get(in_test(wanted)).await.unwrap().into_inner().container);
    }
    known.sort_by(|a, b| a.id.cmp(&b.id));
    let all = || in_test(containers::ListContainersRequest::default());
    assert_eq!(client.list(all()).await.unwrap().into_inner().containers, known);
    let stream = client.list_stream(all()).await.unwrap().into_inner();
    let messages: Vec<_> = stream.map_ok(|message| message.container.unwrap()).try_collect().await.unwrap();
    assert_eq!(messages, known);

    let filters = vec!["image~=image:1".to_owned(), "labels.\"label/2\"".to_owned()];
    let some = client.list(in_test(containers::ListContainersRequest { filters })).await.unwrap().into_inner();
    let selected = |c: &&containers::Container| c.image.contains("image:1") || c.labels.contains_key("label/2");
    assert_eq!(some.containers, known.iter().filter(selected).cloned().collect::<Vec<_>>());
    let bad = containers::ListContainersRequest { filters: vec!["id==".into(), "==".into()] };
    assert_eq!(client.list(in_test(bad.clone())).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.list_stream(in_test(bad)).await.err().unwrap().code(), Code::InvalidArgument);
    let nowhere = client.list(containers::ListContainersRequest::default()).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::FailedPrecondition);
}

async fn images_are_listed(channel: Channel) {
    let mut client = ImagesClient::new(channel);
    let mut known = Vec::new();
    for n in 0..12 {
        let made = images::CreateImageRequest { image: Some(image(n)), source_date_epoch: None };
        known.extend(client.create(in_test(made)).await.unwrap().into_inner().image);
    }
    known.sort_by(|a, b| a.name.cmp(&b.name));
    let all = images::ListImagesRequest::default();
    assert_eq!(client.list(in_test(all)).await.unwrap().into_inner().images, known);
    let filters = vec!["name==example.test/i7:latest".to_owned()];
    let one = client.list(in_test(images::ListImagesRequest { filters })).await.unwrap().into_inner().images;
    assert_eq!(one.iter().map(|image| &*image.name).collect::<Vec<_>>(), ["example.test/i7:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_listing_tells_of_a_record_is_what_get_tells() {
    let folder = tempfile::tempdir().unwrap();
    let address = folder.path().join("gantry.sock");
    let (root, state) = (folder.path().join("root"), folder.path().join("state"));
    let mut config = Config { root, state, ..Config::default() };
    config.grpc.address.clone_from(&address);
    let (ready, told) = tokio::sync::oneshot::channel();
    let stopping = CancellationToken::new();
    let serving = tokio::spawn(app::run(config, Control::none(), stopping.clone(), move || {
        ready.send(()).expect("somebody waits");
    }));
    told.await.unwrap();
    let endpoint = Endpoint::from_shared(format!("unix:{}", address.display())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    containers_are_listed(channel.clone()).await;
    images_are_listed(channel).await;
    stopping.cancel();
    serving.await.unwrap().unwrap();
}
