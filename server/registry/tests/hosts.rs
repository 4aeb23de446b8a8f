//! Mirrors, fallback, dead hosts, TLS by hosts.toml.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use gantry_registry::fake::{Fault, Options, Rule};
use gantry_registry::image::Builder;
use gantry_registry::{Access, Reason, Registry};
use gantry_types::{ErrorKind, HasKind, Reference};

#[tokio::test]
async fn a_mirror_is_asked_first_told_for_whom_and_the_server_has_the_rest() {
    let (mirror, server, image) = (fake().await, fake().await, small_image());
    mirror.put_image("a/b", "v1", &image);
    let dir = hosts_dir(
        "registry.example",
        &format!(
            "server = '{}'\n[host.'{}']\ncapabilities = ['pull', 'resolve']\n[host.'{}'.header]\nX-Key = 'k3y'",
            server.url(),
            mirror.url(),
            mirror.url()
        ),
    );
    let (registry, access) = (Registry::new(quick()), access_by(&dir));
    let reference: Reference = "registry.example/a/b:v1".parse().unwrap();
    let resolved = registry.resolve(&reference, &access).await.unwrap();
    assert_eq!(resolved.host, mirror.host());
    let asked = &mirror.requests()[0];
    assert!(asked.path.ends_with("/manifests/v1?ns=registry.example") && asked.header("x-key") == Some("k3y"));
    assert!(server.requests().is_empty());

    let other = server.put_image("only/here", "v1", &image);
    let reference: Reference = format!("registry.example/{}:v1", other.path()).parse().unwrap();
    assert_eq!(registry.resolve(&reference, &access).await.unwrap().host, server.host());
    assert_eq!(server.requests()[0].header("x-key"), None);
    let missing: Reference = "registry.example/not/there:v1".parse().unwrap();
    let error = registry.resolve(&missing, &access).await.unwrap_err();
    assert_eq!((error.kind(), error.host()), (ErrorKind::NotFound, server.host().as_str()));
    assert!(error.to_string().contains(&format!("before that {}: status 404", mirror.host())), "{error}");
}

#[tokio::test]
async fn a_dead_mirror_costs_one_wait_for_a_whole_pull() {
    for dead in ["silent", "refusing", "gone"] {
        let (mirror, server, image) = (fake().await, fake().await, small_image());
        server.put_image("a", "v1", &image);
        mirror.fault(Rule::new("", Fault::Silence));
        let address = match dead {
            "silent" => mirror.url(),
            "refusing" => "http://127.0.0.1:1".to_owned(),
            // An address of documentation (RFC 5737): nobody answers, or there is no way there.
            _ => "http://192.0.2.1:5000".to_owned(),
        };
        let dir = hosts_dir("registry.example", &format!("server = '{}'\n[host.'{address}']", server.url()));
        let (registry, access) = (Registry::new(quick()), access_by(&dir));
        let reference: Reference = "registry.example/a:v1".parse().unwrap();
        let start = Instant::now();
        let resolved = registry.resolve(&reference, &access).await.unwrap();
        registry.manifest(&reference, &resolved.descriptor, &access).await.unwrap();
        for (descriptor, bytes) in image.blobs() {
            let blob = registry.fetch(&reference, descriptor, 0, &access).await.unwrap();
            assert_eq!(&collect(blob).await.unwrap(), bytes);
        }
        assert!(start.elapsed() < Duration::from_millis(900), "{dead}: {:?}", start.elapsed());
        assert!(mirror.requests().len() <= 1, "{dead}");
    }
}

