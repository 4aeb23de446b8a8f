//! What several plug-ins want of one request, merged: pure rules. Each sees the container as those before it left it.

mod adjust;
mod owners;
mod resources;

use crate::api::{Container, ContainerAdjustment, ContainerUpdate, LinuxResources, OwningPlugins};
use crate::{Error, Result};
use owners::Owners;
use resources::{Claim, put};

/// The name behind the mark that removes it: `-NAME`.
pub fn removed(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// The answers to one request.
#[derive(Debug, Default)]
pub struct Merge {
    owners: Owners,
    /// The container as the next plug-in is to see it; none but for a creation.
    container: Option<Container>,
    adjust: ContainerAdjustment,
    updates: Vec<ContainerUpdate>,
    /// Whose limits the request itself changes.
    requested: Option<ContainerUpdate>,
}

impl Merge {
    /// For a container that is being made.
    pub fn creation(container: Container) -> Merge {
        Merge { container: Some(container), ..Merge::default() }
    }

    /// For a change of a container's limits.
    pub fn update(id: &str, limits: LinuxResources) -> Merge {
        Merge { requested: Some(update_of(id, limits)), ..Merge::default() }
    }

    /// For a container that has ended.
    pub fn stop() -> Merge {
        Merge::default()
    }

    /// The container as the next plug-in is to see it.
    pub fn container(&self) -> Option<&Container> {
        self.container.as_ref()
    }

    /// The limits of the request as the next plug-in is to see them.
    pub fn limits(&self) -> Option<&LinuxResources> {
        self.requested.as_ref()?.linux.as_ref()?.resources.as_ref()
    }

    /// Takes what a plug-in wants to be different in the container that is being made.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub fn adjust(&mut self, wanted: ContainerAdjustment, plugin: &str) -> Result<()> {
        let Some(container) = self.container.as_mut() else { return Ok(()) };
        adjust::Adjusting { owners: &mut self.owners, container, into: &mut self.adjust, plugin }.all(wanted)
    }

    /// Takes limits that a plug-in wants for containers that exist.
    ///
    /// # Errors
    /// [`Error::Conflict`], unless the plug-in does not mind; [`Error::Itself`].
    pub fn change(&mut self, updates: Vec<ContainerUpdate>, plugin: &str) -> Result<()> {
        for update in updates {
            if self.container.as_ref().is_some_and(|container| container.id == update.container_id) {
                return Err(Error::Itself { plugin: plugin.to_owned(), id: update.container_id });
            }
            let ignore = update.ignore_failure;
            match self.change_one(update, plugin) {
                Err(_) if ignore => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn change_one(&mut self, update: ContainerUpdate, plugin: &str) -> Result<()> {
        let id = update.container_id;
        let Some(wanted) = update.linux.and_then(|linux| linux.resources) else { return Ok(()) };
        let known = self.requested.as_mut().filter(|requested| requested.container_id == id);
        let target = match known {
            Some(requested) => requested,
            None => {
                let at = self.updates.iter().position(|known| known.container_id == id).unwrap_or_else(|| {
                    let first = ContainerUpdate { ignore_failure: true, ..update_of(&id, LinuxResources::default()) };
                    self.updates.push(first);
                    self.updates.len() - 1
                });
                &mut self.updates[at]
            }
        };
        // On a copy: a conflict leaves nothing half done.
        let mut limits = target.linux.get_or_insert_default().resources.clone().unwrap_or_default();
        put(&mut Claim { owners: &mut self.owners, id: &id, plugin }, &wanted, &mut [&mut limits])?;
        target.linux.get_or_insert_default().resources = Some(limits);
        target.ignore_failure &= update.ignore_failure;
        Ok(())
    }

    /// Who set what.
    pub fn owners(&self) -> OwningPlugins {
        self.owners.to_message()
    }

    /// What is to be different in the container that is being made, and the limits of others.
    pub fn adjustment(&self) -> (&ContainerAdjustment, &[ContainerUpdate]) {
        (&self.adjust, &self.updates)
    }

    /// The limits of other containers, then those of the request.
    pub fn into_updates(self) -> (Vec<ContainerUpdate>, Option<LinuxResources>) {
        let limits = self.requested.and_then(|requested| requested.linux?.resources);
        (self.updates, limits)
    }
}

fn update_of(id: &str, limits: LinuxResources) -> ContainerUpdate {
    let linux = crate::api::LinuxContainerUpdate { resources: Some(limits) };
    ContainerUpdate { container_id: id.to_owned(), linux: Some(linux), ignore_failure: false }
}

#[cfg(test)]
mod tests;
