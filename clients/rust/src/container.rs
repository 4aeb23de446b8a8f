//! Making a container: a writable snapshot on an image's layers, and the record that names both.

use std::collections::BTreeMap;

use gantry_api::pb::containerd::services::containers::v1 as wire;
use gantry_api::pb::containerd::services::leases::v1 as leases;
use gantry_api::pb::containerd::services::snapshots::v1 as snapshots;
use gantry_spec::oci_spec::runtime::Spec;
use gantry_types::HasKind;
use gantry_types::labels::GC_EXPIRE;

use crate::error::Asked;
use crate::{Client, Error, Image};

/// The runtime that clients ask for by default.
pub const RUNTIME: &str = "io.containerd.runc.v2";
/// Type name of an OCI configuration as clients of containerd send it.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// What a container is made from.
#[derive(Clone, Debug)]
pub struct NewContainer<'a> {
    /// Its id.
    pub id: &'a str,
    /// The image it runs.
    pub image: &'a Image,
    /// Its configuration.
    pub spec: &'a Spec,
    /// Where its file system lives.
    pub snapshotter: &'a str,
    /// Who runs it, [`RUNTIME`] by default.
    pub runtime: &'a str,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Client {
    /// Prepares a writable snapshot on the image and records the container. When recording fails the snapshot goes.
    ///
    /// # Errors
    /// `AlreadyExists` when the id is taken; `NotFound` when the image is not unpacked for the snapshotter.
    pub async fn create_container(&self, new: &NewContainer<'_>) -> Result<(), Error> {
        let lease = self.lease(&format!("create-{}", new.id)).await?;
        let leased = self.under_lease(lease.clone());
        let result = leased.create_leased(new).await;
        self.release(&lease).await?;
        result
    }

    async fn create_leased(&self, new: &NewContainer<'_>) -> Result<(), Error> {
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: new.snapshotter.to_owned(),
            key: new.id.to_owned(),
            parent: new.image.chain_id.clone(),
            labels: BTreeMap::new(),
        };
        self.snapshots().prepare(prepare).await.asked(|| format!("prepare snapshot {}", new.id))?;
        let value = serde_json::to_vec(new.spec).map_err(|e| Error::malformed("configuration", e))?;
        let container = wire::Container {
            id: new.id.to_owned(),
            labels: new.labels.clone(),
            image: new.image.name.clone(),
            runtime: Some(wire::container::Runtime { name: new.runtime.to_owned(), options: None }),
            spec: Some(prost_types::Any { type_url: SPEC_TYPE.into(), value }),
            snapshotter: new.snapshotter.to_owned(),
            snapshot_key: new.id.to_owned(),
            ..Default::default()
        };
        let request = wire::CreateContainerRequest { container: Some(container) };
        let created = self.containers().create(request).await.asked(|| format!("create container {}", new.id));
        if created.is_err() {
            let _ = self.remove_snapshot(new.snapshotter, new.id).await;
        }
        created.map(|_| ())
    }

    /// Removes a container's record and its snapshot. The task must be gone.
    ///
    /// # Errors
    /// `NotFound` when there is no such container; `FailedPrecondition` while its task is there.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let what = || format!("container {id}");
        let get = wire::GetContainerRequest { id: id.to_owned() };
        let container = self.containers().get(get).await.asked(what)?.container.unwrap_or_default();
        let delete = wire::DeleteContainerRequest { id: id.to_owned() };
        self.containers().delete(delete).await.asked(|| format!("remove container {id}"))?;
        if container.snapshot_key.is_empty() {
            return Ok(());
        }
        match self.remove_snapshot(&container.snapshotter, &container.snapshot_key).await {
            Err(error) if error.kind() != gantry_types::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A container's configuration as it was recorded.
    ///
    /// # Errors
    /// `NotFound` when there is no such container.
    pub async fn spec(&self, id: &str) -> Result<Spec, Error> {
        let what = || format!("container {id}");
        let get = wire::GetContainerRequest { id: id.to_owned() };
        let container = self.containers().get(get).await.asked(what)?.container.unwrap_or_default();
        let spec = container.spec.ok_or_else(|| Error::malformed(what(), "has no configuration"))?;
        serde_json::from_slice(&spec.value).map_err(|e| Error::malformed(what(), e))
    }

    /// Replaces a container's configuration. It counts from the next task on.
    ///
    /// # Errors
    /// `NotFound` when there is no such container.
    pub async fn update_spec(&self, id: &str, spec: &Spec) -> Result<(), Error> {
        let value = serde_json::to_vec(spec).map_err(|e| Error::malformed("configuration", e))?;
        let spec = Some(prost_types::Any { type_url: SPEC_TYPE.into(), value });
        let container = wire::Container { id: id.to_owned(), spec, ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["spec".into()] });
        let request = wire::UpdateContainerRequest { container: Some(container), update_mask };
        self.containers().update(request).await.asked(|| format!("update container {id}")).map(|_| ())
    }

    /// The mounts that make a container's root file system.
    ///
    /// # Errors
    /// `NotFound` when there is no such snapshot.
    pub async fn rootfs(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<Vec<gantry_api::pb::containerd::types::Mount>, Error> {
        let request = snapshots::MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        Ok(self.snapshots().mounts(request).await.asked(|| format!("mounts of {key}"))?.mounts)
    }

    async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Error> {
        let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        self.snapshots().remove(request).await.asked(|| format!("remove snapshot {key}")).map(|_| ())
    }

    /// Takes a lease that ends by itself after a day, should the caller die.
    pub(crate) async fn lease(&self, name: &str) -> Result<String, Error> {
        let id: String = format!("{name}-{}", std::process::id());
        let expire = std::time::SystemTime::now() + std::time::Duration::from_secs(24 * 3600);
        let labels = BTreeMap::from([(GC_EXPIRE.to_owned(), gantry_api::convert::rfc3339(expire))]);
        let request = leases::CreateRequest { id: id.clone(), labels };
        self.leases().create(request).await.asked(|| format!("take lease {id}"))?;
        Ok(id)
    }

    pub(crate) async fn release(&self, lease: &str) -> Result<(), Error> {
        let request = leases::DeleteRequest { id: lease.to_string(), sync: false };
        self.leases().delete(request).await.asked(|| format!("release lease {lease}")).map(|_| ())
    }
}
