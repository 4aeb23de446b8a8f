//! What one plug-in wants to be different in a container that is being made, put over what those before it wanted.

use std::collections::BTreeMap;

use super::owners::Owners;
use super::removed;
use super::resources::{Claim, put};
use crate::Result;
use crate::api::{Container, ContainerAdjustment, Field, Hooks, KeyValue, LinuxContainerAdjustment};

pub(super) struct Adjusting<'a> {
    pub(super) owners: &'a mut Owners,
    pub(super) container: &'a mut Container,
    pub(super) into: &'a mut ContainerAdjustment,
    pub(super) plugin: &'a str,
}

impl Adjusting<'_> {
    pub(super) fn all(mut self, wanted: ContainerAdjustment) -> Result<()> {
        let id = self.container.id.clone();
        let (owners, plugin) = (&mut *self.owners, self.plugin);
        let (seen, into) = (&mut self.container.annotations, &mut self.into.annotations);
        map(Keys { owners, field: Field::Annotations, id: &id, plugin }, seen, into, wanted.annotations)?;
        let keys = Keys { owners: self.owners, field: Field::Mounts, id: &id, plugin };
        let (seen, into) = (&mut self.container.mounts, &mut self.into.mounts);
        list(keys, seen, into, wanted.mounts, |mount| &mount.destination)?;
        self.env(&id, wanted.env)?;
        self.args(&id, wanted.args)?;
        if let Some(hooks) = wanted.hooks {
            // Hooks of several plug-ins run one after the other.
            add_hooks(self.container.hooks.get_or_insert_default(), &hooks);
            add_hooks(self.into.hooks.get_or_insert_default(), &hooks);
        }
        for limit in wanted.rlimits {
            self.owners.claim(&id, Field::Rlimits, &limit.r#type, plugin)?;
            self.container.rlimits.retain(|known| known.r#type != limit.r#type);
            self.container.rlimits.push(limit.clone());
            self.into.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            self.owners.claim(&id, Field::CdiDevices, &device.name, plugin)?;
            self.into.cdi_devices.push(device);
        }
        wanted.linux.map_or(Ok(()), |linux| self.linux(&id, linux))
    }

    fn env(&mut self, id: &str, wanted: Vec<KeyValue>) -> Result<()> {
        let keys = Keys { owners: self.owners, field: Field::Env, id, plugin: self.plugin };
        let named = |pair: &String| pair.split('=').next().unwrap_or_default().to_owned();
        let touched: Vec<String> = wanted.iter().map(|e| removed(&e.key).unwrap_or(&e.key).to_owned()).collect();
        self.container.env.retain(|pair| !touched.contains(&named(pair)));
        let added = wanted.iter().filter(|e| removed(&e.key).is_none());
        self.container.env.extend(added.map(|e| format!("{}={}", e.key, e.value)));
        list(keys, &mut Vec::new(), &mut self.into.env, wanted, |pair| &pair.key)
    }

    /// An empty first argument says that those of another plug-in are to be replaced.
    fn args(&mut self, id: &str, mut wanted: Vec<String>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        if wanted[0].is_empty() {
            self.owners.clear(id, Field::Args, "");
            wanted.remove(0);
        }
        self.owners.claim(id, Field::Args, "", self.plugin)?;
        self.container.args.clone_from(&wanted);
        self.into.args = wanted;
        Ok(())
    }

    fn linux(&mut self, id: &str, wanted: LinuxContainerAdjustment) -> Result<()> {
        let (owners, plugin) = (&mut *self.owners, self.plugin);
        let seen = self.container.linux.get_or_insert_default();
        let into = self.into.linux.get_or_insert_default();
        let keys = Keys { owners, field: Field::Devices, id, plugin };
        list(keys, &mut seen.devices, &mut into.devices, wanted.devices, |device| &device.path)?;
        let keys = Keys { owners, field: Field::Namespace, id, plugin };
        list(keys, &mut seen.namespaces, &mut into.namespaces, wanted.namespaces, |namespace| &namespace.r#type)?;
        let keys = Keys { owners, field: Field::Sysctl, id, plugin };
        map(keys, &mut seen.sysctl, &mut into.sysctl, wanted.sysctl)?;
        let keys = Keys { owners, field: Field::LinuxNetDevices, id, plugin };
        map(keys, &mut seen.net_devices, &mut into.net_devices, wanted.net_devices)?;
        if let Some(limits) = &wanted.resources {
            let targets = &mut [seen.resources.get_or_insert_default(), into.resources.get_or_insert_default()];
            put(&mut Claim { owners, id, plugin }, limits, targets)?;
        }
        if !wanted.cgroups_path.is_empty() {
            owners.claim(id, Field::CgroupsPath, "", plugin)?;
            seen.cgroups_path.clone_from(&wanted.cgroups_path);
            into.cgroups_path = wanted.cgroups_path;
        }
        macro_rules! whole {
            ($($member:ident => $field:ident),*) => {$(
                if let Some(value) = wanted.$member {
                    owners.claim(id, Field::$field, "", plugin)?;
                    seen.$member = Some(value.clone());
                    into.$member = Some(value);
                }
            )*};
        }
        whole!(
            oom_score_adj => OomScoreAdj, io_priority => IoPriority, seccomp_policy => SeccompPolicy,
            scheduler => LinuxSched
        );
        if let Some(policy) = wanted.memory_policy {
            owners.claim(id, Field::MemoryPolicy, "", plugin)?;
            into.memory_policy = Some(policy);
        }
        let Some(rdt) = wanted.rdt else { return Ok(()) };
        let target = into.rdt.get_or_insert_default();
        if rdt.remove {
            for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                owners.clear(id, field, "");
            }
            *target = crate::api::LinuxRdt { remove: true, ..Default::default() };
        }
        macro_rules! part {
            ($($member:ident => $field:ident),*) => {$(
                if let Some(value) = rdt.$member {
                    owners.claim(id, Field::$field, "", plugin)?;
                    target.$member = Some(value);
                    target.remove = false;
                }
            )*};
        }
        part!(clos_id => RdtClosId, schemata => RdtSchemata, enable_monitoring => RdtEnableMonitoring);
        Ok(())
    }
}

/// Whose keys of which field.
struct Keys<'a> {
    owners: &'a mut Owners,
    field: Field,
    id: &'a str,
    plugin: &'a str,
}

