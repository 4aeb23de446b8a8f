//! Containers: what is to run. Running it is a task's affair.

use std::sync::Arc;

use gantry_ttrpc::pb::containerd::events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create};
use gantry_types::{Filter, Scope};

use crate::Result;
use crate::core::{Core, Listing, select};
use crate::monitor::origin;

pub use gantry_metadata::{AnyView, Container, ContainerView, Error as Damaged, Runtime};

/// The containers of all namespaces.
#[derive(Clone)]
pub struct Containers {
    pub(crate) core: Arc<Core>,
}

impl Containers {
    /// One container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, scope: &Scope, id: &str) -> Result<Container> {
        Ok(self.core.db.containers(&scope.namespace).get(id)?)
    }

    /// The containers that `filter` selects (`id`, `image`, `runtime.name`, `labels`), by id.
    ///
    /// # Errors
    /// None at present: damaged records are passed over.
    pub async fn list(&self, scope: &Scope, filter: &Filter) -> Result<Vec<Container>> {
        Ok(select(self.core.db.containers(&scope.namespace).scan(), filter))
    }

    /// The same containers, each shown as it is stored: for long listings.
    pub fn listing(&self, scope: &Scope, filter: Filter) -> Listing<Container> {
        Listing::new(self.core.db.containers(&scope.namespace).scan(), filter)
    }

    /// Enters a container; its times are set here.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`; `PermissionDenied` where the signature policy keeps its image out.
    pub async fn create(&self, scope: &Scope, container: Container) -> Result<Container> {
        crate::policy::at_creation(&self.core, &scope.namespace, &container.image).await?;
        let note = origin::note(&self.core, scope, &container.image, &container.labels).await;
        let container = self.core.db.containers(&scope.namespace).create_noted(container, note).await?;
        let options = container.runtime.options.clone();
        let runtime = container_create::Runtime {
            name: container.runtime.name.clone(),
            options: options.map(|any| prost_types::Any { type_url: any.type_url, value: any.value }),
        };
        let (id, image) = (container.id.to_string(), container.image.clone());
        let event = ContainerCreate { id, image, runtime: Some(runtime) };
        self.core.emit(&scope.namespace, "/containers/create", &event);
        Ok(container)
    }

    /// Changes what `fields` name (`labels`, `spec`, `image`, `extensions`, `snapshotkey`, each of the maps with
    /// `.KEY`), all that may change where there are none.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what cannot change.
    pub async fn update(&self, scope: &Scope, container: Container, fields: &[String]) -> Result<Container> {
        self.note_new_image(scope, &container, fields).await?;
        let container = self.core.db.containers(&scope.namespace).update(container, fields.to_vec()).await?;
        let event = ContainerUpdate {
            id: container.id.to_string(),
            image: container.image.clone(),
            labels: container.labels.clone(),
            snapshot_key: container.snapshot_key.clone(),
        };
        self.core.emit(&scope.namespace, "/containers/update", &event);
        Ok(container)
    }

    async fn note_new_image(&self, scope: &Scope, container: &Container, fields: &[String]) -> Result<()> {
        let records = self.core.db.containers(&scope.namespace);
        let is_named = fields.is_empty() || fields.iter().any(|field| field == "image");
        if !is_named || container.image.is_empty() {
            return Ok(());
        }
        let Ok(old) = records.get(container.id.as_str()) else { return Ok(()) };
        if old.image == container.image {
            return Ok(());
        }
        match origin::note_again(&self.core, scope, container.id.as_str(), &container.image).await {
            Some(note) => Ok(records.set_note(container.id.as_str(), note).await?),
            None => Ok(()),
        }
    }

    /// Removes a container's record. A task it has runs on.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, scope: &Scope, id: &str) -> Result<()> {
        self.core.db.containers(&scope.namespace).delete(id).await?;
        self.core.emit(&scope.namespace, "/containers/delete", &ContainerDelete { id: id.to_owned() });
        self.core.garbage.deleted();
        Ok(())
    }
}
