//! Who set what: the first one may, a second one contradicts it.

use std::collections::BTreeMap;

use crate::api::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};
use crate::{Error, Result};

/// Owners by container, field, and key within the field (empty for fields without).
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<(String, i32, String), String>);

impl Owners {
    /// Makes `plugin` the owner.
    ///
    /// # Errors
    /// [`Error::Conflict`] where another one is.
    pub(super) fn claim(&mut self, id: &str, field: Field, key: &str, plugin: &str) -> Result<()> {
        let first = self.0.entry((id.to_owned(), field as i32, key.to_owned())).or_insert_with(|| plugin.to_owned());
        if first == plugin {
            return Ok(());
        }
        let what = match key {
            "" => field.as_str_name().to_owned(),
            key => format!("{} {key:?}", field.as_str_name()),
        };
        Err(Error::Conflict { first: first.clone(), second: plugin.to_owned(), what })
    }

    /// Nobody is the owner any more: what it set was removed.
    pub(super) fn clear(&mut self, id: &str, field: Field, key: &str) {
        self.0.remove(&(id.to_owned(), field as i32, key.to_owned()));
    }

    /// As plug-ins that validate are told.
    pub(super) fn to_message(&self) -> OwningPlugins {
        let mut all = OwningPlugins::default();
        for ((id, field, key), plugin) in &self.0 {
            let fields: &mut FieldOwners = all.owners.entry(id.clone()).or_default();
            if key.is_empty() {
                fields.simple.insert(*field, plugin.clone());
            } else {
                let of: &mut CompoundFieldOwners = fields.compound.entry(*field).or_default();
                of.owners.insert(key.clone(), plugin.clone());
            }
        }
        all
    }
}
