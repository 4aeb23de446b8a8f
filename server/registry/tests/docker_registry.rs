//! Against the real docker-registry (Debian package of that name), which these tests start for themselves. Where it is
//! not installed they say so and pass.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use gantry_registry::image::{Builder, Image};
use gantry_registry::{Access, Config, Pushed, Ranged, Registry};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Reference, media_type};

const PROGRAM: &str = "/usr/bin/docker-registry";
/// `puller` with the password `hunter22-s3cr3t`.
const HTPASSWD: &str = "puller:$2y$05$QPSt8WR4WtI2eECrLeDX9uMH0RxEv9fuhBXSsX4ekV.y8z3/.3Zgi\n";

/// A running docker-registry with a configuration and storage of its own.
struct Server {
    child: Child,
    _dir: tempfile::TempDir,
    host: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one with further lines of configuration; none where it is not installed.
    async fn start(http: &str, rest: &str, files: &[(&str, &str)]) -> Option<Server> {
        if !Path::new(PROGRAM).exists() {
            eprintln!("skipped: {PROGRAM} is not installed (apt-get install docker-registry)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (host, root) = (format!("127.0.0.1:{port}"), dir.path().display().to_string());
        let fill = |text: &str| text.replace("DIR", &root);
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http:\n  addr: {host}\n{}\n{}\n",
            fill(http),
            fill(rest)
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(dir.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Server { child: command.spawn().unwrap(), _dir: dir, host };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&server.host).await.is_ok() {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("docker-registry does not listen at {}", server.host);
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }
}

async fn push(registry: &Registry, reference: &Reference, image: &Image, access: &Access) -> Vec<Pushed> {
    let mut pushed = Vec::new();
    for (descriptor, bytes) in image.blobs() {
        pushed.push(registry.push_blob(reference, descriptor, bytes, &[], access).await.unwrap());
    }
    for (descriptor, bytes) in image.manifests() {
        let by_digest = format!("{}/{}@{}", reference.host(), reference.path(), descriptor.digest).parse().unwrap();
        let target = if descriptor == image.descriptor() { reference } else { &by_digest };
        pushed.push(registry.push_manifest(target, descriptor, bytes.clone(), access).await.unwrap());
    }
    pushed
}

async fn pull_and_compare(registry: &Registry, reference: &Reference, image: &Image, access: &Access) {
    let resolved = registry.resolve(reference, access).await.unwrap();
    assert_eq!(&resolved.descriptor, image.descriptor());
    for (descriptor, bytes) in image.manifests() {
        assert_eq!(&registry.manifest(reference, descriptor, access).await.unwrap(), bytes);
    }
    for (descriptor, bytes) in image.blobs() {
        let blob = registry.fetch(reference, descriptor, 0, access).await.unwrap();
        assert!(collect(blob).await.unwrap() == *bytes);
    }
}

fn image() -> Image {
    Builder::new().file("big", noise(3_000_000), 0o644).layer().file("small", *b"x", 0o755).build()
}

#[tokio::test]
async fn what_we_push_we_pull_back_by_every_way() {
    let Some(server) = Server::start("", "", &[]).await else { return };
    let access = Access::anonymous();
    let docker = Builder::new().docker().file("a", *b"docker", 0o644).build();
    let both = Image::index(vec![image(), docker.clone()], false);
    let parts = Ranged { threshold: 500_000, chunk: 200_000, parallel: 3, ..Ranged::default() };
    for (name, push_chunk, image) in
        [("one", 0, image()), ("two", 700_000, image()), ("three", 0, docker), ("four", 0, both)]
    {
        let registry = Registry::new(Config { push_chunk, ranged: parts.clone(), ..Config::default() });
        let reference = server.reference(&format!("{name}/image:v1"));
        assert!(push(&registry, &reference, &image, &access).await.iter().all(|p| *p == Pushed::Sent));
        assert!(push(&registry, &reference, &image, &access).await.iter().all(|p| *p == Pushed::Existed));
        pull_and_compare(&registry, &reference, &image, &access).await;
    }
    let registry = Registry::new(Config::default());
    assert_eq!(registry.tags(&server.reference("one/image:v1"), &access).await.unwrap(), ["v1"]);
    let names = registry.catalog(&server.host, &access).await.unwrap();
    assert_eq!(names, ["four/image", "one/image", "three/image", "two/image"]);
    let none = registry.referrers(&server.reference("one/image:v1"), &Digest::of(b""), None, &access).await.unwrap();
    assert!(none.is_empty());
    let missing = registry.resolve(&server.reference("one/image:v2"), &access).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let source = image();
    let (descriptor, bytes) = &source.blobs()[1];
    let from = ["one/image".to_owned()];
    let mounted = registry.push_blob(&server.reference("five:v1"), descriptor, bytes, &from, &access).await.unwrap();
    assert_eq!(mounted, Pushed::Mounted);
}

#[tokio::test]
async fn a_resumed_fetch_begins_at_its_offset() {
    let Some(server) = Server::start("", "", &[]).await else { return };
    let (registry, access, reference) =
        (Registry::new(Config::default()), Access::anonymous(), server.reference("a:x"));
    let bytes = noise(1_000_000);
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(&bytes), 1_000_000);
    registry.push_blob(&reference, &descriptor, &bytes, &[], &access).await.unwrap();
    let blob = registry.fetch(&reference, &descriptor, 400_000, &access).await.unwrap();
    assert!(collect(blob).await.unwrap() == bytes[400_000..]);
}

#[tokio::test]
async fn basic_auth_with_a_password_file() {
    let auth = "auth: {htpasswd: {realm: test, path: DIR/htpasswd}}";
    let Some(server) = Server::start("", auth, &[("htpasswd", HTPASSWD)]).await else { return };
    let registry = Registry::new(Config::default());
    let (reference, image) = (server.reference("private:v1"), image());
    let access = login(&server.host, "puller", "hunter22-s3cr3t");
    push(&registry, &reference, &image, &access).await;
    pull_and_compare(&registry, &reference, &image, &access).await;
    for access in [Access::anonymous(), login(&server.host, "puller", "wrong-s3cr3t")] {
        let error = registry.resolve(&reference, &access).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(!format!("{error:?}").contains("s3cr3t"));
    }
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let files = [("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let http = "  tls: {certificate: DIR/cert.pem, key: DIR/key.pem}";
    let Some(server) = Server::start(http, "", &files).await else { return };
    let name = format!("{}_", server.host.replace(':', "_"));
    let dir = hosts_dir(&name, &format!("server = 'https://{}'\nca = 'ca.pem'", server.host));
    std::fs::write(dir.path().join(&name).join("ca.pem"), ca.pem()).unwrap();
    let (registry, access) = (Registry::new(Config::default()), access_by(&dir));
    let (reference, image) = (server.reference("tls:v1"), image());
    push(&registry, &reference, &image, &access).await;
    pull_and_compare(&registry, &reference, &image, &access).await;
    let plain = registry.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert_eq!(plain.kind(), ErrorKind::InvalidArgument, "{plain}");
}
