//! Being let in, and keeping secrets.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use gantry_registry::fake::{Fault, Login, Options, Rule};
use gantry_registry::{Access, Ask, Credential, Credentials, CredentialsError, Provided, Registry, Secret};
use gantry_types::{ErrorKind, HasKind};

const SECRET: &str = "hunter22-s3cr3t";

fn basic() -> Options {
    Options { login: Login::Basic { username: "u".into(), password: SECRET.into() }, ..Options::default() }
}

fn token(anonymous_pull: bool, life: Duration, post_only: bool) -> Options {
    let (username, password) = ("u".to_owned(), SECRET.to_owned());
    Options { login: Login::Token { username, password, anonymous_pull, life, post_only }, ..Options::default() }
}

#[tokio::test]
async fn basic_credentials_let_in_and_wrong_or_missing_ones_do_not() {
    let fake = fake_with(basic()).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let registry = Registry::new(quick());
    registry.resolve(&reference, &login(&fake.host(), "u", SECRET)).await.unwrap();
    let wrong = registry.resolve(&reference, &login(&fake.host(), "u", "wr0ng-s3cr3t")).await.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Unauthenticated);
    assert!(!format!("{wrong} {wrong:?}").contains("s3cr3t"), "{wrong:?}");
    let none = registry.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Unauthenticated);
    let elsewhere = registry.resolve(&reference, &login("other.example", "u", SECRET)).await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn a_token_is_got_once_for_many_blobs_and_anew_when_it_expires() {
    let fake = fake_with(token(false, Duration::from_secs(60), false)).await;
    let image = small_image();
    let reference = fake.put_image("a", "v1", &image);
    let access = login(&fake.host(), "u", SECRET);
    let registry = Registry::new(quick());
    registry.resolve(&reference, &access).await.unwrap();
    let all = image.blobs().iter().map(|(descriptor, _)| registry.fetch(&reference, descriptor, 0, &access));
    for blob in futures::future::join_all(all).await {
        collect(blob.unwrap()).await.unwrap();
    }
    assert_eq!(fake.count("/token"), 1);

    // Tokens of a fraction of a second, announced as one second: refused ones are replaced.
    let fake = fake_with(token(false, Duration::from_millis(100), false)).await;
    let reference = fake.put_image("a", "v1", &image);
    let access = login(&fake.host(), "u", SECRET);
    for _ in 0..3 {
        registry.resolve(&reference, &access).await.unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    assert_eq!(fake.count("/token"), 3);
}

#[tokio::test]
async fn every_way_to_a_token_works() {
    let refresh = Credential::Refresh(Secret::new(SECRET));
    let password = Credential::Basic { username: "u".into(), password: Secret::new(SECRET) };
    for (post_only, credential) in
        [(false, Some(&password)), (true, Some(&password)), (false, Some(&refresh)), (false, None)]
    {
        let fake = fake_with(token(true, Duration::from_secs(60), post_only)).await;
        let reference = fake.put_image("a", "v1", &small_image());
        let access = Access::new(Arc::new(Provided::new(&fake.host(), credential.cloned())));
        Registry::new(quick()).resolve(&reference, &access).await.unwrap();
    }
    let fake = fake_with(basic()).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let header = Credential::Header(Secret::new(format!("Basic {}", base64(&format!("u:{SECRET}")))));
    let access = Access::new(Arc::new(Provided::new(&fake.host(), Some(header))));
    Registry::new(quick()).resolve(&reference, &access).await.unwrap();
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn tokens_of_one_caller_are_not_used_for_another() {
    let fake = fake_with(token(false, Duration::from_secs(60), false)).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let registry = Registry::new(quick());
    registry.resolve(&reference, &login(&fake.host(), "u", SECRET)).await.unwrap();
    for access in [Access::anonymous(), login(&fake.host(), "u", "wrong"), login(&fake.host(), "eve", SECRET)] {
        let error = registry.resolve(&reference, &access).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
}

#[tokio::test]
async fn credentials_and_own_headers_do_not_follow_a_redirect_to_another_host() {
    let (fake, elsewhere) = (fake_with(basic()).await, fake().await);
    let bytes = noise(10_000);
    let descriptor = fake.put_blob("a", "x", bytes.clone());
    elsewhere.put_blob("b", "x", bytes.clone());
    let target = format!("{}/v2/b/blobs/{}", elsewhere.url(), descriptor.digest);
    fake.fault(Rule::new("/blobs/", Fault::Redirect(target)).after(1));
    let mut access = login(&fake.host(), "u", SECRET);
    access.headers.push(("X-Private".into(), SECRET.into()));
    let blob = Registry::new(quick()).fetch(&fake.reference("a:x"), &descriptor, 0, &access).await.unwrap();
    assert_eq!(collect(blob).await.unwrap(), bytes);
    assert!(fake.requests().last().unwrap().header("authorization").is_some());
    let asked = &elsewhere.requests()[0];
    assert!(!format!("{asked:?}").contains(SECRET) && asked.header("authorization").is_none(), "{asked:?}");
}

#[tokio::test]
async fn a_loop_of_401_is_bounded_whoever_causes_it() {
    for options in [basic(), token(false, Duration::from_secs(60), false)] {
        let fake = fake_with(options).await;
        let reference = fake.put_image("a", "v1", &small_image());
        fake.fault(Rule::new("/v2/", Fault::Unauthorized));
        let error = Registry::new(quick()).resolve(&reference, &login(&fake.host(), "u", SECRET)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(fake.requests().len() < 12, "{}", fake.requests().len());
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_what_it_does_not_give_is_asked_again_without() {
    let fake = fake_with(Options::default()).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let registry = Registry::new(quick());
    fake.fault(Rule::new("/manifests/", Fault::Unauthorized));
    let error = registry.resolve(&reference, &Access::anonymous()).await.unwrap_err();
    // Its token server says 404, which does not mean that the image is not there.
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    fake.clear_faults();
    registry.resolve(&reference, &Access::anonymous()).await.unwrap();
}

#[tokio::test]
async fn a_token_server_in_trouble_is_named_and_asked_again() {
    let fake = fake_with(token(true, Duration::from_secs(60), false)).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let registry = Registry::new(quick());
    fake.fault(Rule::new("/token", Fault::Status(503, None)).times(1));
    registry.resolve(&reference, &Access::anonymous()).await.unwrap();
    let other = fake.put_image("b", "v1", &small_image());
    fake.fault(Rule::new("/token", Fault::Status(403, None)));
    let error = registry.resolve(&other, &Access::anonymous()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

struct Counting(AtomicUsize, String);

#[async_trait]
impl Credentials for Counting {
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        self.0.fetch_add(1, Relaxed);
        assert_eq!(ask.host, self.1);
        Ok(Some(Credential::Basic { username: "u".into(), password: Secret::new(SECRET) }))
    }
}

#[tokio::test]
async fn a_source_of_credentials_is_asked_once_a_job_and_not_where_nobody_asks() {
    let open = fake().await;
    let image = small_image();
    let reference = open.put_image("a", "v1", &image);
    let source = Arc::new(Counting(AtomicUsize::new(0), open.host()));
    let registry = Registry::new(quick());
    registry.resolve(&reference, &Access::new(source.clone())).await.unwrap();
    assert_eq!(source.0.load(Relaxed), 0);
    let fake = fake_with(basic()).await;
    let reference = fake.put_image("a", "v1", &image);
    let source = Arc::new(Counting(AtomicUsize::new(0), fake.host()));
    let access = Access::new(source.clone());
    registry.resolve(&reference, &access).await.unwrap();
    for (descriptor, _) in image.blobs() {
        registry.fetch(&reference, descriptor, 0, &access.clone()).await.unwrap();
    }
    assert_eq!(source.0.load(Relaxed), 1);
}

#[tokio::test]
async fn a_credential_helper_of_hosts_toml_is_asked() {
    let fake = fake_with(basic()).await;
    let reference = fake.put_image("a", "v1", &small_image());
    let tools = tempfile::tempdir().unwrap();
    let helper = tools.path().join("helper");
    let script =
        format!("read x; [ \"$x\" = domain.example ] && echo '{{\"Username\":\"u\",\"Secret\":\"{SECRET}\"}}'");
    // Written by a process of its own: a program that this one has open for writing cannot be run.
    let write = ["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""];
    let mut shell = std::process::Command::new("sh");
    assert!(shell.args(write).arg(&helper).arg(script).status().unwrap().success());
    let text = format!(
        "server = '{}'\ncredential_helper = '{}'\ncredential_domain = 'domain.example'",
        fake.url(),
        helper.display()
    );
    let dir = hosts_dir(&fake.host(), &text);
    Registry::new(quick()).resolve(&reference, &access_by(&dir)).await.unwrap();
}
