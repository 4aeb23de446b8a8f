//! Layers that a snapshotter of another process brings in by itself: what it is told of each layer, and how many of an
//! image's layers need not be fetched because of it.

use gantry_metadata::Resource;
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Labels, Scope, labels};

use super::Transfer;
use super::manifest::Manifest;
use super::unpack::Stack;
use crate::Result;
use crate::leases::unique;

const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// Annotations of a layer with this prefix are for the snapshotter: without the digest of its table of contents stargz
/// mounts no layer, and nydus knows its layers by nothing else.
const FOR_SNAPSHOTTERS: &str = "containerd.io/snapshot/";
/// How ids are mapped is said by who makes a container, never by an image.
const MAPPINGS: [&str; 2] = ["containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"];

/// Export of a plug-in that says whether it wants to be told where layers come from; without it, it is told.
const WANTED: &str = "enable_remote_snapshot_annotations";

/// What a snapshotter is told of each layer of an image that comes from `reference`.
fn told(reference: &str, manifest_digest: &Digest, manifest: &Manifest) -> Vec<Labels> {
    let digests: Vec<&str> = manifest.layers.iter().map(|layer| layer.digest.as_str()).collect();
    let of_layer = |number: usize| {
        let all = [
            (IMAGE, reference.to_owned()),
            (MANIFEST, manifest_digest.to_string()),
            (LAYER, digests[number].to_owned()),
            (LAYERS, as_many_as_fit(&digests[number..])),
        ];
        all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    };
    (0..digests.len()).map(of_layer).collect()
}

/// What a layer's annotations tell a snapshotter.
fn annotated(layer: &Descriptor) -> Labels {
    let is_told = |(key, value): &(&String, &String)| {
        let meant = key.starts_with(FOR_SNAPSHOTTERS) && !MAPPINGS.contains(&key.as_str());
        meant && labels::validate(key, value).is_ok()
    };
    layer.annotations.iter().filter(is_told).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Digests, joined by commas, as far as a label holds them.
fn as_many_as_fit(digests: &[&str]) -> String {
    let mut text = String::new();
    for digest in digests {
        let longer = if text.is_empty() { (*digest).to_owned() } else { format!("{text},{digest}") };
        if labels::validate(LAYERS, &longer).is_err() {
            break;
        }
        text = longer;
    }
    text
}

impl Stack {
    /// Has the snapshotter be told where the layers come from.
    pub(super) fn tell(&mut self, reference: &str, manifest_digest: &Digest, manifest: &Manifest) {
        let told = told(reference, manifest_digest, manifest);
        self.layers.iter_mut().zip(told).for_each(|(layer, told)| layer.told.extend(told));
    }
}

impl Transfer {
    /// What a snapshotter is told of a layer whatever the configuration says. Those of ours have no use for what an image
    /// says, and labels of their own that must not come from there.
    pub(super) fn told_always(&self, snapshotter: &str, layer: &Descriptor) -> Labels {
        if self.is_remote(snapshotter) { annotated(layer) } else { Labels::new() }
    }

    fn is_remote(&self, snapshotter: &str) -> bool {
        self.core.snapshotters.get(snapshotter).is_some_and(|found| found.is_remote())
    }

    /// Whether a snapshotter is to be told where layers come from.
    pub(super) fn is_told(&self, snapshotter: &str) -> bool {
        let exports = self.core.config.proxy_plugins.get(snapshotter).map(|plugin| &plugin.exports);
        self.is_remote(snapshotter)
            && exports.and_then(|exports| exports.get(WANTED)).is_none_or(|wanted| wanted == "true")
    }

    /// How many of a stack's layers, from the lowest on, the snapshotter has without anybody unpacking them; with
    /// `discarding`, also those that were unpacked before.
    ///
    /// # Errors
    /// When the snapshotter cannot be asked.
    pub(super) async fn present(&self, scope: &Scope, stack: &Stack, discarding: bool) -> Result<usize> {
        if !self.is_remote(&stack.snapshotter) {
            return if discarding { self.unpacked(scope, stack).await } else { Ok(0) };
        }
        let mut parent = String::new();
        for (number, (layer, chain_id)) in stack.layers.iter().zip(stack.chain()).enumerate() {
            let key = format!("extract-{} {chain_id}", unique());
            let labels = layer.labels(&chain_id, &parent);
            match self.snapshots.prepare(scope, &stack.snapshotter, &key, &parent, labels).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => parent = chain_id.to_string(),
                Err(error) => return Err(error),
                Ok(_) => {
                    self.snapshots.remove(scope, &stack.snapshotter, &key).await?;
                    return Ok(number);
                }
            }
        }
        Ok(stack.layers.len())
    }

    /// How many of a stack's layers, from the lowest on, are unpacked and well; the lease keeps them from now on.
    async fn unpacked(&self, scope: &Scope, stack: &Stack) -> Result<usize> {
        let records = self.core.db.snapshots(&scope.namespace, &stack.snapshotter);
        for (number, chain_id) in stack.chain().iter().enumerate() {
            let key = chain_id.as_str();
            let Ok(record) = records.get(key) else { return Ok(number) };
            if let Some(lease) = &scope.lease {
                let resource = Resource::Snapshot { snapshotter: stack.snapshotter.clone(), key: key.to_owned() };
                self.leases.add(scope, lease, resource).await?;
            }
            let name = (stack.snapshotter.clone(), record.internal);
            // It may have gone before the lease had it.
            if records.get(key).is_err() || self.core.doubt.verdict(&name, scope.deadline).await?.is_some() {
                return Ok(number);
            }
        }
        Ok(stack.layers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshotters_are_told_the_annotations_that_are_meant_for_them() {
        let mut layer = Descriptor::new("", Digest::of(b""), 0);
        let long = "x".repeat(labels::MAX_LEN);
        for (key, value) in [
            ("containerd.io/snapshot/stargz/toc.digest", "table"),
            ("containerd.io/snapshot/uidmapping", "0:1000:1"),
            ("containerd.io/snapshot/gidmapping", "0:1000:1"),
            ("containerd.io/snapshot/long", &long),
            ("containerd.io/snapshot.ref", "another"),
            ("containerd.io/gc.root", "kept"),
        ] {
            layer.annotations.insert(key.to_owned(), value.to_owned());
        }
        let table = ("containerd.io/snapshot/stargz/toc.digest".to_owned(), "table".to_owned());
        assert_eq!(annotated(&layer), Labels::from([table]));
    }

    #[test]
    fn the_list_of_layers_ends_before_a_label_is_too_long() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(as_many_as_fit(&[&digest, &digest]), format!("{digest},{digest}"));
        let many = vec![digest.as_str(); 100];
        let list = as_many_as_fit(&many);
        assert!(labels::validate(LAYERS, &list).is_ok() && list.split(',').count() > 40, "{}", list.len());
    }
}
