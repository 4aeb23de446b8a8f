//! An image out of what a container has changed: its image, with one more layer.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_api::convert::{descriptor_from_wire, descriptor_to_wire, rfc3339, time_to_wire};
use gantry_api::pb::containerd::services::containers::v1::{Container, GetContainerRequest};
use gantry_api::pb::containerd::services::content::v1::{WriteAction, WriteContentRequest};
use gantry_api::pb::containerd::services::diff::v1::{ApplyRequest, DiffRequest};
use gantry_api::pb::containerd::services::images::v1 as images;
use gantry_api::pb::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, Kind, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use gantry_api::pb::containerd::services::tasks::v1::{PauseTaskRequest, ResumeTaskRequest};
use gantry_api::pb::containerd::types::Mount;
use gantry_spec::oci_spec::runtime::Spec;
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Platform, labels, media_type};
use serde_json::{Value, json};
use tonic::Response;

use crate::error::Asked;
use crate::image::chain_id;
use crate::{Client, Error, Image};

type Labels = BTreeMap<String, String>;

/// What a container is committed as.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Name of the new image; one that is there stands for the new one from then on.
    pub name: String,
    /// Who made it.
    pub author: String,
    /// What it is.
    pub message: String,
    /// Another command.
    pub cmd: Option<Vec<String>>,
    /// Another entry point.
    pub entrypoint: Option<Vec<String>>,
    /// For which platform the container's image is read.
    pub platform: Platform,
    /// Whether the container's processes stand still meanwhile, so that no file is caught half written.
    pub pause: bool,
    /// The time that the image is of. No entry of the layer is later. With it, the same changes of the same image give
    /// the same bytes; without it, now.
    pub time: Option<SystemTime>,
}

impl Client {
    /// Writes what a container has changed as a layer, and its image with that layer under another name, unpacked as the
    /// container's own image is. Gives the digest of the manifest.
    ///
    /// # Errors
    /// `NotFound` without the container, its image or snapshot; whatever the daemon refuses. A container that was
    /// paused for it runs again in any case.
    pub async fn commit(&self, container: &str, commit: &Commit) -> Result<Digest, Error> {
        let what = || format!("container {container}");
        let request = GetContainerRequest { id: container.to_owned() };
        let record = self.containers().get(request).await.asked(what)?.container.unwrap_or_default();
        let image = self.image(&record.image, &commit.platform).await?;
        let lease = self.lease(&format!("commit-{container}")).await?;
        let committed = self.under_lease(lease.clone()).commit_leased(&record, &image, commit).await;
        self.release(&lease).await?;
        committed
    }

    async fn commit_leased(&self, record: &Container, image: &Image, commit: &Commit) -> Result<Digest, Error> {
        let family = Family::of(&image.manifest.media_type().as_ref().map(ToString::to_string).unwrap_or_default());
        let paused = commit.pause && self.pause(&record.id).await?;
        let made = self.layer_of(record, &family, commit.time).await;
        if paused {
            let request = ResumeTaskRequest { container_id: record.id.clone() };
            self.tasks().resume(request).await.asked(|| format!("resume container {}", record.id))?;
        }
        let layer = made?;
        let diff_id = layer.annotations.get(labels::UNCOMPRESSED).cloned();
        let diff_id = diff_id.ok_or_else(|| Error::malformed("layer", "the daemon did not say its diff id"))?;
        let config: Value = self.document(image.manifest.config().digest().as_ref()).await?;
        let config = configured(config, record, commit, &diff_id)?;
        let mut chain = image.config.rootfs().diff_ids().clone();
        chain.push(diff_id);
        self.unpack_upon(record, &image.chain_id, &chain_id(&chain), &layer).await?;
        self.write_image(record, image, commit, (&family, &config, &layer, &chain_id(&chain))).await
    }

    /// Whether there was something to pause.
    async fn pause(&self, container: &str) -> Result<bool, Error> {
        let request = PauseTaskRequest { container_id: container.to_owned() };
        let paused = self.tasks().pause(request).await.asked(|| format!("pause container {container}"));
        match paused {
            // Nothing runs in it.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition) => Ok(false),
            paused => paused.map(|_| true),
        }
    }

