//! The whole API over its socket: every method that the descriptors name is there, asks for a namespace where it needs
//! one, and answers nonsense with a code that tells the client what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use gantry_api::FILE_DESCRIPTOR_SET;
use gantry_api::pb::containerd::services::content::v1 as content;
use gantry_api::pb::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::pb::containerd::services::namespaces::v1 as namespaces;
use gantry_api::pb::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_daemon::app;
use gantry_daemon::config::Config;
use gantry_daemon::reload::Control;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// A daemon of its own directories, in this process.
struct Daemon {
    channel: Channel,
    stopping: CancellationToken,
    serving: JoinHandle<Result<(), app::Error>>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().join("gantry.sock");
        let (root, state) = (folder.path().join("root"), folder.path().join("state"));
        let mut config = Config { root, state, ..Config::default() };
        config.grpc.address.clone_from(&address);
        let (ready, told) = tokio::sync::oneshot::channel();
        let stopping = CancellationToken::new();
        let serving = tokio::spawn(app::run(config, Control::none(), stopping.clone(), move || {
            ready.send(()).expect("somebody waits for the daemon")
        }));
        told.await.expect("the daemon is ready");
        Daemon { channel: connect(&address).await, stopping, serving, _folder: folder }
    }

    async fn stop(self) {
        drop(self.channel);
        self.stopping.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

async fn connect(address: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", address.display())).unwrap();
    endpoint.connect().await.unwrap()
}

/// Every method of the gRPC API, as `/SERVICE/METHOD`.
fn methods() -> Vec<String> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let methods = services.flat_map(|(package, service)| {
        let name = format!("/{package}.{}", service.name());
        service.method.iter().map(move |method| format!("{name}/{}", method.name()))
    });
    methods.filter(|method| method.starts_with("/containerd.services") && !method.contains(".ttrpc.")).collect()
}

/// Methods that know no namespace, or take it from elsewhere.
fn needs_namespace(method: &str) -> bool {
    let free =
        ["/containerd.services.version", "/containerd.services.namespaces", "/containerd.services.introspection"];
    !free.iter().any(|service| method.starts_with(service))
        && !method.ends_with("Events/Forward")
        && !method.ends_with("Events/Subscribe")
}

/// How long a stream may stay silent before it is left.
const PATIENCE: Duration = Duration::from_millis(300);