impl Keys<'_> {
    fn claim(&mut self, key: &str) -> Result<()> {
        self.owners.claim(self.id, self.field, key, self.plugin)
    }

    fn clear(&mut self, key: &str) {
        self.owners.clear(self.id, self.field, key);
    }
}

/// Entries that have a name: marked ones remove, others replace or add.
fn list<T: Clone>(
    mut keys: Keys<'_>,
    seen: &mut Vec<T>,
    into: &mut Vec<T>,
    wanted: Vec<T>,
    name: impl Fn(&T) -> &String,
) -> Result<()> {
    let (gone, added): (Vec<T>, Vec<T>) = wanted.into_iter().partition(|one| removed(name(one)).is_some());
    let is = |all: &[T], key: &str| all.iter().any(|one| removed(name(one)).unwrap_or(name(one)) == key);
    for one in into.extract_if(.., |one| is(&gone, name(one))) {
        keys.clear(name(&one));
    }
    seen.retain(|one| !is(&gone, name(one)) && !is(&added, name(one)));
    for one in added.iter() {
        keys.claim(name(one))?;
    }
    into.extend(gone.into_iter().filter(|one| !removed(name(one)).is_some_and(|key| is(&added, key))));
    into.retain(|one| !is(&added, name(one)));
    seen.extend(added.iter().cloned());
    into.extend(added);
    Ok(())
}

/// The same for maps.
fn map<V: Clone + Default>(
    mut keys: Keys<'_>,
    seen: &mut BTreeMap<String, V>,
    into: &mut BTreeMap<String, V>,
    wanted: BTreeMap<String, V>,
) -> Result<()> {
    for key in wanted.keys().filter_map(|key| removed(key)) {
        keys.clear(key);
        seen.remove(key);
        into.remove(key);
        into.insert(format!("-{key}"), V::default());
    }
    for (key, value) in wanted.into_iter().filter(|(key, _)| removed(key).is_none()) {
        keys.claim(&key)?;
        seen.insert(key.clone(), value.clone());
        into.insert(key, value);
    }
    Ok(())
}

fn add_hooks(to: &mut Hooks, more: &Hooks) {
    to.prestart.extend(more.prestart.iter().cloned());
    to.create_runtime.extend(more.create_runtime.iter().cloned());
    to.create_container.extend(more.create_container.iter().cloned());
    to.start_container.extend(more.start_container.iter().cloned());
    to.poststart.extend(more.poststart.iter().cloned());
    to.poststop.extend(more.poststop.iter().cloned());
}