    async fn layer_of(
        &self,
        record: &Container,
        family: &Family,
        time: Option<SystemTime>,
    ) -> Result<Descriptor, Error> {
        let (key, snapshotter) = (&record.snapshot_key, &record.snapshotter);
        let what = || format!("snapshot {key}");
        let request = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let info = self.snapshots().stat(request).await.asked(what)?.info.unwrap_or_default();
        let right = match info.kind() {
            Kind::Committed => return Err(Error::malformed(what(), "is committed: it is no container's")),
            _ => self.rootfs(snapshotter, key).await?,
        };
        let below = format!("commit-{} below {key}", std::process::id());
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: below.clone(),
            parent: info.parent,
            labels: Labels::new(),
        };
        let left = self.snapshots().view(request).await.asked(|| format!("view what is below {key}"))?.mounts;
        let made = self.diff_of(left, right, family, time).await;
        self.forget(snapshotter, &below).await;
        made
    }

    async fn diff_of(
        &self,
        left: Vec<Mount>,
        right: Vec<Mount>,
        family: &Family,
        time: Option<SystemTime>,
    ) -> Result<Descriptor, Error> {
        let request = DiffRequest {
            left,
            right,
            media_type: media_type::OCI_LAYER_GZIP.to_owned(),
            source_date_epoch: time.map(time_to_wire),
            ..Default::default()
        };
        let diff = self.diff().diff(request).await.asked(|| "make the layer".into())?.diff.unwrap_or_default();
        let mut layer = descriptor_from_wire(diff).map_err(|e| Error::malformed("layer", e))?;
        family.layer.clone_into(&mut layer.media_type);
        if !layer.annotations.contains_key(labels::UNCOMPRESSED) {
            // containerd says it on the blob alone.
            let diff_id = self.label_of(&layer.digest, labels::UNCOMPRESSED).await?;
            layer.annotations.extend(diff_id.map(|diff_id| (labels::UNCOMPRESSED.to_owned(), diff_id)));
        }
        Ok(layer)
    }

    async fn label_of(&self, blob: &Digest, label: &str) -> Result<Option<String>, Error> {
        use gantry_api::pb::containerd::services::content::v1::InfoRequest;
        let request = InfoRequest { digest: blob.to_string() };
        let info = self.content().info(request).await.asked(|| format!("blob {blob}"))?.info.unwrap_or_default();
        Ok(info.labels.get(label).cloned())
    }

    /// Unpacks the layer upon the image's others, so that containers can be made of the new image at once.
    async fn unpack_upon(&self, record: &Container, parent: &str, name: &str, layer: &Descriptor) -> Result<(), Error> {
        let (snapshotter, key) = (&record.snapshotter, format!("commit-{} {name}", std::process::id()));
        let there = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: name.to_owned() };
        if self.snapshots().stat(there).await.is_ok() {
            return Ok(());
        }
        let labels = Labels::from([(labels::SNAPSHOT_REF.to_owned(), name.to_owned())]);
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: labels.clone(),
        };
        let mounts = self.snapshots().prepare(request).await.asked(|| format!("prepare snapshot {key}"))?.mounts;
        let request =
            ApplyRequest { diff: Some(descriptor_to_wire(layer)), mounts, sync_fs: true, ..Default::default() };
        let applied = self.diff().apply(request).await.asked(|| "unpack the layer".into());
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.clone(),
            name: name.to_owned(),
            key: key.clone(),
            labels,
            ..Default::default()
        };
        let committed = match applied {
            Ok(_) => self.snapshots().commit(request).await.asked(|| format!("commit snapshot {name}")),
            Err(error) => Err(error),
        };
        match committed {
            Ok(_) => Ok(()),
            Err(error) => {
                self.forget(snapshotter, &key).await;
                // Somebody else was faster.
                if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Removes a snapshot that was made for a moment; the lease ends it should this fail.
    async fn forget(&self, snapshotter: &str, key: &str) {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let _ = self.snapshots().remove(request).await;
    }

    async fn write_image(
        &self,
        record: &Container,
        image: &Image,
        commit: &Commit,
        (family, config, layer, top): (&Family, &Value, &Descriptor, &str),
    ) -> Result<Digest, Error> {
        let unpacked = format!("{}{}", labels::GC_REF_SNAPSHOT, record.snapshotter);
        let config = self.write_document(family.config, config, Labels::from([(unpacked, top.to_owned())])).await?;
        let mut layers: Vec<Value> = serde_json::to_value(image.manifest.layers())
            .and_then(serde_json::from_value)
            .map_err(|e| Error::malformed("manifest", e))?;
        layers.push(json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}));
        let keeps = layers.iter().enumerate().filter_map(|(number, layer)| {
            Some((format!("{}.l.{number}", labels::GC_REF_CONTENT), layer["digest"].as_str()?.to_owned()))
        });
        let config_key = format!("{}.config", labels::GC_REF_CONTENT);
        let keeps: Labels = keeps.chain([(config_key, config.digest.to_string())]).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": family.manifest, "layers": layers,
            "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size},
        });
        let manifest = self.write_document(family.manifest, &manifest, keeps).await?;
        self.name_image(&commit.name, &manifest).await?;
        Ok(manifest.digest)
    }

    async fn name_image(&self, name: &str, target: &Descriptor) -> Result<(), Error> {
        let what = || format!("image {name}");
        let target = Some(descriptor_to_wire(target));
        let image = Some(images::Image { name: name.to_owned(), target, ..Default::default() });
        let create = images::CreateImageRequest { image: image.clone(), ..Default::default() };
        match self.images().create(create).await.asked(what) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let update_mask = Some(prost_types::FieldMask { paths: vec!["target".into()] });
                let request = images::UpdateImageRequest { image, update_mask, ..Default::default() };
                self.images().update(request).await.asked(what).map(drop)
            }
            created => created.map(drop),
        }
    }

    async fn document(&self, digest: &str) -> Result<Value, Error> {
        let digest: Digest = digest.parse().map_err(|e| Error::malformed("manifest", e))?;
        let bytes = self.read_blob(&digest).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(format!("blob {digest}"), e))
    }

    async fn write_document(&self, kind: &str, document: &Value, labels: Labels) -> Result<Descriptor, Error> {
        let data = document.to_string().into_bytes();
        let digest = Digest::of(&data);
        let written = Descriptor::new(kind, digest.clone(), data.len() as u64);
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("commit-{digest}"),
            total: data.len().try_into().unwrap_or_default(),
            expected: digest.to_string(),
            data: data.into(),
            labels,
            ..Default::default()
        };
        let what = || format!("blob {digest}");
        let sent = async {
            let mut answers = self.content().write(tokio_stream::iter([request])).await.asked(what)?;
            while answers.message().await.map(Response::new).asked(what)?.is_some() {}
            Ok(())
        };
        match sent.await {
            Err(error) if Error::kind(&error) == ErrorKind::AlreadyExists => Ok(written),
            sent => sent.map(|()| written),
        }
    }
}