/// Calls a method with a message of these bytes; how it ended. A stream that stays open counts as a success.
async fn call(channel: &Channel, method: &str, namespace: Option<&str>, message: Vec<u8>) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(Bytes::from(message)));
    if let Some(namespace) = namespace {
        request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    }
    let path = method.parse().unwrap();
    let answer = async {
        let mut answers = client.streaming(request, path, Raw).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Err(status)) => status.code(),
        Ok(Ok(())) | Err(_) => Code::Ok,
    }
}

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(len)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_that_needs_a_namespace_says_so() {
    let daemon = Daemon::start().await;
    for method in methods().iter().filter(|method| needs_namespace(method)) {
        let code = call(&daemon.channel, method, None, Vec::new()).await;
        assert_eq!(code, Code::FailedPrecondition, "{method}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_message_is_answered_with_a_code_that_says_what_to_do() {
    let daemon = Daemon::start().await;
    for method in methods() {
        let code = call(&daemon.channel, &method, Some("test"), Vec::new()).await;
        let understood = [Code::Ok, Code::InvalidArgument, Code::NotFound];
        let declined = code == Code::Unimplemented
            && ["Mounts/", "Transfer/", "Controller/Platform"].iter().any(|part| method.contains(part));
        assert!(understood.contains(&code) || declined, "{method}: {code:?}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_break_nothing() {
    let daemon = Daemon::start().await;
    for method in methods() {
        for message in [vec![0xff; 40], vec![0x0a, 0x7f, 1], b"\x0a\x02\xff\xfe".to_vec()] {
            let code = call(&daemon.channel, &method, Some("test"), message).await;
            assert!(!matches!(code, Code::Unavailable | Code::DataLoss), "{method}: {code:?}");
        }
    }
    assert_eq!(call(&daemon.channel, "/containerd.services.version.v1.Version/Version", None, vec![]).await, Code::Ok);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_climb_are_never_obeyed() {
    let daemon = Daemon::start().await;
    // Field 1 or 2 of most requests is an id, a name, a key or a digest.
    for name in ["../../etc", "/", "a/../b", "\n", "..", "sha256:../x"] {
        for field in [0x0a_u8, 0x12] {
            let mut message = vec![field, u8::try_from(name.len()).unwrap()];
            message.extend_from_slice(name.as_bytes());
            for method in methods() {
                let code = call(&daemon.channel, &method, Some("test"), message.clone()).await;
                assert!(!matches!(code, Code::DataLoss | Code::PermissionDenied), "{method} {name:?}: {code:?}");
            }
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_written_piece_by_piece_and_read_back() {
    let daemon = Daemon::start().await;
    let mut client = ContentClient::new(daemon.channel.clone());
    let data = Bytes::from(vec![7; 700_000]);
    let digest = gantry_types::Digest::of(&data).to_string();
    let piece = |action: content::WriteAction, offset: usize, data: Bytes| content::WriteContentRequest {
        action: action.into(),
        r#ref: "upload".into(),
        offset: i64::try_from(offset).unwrap(),
        data,
        ..Default::default()
    };
    let commit = content::WriteContentRequest {
        expected: digest.clone(),
        total: 700_000,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..piece(content::WriteAction::Commit, 700_000, Bytes::new())
    };
    let requests = vec![
        piece(content::WriteAction::Stat, 0, Bytes::new()),
        piece(content::WriteAction::Write, 0, data.slice(..300_000)),
        piece(content::WriteAction::Write, 300_000, data.slice(300_000..)),
        commit,
    ];
    let answers = client.write(in_test(tokio_stream::iter(requests))).await.unwrap().into_inner();
    let answers: Vec<_> = futures::TryStreamExt::try_collect(answers).await.unwrap();
    let offsets: Vec<i64> = answers.iter().map(|answer: &content::WriteContentResponse| answer.offset).collect();
    assert_eq!(offsets, [0, 300_000, 700_000, 700_000]);
    assert_eq!(answers[3].digest, digest);

    let range = content::ReadContentRequest { digest: digest.clone(), offset: 100, size: 600_000 };
    let pieces = client.read(in_test(range)).await.unwrap().into_inner();
    let pieces: Vec<content::ReadContentResponse> = futures::TryStreamExt::try_collect(pieces).await.unwrap();
    assert_eq!(pieces[0].offset, 0);
    assert_eq!(pieces.iter().map(|piece| piece.data.len()).sum::<usize>(), 600_000);

    let past = content::ReadContentRequest { digest, offset: 700_001, size: 0 };
    assert_eq!(client.read(in_test(past)).await.err().unwrap().code(), Code::OutOfRange);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_of_a_reference_is_told_to_come_back() {
    let daemon = Daemon::start().await;
    let mut client = ContentClient::new(daemon.channel.clone());
    let stat = content::WriteContentRequest { r#ref: "busy".into(), ..Default::default() };
    let (first, held) = tokio::sync::mpsc::channel(1);
    first.send(stat.clone()).await.unwrap();
    let held = tokio_stream::wrappers::ReceiverStream::new(held);
    let mut held = client.write(in_test(held)).await.unwrap().into_inner();
    held.message().await.unwrap().unwrap();
    let second = client.write(in_test(tokio_stream::once(stat))).await.unwrap().into_inner().message().await;
    assert_eq!(second.unwrap_err().code(), Code::Unavailable);
    drop((first, held));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_changed_by_its_whole_key() {
    let daemon = Daemon::start().await;
    let mut client = NamespacesClient::new(daemon.channel.clone());
    let key = "containerd.io/distribution.source.example.org:5000";
    let namespace = |value: &str| namespaces::Namespace {
        name: "labelled".into(),
        labels: [(key.to_owned(), value.to_owned()), ("other".into(), "x".into())].into(),
    };
    let mask = |path: &str| Some(prost_types::FieldMask { paths: vec![path.into()] });
    let only = namespaces::UpdateNamespaceRequest {
        namespace: Some(namespace("library/x")),
        update_mask: mask(&format!("labels.{key}")),
    };
    client.update(only).await.unwrap();
    let name = namespaces::GetNamespaceRequest { name: "labelled".into() };
    let now = client.get(name).await.unwrap().into_inner().namespace.unwrap();
    assert_eq!(now.labels, [(key.to_owned(), "library/x".to_owned())].into());
    let other = namespaces::UpdateNamespaceRequest { namespace: Some(namespace("")), update_mask: mask("name") };
    assert_eq!(client.update(other).await.unwrap_err().code(), Code::InvalidArgument);
    daemon.stop().await;
}

fn in_test<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "test".parse().unwrap());
    request
}