#[tokio::test]
async fn a_mirror_that_breaks_in_the_middle_is_left_for_the_server() {
    let (mirror, server) = (fake().await, fake().await);
    let bytes = noise(2_000_000);
    let descriptor = server.put_blob("a", "x", bytes.clone());
    mirror.put_blob("a", "x", bytes.clone());
    mirror.fault(Rule::new("/blobs/", Fault::CutAt(500_000)));
    let dir = hosts_dir("registry.example", &format!("server = '{}'\n[host.'{}']", server.url(), mirror.url()));
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let blob = Registry::new(quick()).fetch(&reference, &descriptor, 0, &access_by(&dir)).await.unwrap();
    assert_eq!(blob.host(), mirror.host());
    assert_eq!(collect(blob).await.unwrap(), bytes);
    assert_eq!(server.requests()[0].header("range"), Some("bytes=500000-1999999"));
}

#[tokio::test]
async fn a_distrusted_host_is_passed_over_while_another_is_left() {
    let (mirror, server) = (fake().await, fake().await);
    let image = small_image();
    mirror.put_image("a", "v1", &image);
    server.put_image("a", "v1", &image);
    let dir = hosts_dir("registry.example", &format!("server = '{}'\n[host.'{}']", server.url(), mirror.url()));
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let registry = Registry::new(quick());
    registry.distrust(&mirror.host());
    assert_eq!(registry.resolve(&reference, &access_by(&dir)).await.unwrap().host, server.host());
}

#[tokio::test]
async fn a_host_that_was_down_is_asked_before_the_answer_is_no() {
    let (mirror, server) = (fake().await, fake().await);
    let image = small_image();
    server.put_image("a", "v1", &image);
    let text = format!("server = '{}'\n[host.'{}']", server.url(), mirror.url());
    let dir = hosts_dir("registry.example", &text);
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let registry = Registry::new(quick());
    registry.distrust(&server.host());
    assert_eq!(registry.resolve(&reference, &access_by(&dir)).await.unwrap().host, server.host());
    // But when the registry itself says no, a mirror that is down is not waited for.
    registry.distrust(&mirror.host());
    mirror.clear_requests();
    let missing: Reference = "registry.example/none:v1".parse().unwrap();
    assert_eq!(registry.resolve(&missing, &access_by(&dir)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(mirror.requests().is_empty());
}

#[tokio::test]
async fn hosts_serve_only_what_they_may() {
    let (mirror, server, image) = (fake().await, fake().await, small_image());
    mirror.put_image("a", "v1", &image);
    server.put_image("a", "v1", &image);
    let text = format!("server = '{}'\n[host.'{}']\ncapabilities = ['pull']", server.url(), mirror.url());
    let dir = hosts_dir("registry.example", &text);
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let (registry, access) = (Registry::new(quick()), access_by(&dir));
    let resolved = registry.resolve(&reference, &access).await.unwrap();
    registry.manifest(&reference, &resolved.descriptor, &access).await.unwrap();
    assert_eq!((resolved.host, mirror.count("HEAD"), mirror.count("GET")), (server.host(), 0, 1));
    let none = hosts_dir("registry.example", "capabilities = ['push']");
    let error = registry.resolve(&reference, &access_by(&none)).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::NoHost(_)), "{error}");
}

#[tokio::test]
async fn override_path_keeps_the_path_as_it_is() {
    let server = fake().await;
    let text = format!("server = '{}/custom/root'\noverride_path = true", server.url());
    let dir = hosts_dir("registry.example", &text);
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let _ = Registry::new(quick()).resolve(&reference, &access_by(&dir)).await;
    assert_eq!(server.requests()[0].path, "/custom/root/a/manifests/v1?ns=registry.example");
}