/// The media types of one family of images.
struct Family {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

impl Family {
    fn of(manifest: &str) -> Family {
        match manifest {
            media_type::DOCKER_MANIFEST => Family {
                manifest: media_type::DOCKER_MANIFEST,
                config: media_type::DOCKER_CONFIG,
                layer: media_type::DOCKER_LAYER_GZIP,
            },
            _ => Family {
                manifest: media_type::OCI_MANIFEST,
                config: media_type::OCI_CONFIG,
                layer: media_type::OCI_LAYER_GZIP,
            },
        }
    }
}

/// The image's configuration with the new layer in it; what it says besides stays as it is.
fn configured(mut config: Value, record: &Container, commit: &Commit, diff_id: &str) -> Result<Value, Error> {
    let malformed = || Error::malformed("image configuration", "is no object with rootfs.diff_ids");
    let created = rfc3339(commit.time.unwrap_or_else(SystemTime::now));
    let spec: Option<Spec> = record.spec.as_ref().and_then(|spec| serde_json::from_slice(&spec.value).ok());
    let args = spec.and_then(|spec| spec.process().as_ref()?.args().clone()).unwrap_or_default();
    let mut line = json!({"created": created, "created_by": args.join(" ")});
    for (key, text) in [("author", &commit.author), ("comment", &commit.message)] {
        if !text.is_empty() {
            line[key] = text.as_str().into();
        }
    }
    let diff_ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut).ok_or_else(malformed)?;
    diff_ids.push(diff_id.into());
    let fields = config.as_object_mut().ok_or_else(malformed)?;
    fields.insert("created".into(), created.into());
    if !commit.author.is_empty() {
        fields.insert("author".into(), commit.author.as_str().into());
    }
    if let Value::Array(history) = fields.entry("history").or_insert_with(|| json!([])) {
        history.push(line);
    }
    if let Value::Object(defaults) = fields.entry("config").or_insert_with(|| json!({})) {
        defaults.extend(commit.cmd.as_ref().map(|cmd| ("Cmd".to_owned(), json!(cmd))));
        defaults.extend(commit.entrypoint.as_ref().map(|entrypoint| ("Entrypoint".to_owned(), json!(entrypoint))));
    }
    Ok(config)
}
