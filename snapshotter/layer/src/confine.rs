//! What the threads that work on hostile bytes may still do: even if this crate were fooled, nothing outside the given
//! directories is opened, made, changed or removed (Landlock, linux/Documentation/userspace-api/landlock.rst), nothing is
//! mounted, least of all where others would see it (mount_namespaces(7)), and only the capabilities remain that owners,
//! modes, devices and attributes of files need.
//!
//! All of it holds for a thread to its end, so it must be one that ends with the work. A kernel without Landlock leaves
//! the other two; a process without capabilities has none to drop, and no namespace.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The newest version whose rights are known here; older kernels keep what they know.
const NEWEST: ABI = ABI::V5;

/// What files as archived take: owners, modes, set-id bits, devices, file capabilities, attributes for the host alone.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// What a thread may reach.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reach<'a> {
    /// Everything below is allowed.
    pub(crate) root: Option<&'a Path>,
    /// Below these, reading.
    pub(crate) read: &'a [std::path::PathBuf],
    /// A file that is there and may be written.
    pub(crate) file: Option<&'a Path>,
}

/// Confines the calling thread to its end; says whether the kernel does all of it.
pub(crate) fn confine(reach: Reach<'_>) -> bool {
    let apart = reach.root.is_none() || leave().is_ok();
    let fenced = fence(reach).unwrap_or(false);
    let keep = if reach.root.is_some() { NEEDED } else { CapabilitySet::empty() };
    drop_capabilities(keep) && fenced && apart
}

/// Gives the thread mounts of its own. What is unmounted elsewhere goes here, too, so that nothing is kept busy; nothing
/// comes back from here.
fn leave() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
}

fn fence(reach: Reach<'_>) -> Result<bool, landlock::RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    let mut rules: Vec<(&Path, BitFlags<AccessFs>)> = reach.root.iter().map(|root| (*root, all)).collect();
    rules.extend(reach.read.iter().map(|path| (path.as_path(), AccessFs::ReadFile | AccessFs::ReadDir)));
    rules.extend(reach.file.iter().map(|path| (*path, AccessFs::WriteFile | AccessFs::Truncate)));
    let mut ruleset = ruleset;
    for (path, access) in rules {
        // One that cannot be opened cannot be worked in either: that is told where it is tried.
        if let Ok(open) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(open, access))?;
        }
    }
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

fn drop_capabilities(keep: CapabilitySet) -> bool {
    let Ok(now) = capabilities(None) else { return false };
    let kept = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;

    use super::*;

    /// Does `work` in a thread that may only reach `root`.
    fn inside<T: Send>(root: &Path, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                assert!(confine(Reach { root: Some(root), ..Reach::default() }), "this kernel has no Landlock");
                work()
            });
            confined.join().unwrap()
        })
    }

    fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) -> bool {
        matches!(result.as_ref().map_err(std::io::Error::kind), Err(ErrorKind::PermissionDenied))
    }

    #[test]
    fn mounts_of_a_confined_thread_are_its_own() {
        let root = tempfile::tempdir().unwrap();
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tid = rustix::thread::gettid();
                assert!(confine(Reach { root: Some(root.path()), ..Reach::default() }), "not confined");
                tell.send(tid).unwrap();
                let ended = ended;
                ended.recv().unwrap_err();
            });
            let tid = told.recv().unwrap();
            let its = fs::read_link(format!("/proc/self/task/{tid}/ns/mnt"));
            let mounts = fs::read_to_string(format!("/proc/self/task/{tid}/mountinfo"));
            drop(end);
            assert_ne!(its.unwrap(), own);
            assert!(!mounts.unwrap().contains("shared:"), "what is mounted there would be seen elsewhere");
        });
    }

    #[test]
    fn a_planted_way_out_leads_nowhere() {
        let outer = tempfile::tempdir().unwrap();
        let (root, secret) = (outer.path().join("root"), outer.path().join("secret"));
        fs::create_dir(&root).unwrap();
        fs::write(&secret, "untouched").unwrap();
        std::os::unix::fs::symlink(&secret, root.join("out")).unwrap();
        let (escape, outside) = (root.join("../made"), outer.path().to_owned());
        inside(&root, || {
            assert!(refused(fs::read(&secret)), "read");
            assert!(refused(fs::read(root.join("out"))), "read through a link");
            assert!(refused(File::create(&escape)), "made");
            assert!(refused(fs::create_dir(&escape)), "made a directory");
            assert!(refused(std::os::unix::fs::symlink("x", &escape)), "made a link");
            assert!(refused(fs::remove_file(&secret)), "removed");
            assert!(fs::rename(&secret, root.join("taken")).is_err(), "renamed");
            assert!(fs::hard_link(&secret, root.join("taken")).is_err(), "linked");
            assert!(refused(fs::read_dir(&outside)), "listed");
            assert!(fs::File::options().write(true).open(&secret).is_err(), "opened");
            fs::write(root.join("inside"), "works").unwrap();
            fs::hard_link(root.join("inside"), root.join("again")).unwrap();
        });
        assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
        fs::read(&secret).unwrap();
    }

    #[test]
    fn capabilities_that_files_do_not_need_are_gone_and_only_there() {
        let root = tempfile::tempdir().unwrap();
        let before = capabilities(None).unwrap().effective;
        let left = inside(root.path(), || capabilities(None).unwrap());
        assert_eq!(left.effective, before & NEEDED);
        assert_eq!(left.permitted & !NEEDED, CapabilitySet::empty());
        assert_eq!(capabilities(None).unwrap().effective, before);
    }
}
