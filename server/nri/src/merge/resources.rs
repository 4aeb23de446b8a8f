//! Limits that a plug-in wants, put over those that there are.

use super::owners::Owners;
use crate::Result;
use crate::api::{Field, LinuxCpu, LinuxMemory, LinuxResources};

/// Whose limits, and who wants them.
pub(super) struct Claim<'a> {
    pub(super) owners: &'a mut Owners,
    pub(super) id: &'a str,
    pub(super) plugin: &'a str,
}

impl Claim<'_> {
    fn take(&mut self, field: Field, key: &str) -> Result<()> {
        self.owners.claim(self.id, field, key, self.plugin)
    }
}

macro_rules! optional {
    ($claim:ident, $wanted:expr, $targets:expr, $($member:ident => $field:ident),* $(,)?) => {
        $(if let Some(value) = $wanted.$member.clone() {
            $claim.take(Field::$field, "")?;
            for target in $targets.iter_mut() {
                target.$member = Some(value.clone());
            }
        })*
    };
}

/// Puts `wanted` over all `targets`.
///
/// # Errors
/// When another plug-in set one of these limits.
pub(super) fn put(claim: &mut Claim<'_>, wanted: &LinuxResources, targets: &mut [&mut LinuxResources]) -> Result<()> {
    if let Some(memory) = &wanted.memory {
        put_memory(claim, memory, targets)?;
    }
    if let Some(cpu) = &wanted.cpu {
        put_cpu(claim, cpu, targets)?;
    }
    for page in &wanted.hugepage_limits {
        claim.take(Field::HugepageLimits, &page.page_size)?;
        for target in targets.iter_mut() {
            target.hugepage_limits.retain(|known| known.page_size != page.page_size);
            target.hugepage_limits.push(page.clone());
        }
    }
    for (key, value) in &wanted.unified {
        claim.take(Field::CgroupsUnified, key)?;
        targets.iter_mut().for_each(|target| drop(target.unified.insert(key.clone(), value.clone())));
    }
    for target in targets.iter_mut() {
        target.devices.extend(wanted.devices.iter().cloned());
    }
    optional!(claim, wanted, targets, blockio_class => BlockioClass, rdt_class => RdtClass, pids => PidsLimit);
    Ok(())
}

fn put_memory(claim: &mut Claim<'_>, wanted: &LinuxMemory, targets: &mut [&mut LinuxResources]) -> Result<()> {
    let mut targets: Vec<&mut LinuxMemory> =
        targets.iter_mut().map(|target| target.memory.get_or_insert_default()).collect();
    optional!(claim, wanted, targets,
        limit => MemLimit,
        reservation => MemReservation,
        swap => MemSwapLimit,
        kernel => MemKernelLimit,
        kernel_tcp => MemTcpLimit,
        swappiness => MemSwappiness,
        disable_oom_killer => MemDisableOomKiller,
        use_hierarchy => MemUseHierarchy,
    );
    Ok(())
}

fn put_cpu(claim: &mut Claim<'_>, wanted: &LinuxCpu, targets: &mut [&mut LinuxResources]) -> Result<()> {
    let mut targets: Vec<&mut LinuxCpu> = targets.iter_mut().map(|target| target.cpu.get_or_insert_default()).collect();
    optional!(claim, wanted, targets,
        shares => CpuShares,
        quota => CpuQuota,
        period => CpuPeriod,
        realtime_runtime => CpuRealtimeRuntime,
        realtime_period => CpuRealtimePeriod,
    );
    if !wanted.cpus.is_empty() {
        claim.take(Field::CpuSetCpUs, "")?;
        targets.iter_mut().for_each(|target| target.cpus.clone_from(&wanted.cpus));
    }
    if !wanted.mems.is_empty() {
        claim.take(Field::CpuSetMems, "")?;
        targets.iter_mut().for_each(|target| target.mems.clone_from(&wanted.mems));
    }
    Ok(())
}
