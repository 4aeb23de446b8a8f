//! Pulling an image for Kubernetes: three names stand for it then, and its layers are unpacked for the pod's handler.

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::transfer::{Credential, Pull, Unpack};
use gantry_types::{Labels, Platform, Reference};

use super::name::{normalize, with_digest};
use super::progress::watched;
use super::registries::DOCKER;
use super::{MANAGED, PINNED};
use crate::config::ImagesConfig;
use crate::{Cri, Error, Result};

/// The only `image_decryption.key_model` there is: programs on the node find the keys.
const KEYS_OF_THE_NODE: &str = "node";

impl Cri {
    /// Pulls an image; gives its id.
    pub(crate) async fn pull_image(&self, request: wire::PullImageRequest) -> Result<String> {
        let spec = request.image.ok_or_else(|| Error::invalid("image", "must be set"))?;
        let reference = normalize("image.image", &spec.image)?;
        let credential = credential(request.auth.as_ref(), &reference)?;
        let name = reference.to_string();
        let labels = self.labels_of(&[&name, &spec.image]);
        let unpack = self.unpack_for(&spec.runtime_handler);
        let pull = Pull {
            name: name.clone(),
            labels: labels.clone(),
            platforms: vec![unpack.platform.clone()],
            unpacks: vec![unpack],
            discard_layers: self.config.images.discard_unpacked_layers,
            access: self.registries.access(credential),
            concurrent_downloads: downloads(self.config.images.max_concurrent_downloads),
            ..Pull::new(reference.clone())
        };
        let failed = || Error::at(format!("failed to pull and unpack image {name:?}"));
        let limit = self.config.images.image_pull_progress_timeout;
        let pulled = watched(limit, |sink| self.engine.transfer.pull(&self.scope, pull, sink)).await;
        let image = pulled.map_err(failed())?;
        let facts = self.facts(&image.target).await?;
        for other in [with_digest(&reference, &image.target.digest), facts.id.to_string()] {
            if other != name {
                self.engine.transfer.tag(&self.scope, &name, &other, labels.clone(), true).await?;
            }
        }
        Ok(facts.id.to_string())
    }

    /// Labels of an image with one of these names.
    fn labels_of(&self, names: &[&str]) -> Labels {
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let mut pinned = self.config.images.pinned_images.values();
        let pinned = pinned.any(|pinned| names.contains(&pinned.as_str()));
        [Some(pair(MANAGED)), pinned.then(|| pair(PINNED))].into_iter().flatten().collect()
    }

    /// How an image is unpacked for a runtime handler.
    pub(crate) fn unpack_for(&self, handler: &str) -> Unpack {
        let platform = self.config.images.runtime_platforms.get(handler);
        let wanted = platform.and_then(|p| p.platform.parse::<Platform>().ok()).unwrap_or_else(Platform::host);
        Unpack {
            annotate: !self.config.images.disable_snapshot_annotations,
            decrypt: self.config.images.decryption_key_model == KEYS_OF_THE_NODE,
            ..Unpack::new(wanted, self.snapshotter_of(handler))
        }
    }

    /// Name of a runtime handler's snapshotter; empty for the engine's default one.
    pub(crate) fn snapshotter_of(&self, handler: &str) -> String {
        let platform = self.config.images.runtime_platforms.get(handler).map(|p| p.snapshotter.as_str());
        let runtime = self.config.runtime.runtimes.get(self.handler_name(handler)).map(|h| h.snapshotter.as_str());
        let chosen = platform.into_iter().chain(runtime).find(|name| !name.is_empty());
        let name = chosen.unwrap_or(&self.config.images.snapshotter);
        let there = self.engine.snapshots.snapshotter(name).is_ok();
        if there { name.to_owned() } else { String::new() }
    }
}

/// How many layers of an image are fetched at once: containerd's default leaves it to the engine, 0 is no limit.
fn downloads(wanted: usize) -> Option<usize> {
    (wanted != ImagesConfig::default().max_concurrent_downloads).then_some(match wanted {
        0 => usize::MAX,
        wanted => wanted,
    })
}

/// Host and credential of a call; none where it brings none, or one for another registry.
fn credential(auth: Option<&wire::AuthConfig>, reference: &Reference) -> Result<Option<(String, Credential)>> {
    let Some(auth) = auth else { return Ok(None) };
    let server = host_of(&auth.server_address);
    if !server.is_empty() && server != reference.host() && !is_docker(server, reference.host()) {
        return Ok(None);
    }
    let credential =
        Credential::from_parts(&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token);
    let credential = credential.map_err(|error| Error::invalid("auth.auth", error.to_string()))?;
    Ok(credential.map(|credential| (reference.host().to_owned(), credential)))
}

/// The host of an address that may have a scheme and a path.
fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

fn is_docker(server: &str, host: &str) -> bool {
    DOCKER.contains(&server) && DOCKER.contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(server: &str) -> wire::AuthConfig {
        let text = |text: &str| text.to_owned();
        wire::AuthConfig {
            username: text("u"),
            password: text("p"),
            server_address: text(server),
            ..Default::default()
        }
    }

    #[test]
    fn a_credential_goes_to_the_registry_it_is_for_alone() {
        let reference: Reference = "registry.example/app:1".parse().unwrap();
        for (server, used) in
            [("", true), ("registry.example", true), ("https://registry.example/v2/", true), ("other.example", false)]
        {
            assert_eq!(credential(Some(&auth(server)), &reference).unwrap().is_some(), used, "{server}");
        }
        let docker: Reference = "docker.io/library/a:1".parse().unwrap();
        assert!(credential(Some(&auth("https://index.docker.io/v1/")), &docker).unwrap().is_some());
    }

    #[test]
    fn containerds_default_of_downloads_is_the_engines_and_none_is_no_limit() {
        assert_eq!([3, 0, 1, 8].map(downloads), [None, Some(usize::MAX), Some(1), Some(8)]);
    }

    #[test]
    fn a_damaged_credential_is_refused_with_its_field() {
        let reference: Reference = "registry.example/app:1".parse().unwrap();
        let damaged = wire::AuthConfig { auth: "no base64!".into(), ..Default::default() };
        let error = credential(Some(&damaged), &reference).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Invalid { field, .. } if field == "auth.auth"));
    }
}