#[tokio::test]
async fn a_broken_hosts_file_is_an_error_with_its_line() {
    let dir = hosts_dir("registry.example", "\n\nskip_verfy = true");
    let reference: Reference = "registry.example/a:v1".parse().unwrap();
    let error = Registry::new(quick()).resolve(&reference, &access_by(&dir)).await.unwrap_err();
    assert!(error.to_string().contains("hosts.toml:3: unknown key \"skip_verfy\""), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn tls_needs_the_authority_unless_told_not_to_check() {
    let fake = fake_with(Options { tls: true, ..Options::default() }).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let registry = Registry::new(quick());
    let host = fake.host();
    let unknown = hosts_dir(&host, &format!("server = '{}'", fake.url()));
    let error = registry.resolve(&reference, &access_by(&unknown)).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let unchecked = hosts_dir(&host, &format!("server = '{}'\nskip_verify = true", fake.url()));
    registry.resolve(&reference, &access_by(&unchecked)).await.unwrap();
    let known = hosts_dir(&host, &format!("server = '{}'\nca = 'ca.pem'", fake.url()));
    std::fs::write(known.path().join(&host).join("ca.pem"), fake.ca_pem().unwrap()).unwrap();
    registry.resolve(&reference, &access_by(&known)).await.unwrap();
    let broken = hosts_dir(&host, &format!("server = '{}'\nca = 'ca.pem'", fake.url()));
    let error = registry.resolve(&reference, &access_by(&broken)).await.unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn client_certificates_are_shown_where_configured() {
    let options = Options { tls: true, client_certificates: true, ..Options::default() };
    let fake = fake_with(options).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let host = fake.host();
    let registry = Registry::new(quick());
    for (client, good) in [("", false), ("client = [['c.pem', 'k.pem']]", true), ("client = 'both.pem'", true)] {
        let dir = hosts_dir(&host, &format!("server = '{}'\nca = 'ca.pem'\n{client}", fake.url()));
        let (certificate, key) = fake.client_pem().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(&host).join(name), text).unwrap();
        write("ca.pem", fake.ca_pem().unwrap());
        write("c.pem", certificate);
        write("k.pem", key);
        write("both.pem", &format!("{certificate}{key}"));
        let resolved = registry.resolve(&reference, &access_by(&dir)).await;
        assert_eq!(resolved.is_ok(), good, "{client}: {resolved:?}");
    }
}

#[tokio::test]
async fn by_tls_many_blobs_share_one_connection_of_http_2() {
    let fake = fake_with(Options { tls: true, ..Options::default() }).await;
    let image =
        (0..12).fold(Builder::new(), |image, n| image.layer().file(&format!("{n}"), noise(100_000), 0o644)).build();
    let reference = fake.put_image("a", "v1", &image);
    let dir = hosts_dir(&fake.host(), &format!("server = '{}'\nskip_verify = true", fake.url()));
    let (registry, access) = (Registry::new(quick()), access_by(&dir));
    registry.resolve(&reference, &access).await.unwrap();
    let blobs = image.blobs().iter().map(|(descriptor, bytes)| async {
        let blob = registry.fetch(&reference, descriptor, 0, &access).await.unwrap();
        assert_eq!(collect(blob).await.unwrap(), bytes[..]);
    });
    futures::future::join_all(blobs).await;
    let requests = fake.requests();
    assert!(requests.len() > image.blobs().len() && image.blobs().len() > 12);
    for request in requests {
        assert_eq!((request.version, request.connection), (http::Version::HTTP_2, 1), "{}", request.path);
    }
}

#[tokio::test]
async fn a_redirect_from_tls_to_plain_text_is_not_followed() {
    let fake = fake_with(Options { tls: true, ..Options::default() }).await;
    let reference = fake.put_image("a", "v1", &small_image());
    fake.fault(Rule::new("/manifests/", Fault::Redirect("http://127.0.0.1:1/".into())));
    let dir = hosts_dir(&fake.host(), &format!("server = '{}'\nskip_verify = true", fake.url()));
    let error = Registry::new(quick()).resolve(&reference, &access_by(&dir)).await.unwrap_err();
    assert!(error.to_string().contains("TLS to plain text"), "{error}");
}

#[tokio::test]
async fn a_default_scheme_of_the_call_counts_without_a_file() {
    let fake = fake_with(Options { tls: true, ..Options::default() }).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let mut access = Access::anonymous();
    access.default_scheme = Some(gantry_registry::Scheme::Https);
    let error = Registry::new(quick()).resolve(&reference, &access).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}
