//! Proxies of the environment. The variables are set for a process of its own: this program again.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::*;
use gantry_registry::{Access, Registry, Scheme};
use gantry_types::{Digest, Reference};

const CHILD: &str = "GANTRY_TEST_PROXY_HOSTS";

#[tokio::test]
async fn requests_go_through_the_proxy_but_not_those_to_this_machine() {
    let (proxy, local, image) = (fake().await, fake().await, small_image());
    proxy.put_image("far", "v1", &image);
    local.put_image("near", "v1", &image);
    let hosts = format!("registry.invalid/far:v1 {}/near:v1 {}", local.host(), image.descriptor().digest);
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_child_resolves_a_far_and_a_near_reference"]);
    child.env(CHILD, hosts).env("HTTP_PROXY", proxy.url()).env("http_proxy", proxy.url());
    child.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD");
    let output = child.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((proxy.count("/v2/far/"), proxy.count("/v2/near/")), (1, 0));
    assert_eq!(local.count("/v2/near/"), 1);
}

#[tokio::test]
async fn the_child_resolves_a_far_and_a_near_reference() {
    let Ok(hosts) = std::env::var(CHILD) else { return };
    let mut words = hosts.split(' ');
    let mut access = Access::anonymous();
    access.default_scheme = Some(Scheme::Http);
    let registry = Registry::new(quick());
    let mut next = || words.next().unwrap();
    let references: [Reference; 2] = [next().parse().unwrap(), next().parse().unwrap()];
    let digest: Digest = next().parse().unwrap();
    for reference in &references {
        assert_eq!(registry.resolve(reference, &access).await.unwrap().descriptor.digest, digest);
    }
}
