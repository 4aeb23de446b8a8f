//! Images come from elsewhere and say what to make: namespaces, mounts, rights. A restored container gets no more of
//! them than its configuration gives.
//!
//! Before: the directory holds nothing that would lead CRIU's reads and writes elsewhere. Between: CRIU stops twice,
//! when all processes exist and none has run, and when they have their rights; whoever is not where the configuration
//! wants it, or may do more, makes the restore fail.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use super::DESCRIPTORS;
use crate::capabilities::Sets;
use crate::error::{Error, Result};
use crate::spec::{Mount, NamespaceKind, Process, Spec};

/// The largest `descriptors.json`: three names.
const MAX_DESCRIPTORS: u64 = 64 << 10;
/// The longest chain of images that build on each other.
const MAX_PARENTS: usize = 32;
/// The most processes of a container.
const MAX_TASKS: usize = 1 << 16;

fn hostile(path: &Path, reason: &str) -> Error {
    Error::Criu { command: "restore", reason: format!("{} {reason}", path.display()) }
}

/// Refuses a directory with anything but files, and those it builds on.
pub(super) fn images(directory: &Path) -> Result<()> {
    let mut directory = directory.to_owned();
    for _ in 0..MAX_PARENTS {
        match one_directory(&directory)? {
            Some(parent) => directory = directory.join(parent),
            None => return Ok(()),
        }
    }
    Err(hostile(&directory, "is too far down a chain of images"))
}

/// Looks through a directory; what its `parent` says, if it has one.
fn one_directory(directory: &Path) -> Result<Option<std::path::PathBuf>> {
    let failed = |source| Error::file("read", directory, source);
    let mut parent = None;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() && entry.file_name() == "parent" {
            let target = std::fs::read_link(entry.path()).map_err(failed)?;
            parent = Some(sibling(&entry.path(), target)?);
        } else if !kind.is_file() && !kind.is_dir() {
            return Err(hostile(&entry.path(), "is neither a file nor a directory"));
        }
    }
    Ok(parent)
}

/// A parent is below the directory, or beside it.
fn sibling(link: &Path, target: std::path::PathBuf) -> Result<std::path::PathBuf> {
    let mut parts = target.components();
    let first = parts.next();
    let fine = matches!(first, Some(Component::ParentDir | Component::Normal(_) | Component::CurDir))
        && parts.clone().all(|part| matches!(part, Component::Normal(_)))
        && (first != Some(Component::ParentDir) || parts.next().is_some());
    if fine { Ok(target) } else { Err(hostile(link, "leads away from the images")) }
}

/// The pipes that the first process's streams were, by number.
pub(super) fn pipes(directory: &Path) -> Result<Vec<(i32, String)>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let path = directory.join(DESCRIPTORS);
    let failed = |source| Error::file("read", &path, source);
    let mut bytes = Vec::new();
    let file = std::fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    file.map_err(failed)?.take(MAX_DESCRIPTORS).read_to_end(&mut bytes).map_err(failed)?;
    // `null` is what a caller without streams writes.
    let names: Option<Vec<String>> = serde_json::from_slice(&bytes).map_err(|error| Error::Json {
        what: "descriptors",
        path: path.clone(),
        reason: error.to_string(),
    })?;
    let names = names.unwrap_or_default().into_iter().take(3).enumerate();
    Ok(names.filter(|(_, name)| is_pipe(name)).map(|(at, name)| (at as i32, name)).collect())
}

fn is_pipe(name: &str) -> bool {
    let number = name.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Refuses processes that are not in the container's namespaces, or see file systems that are none of its business.
/// `runner`: CRIU's own process, whose mount namespace is not the container's either.
pub(super) fn place(pid: i32, runner: i32, spec: &Spec) -> Result<()> {
    for task in tasks(pid) {
        for (kind, file) in KINDS {
            let Some(entry) = spec.namespace(kind) else { continue };
            let is = match namespace(task, file) {
                Err(_) if task != pid && has_ended(task) => break,
                is => is?,
            };
            let right = if entry.path.as_os_str().is_empty() {
                is != namespace(std::process::id() as i32, file)? && is != namespace(runner, file)?
            } else {
                let path = &entry.path;
                is == std::fs::metadata(path).map_err(|source| Error::file("open namespace", path, source))?.ino()
            };
            if !right {
                let reason = format!("a process of the images is not in the container's {file} namespace");
                return Err(Error::Criu { command: "restore", reason });
            }
        }
    }
    let path = format!("/proc/{pid}/mountinfo");
    let table = std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
    match foreign_mount(&table, spec) {
        None => Ok(()),
        Some(line) => {
            let reason = format!("the images have a mount that the configuration has not: {line}");
            Err(Error::Criu { command: "restore", reason })
        }
    }
}

const KINDS: [(NamespaceKind, &str); 7] = [
    (NamespaceKind::Mount, "mnt"),
    (NamespaceKind::Pid, "pid"),
    (NamespaceKind::Network, "net"),
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Uts, "uts"),
    (NamespaceKind::User, "user"),
    (NamespaceKind::Cgroup, "cgroup"),
];

fn namespace(pid: i32, file: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/{file}");
    std::fs::metadata(&path)
        .map(|metadata| metadata.ino())
        .map_err(|source| Error::file("open namespace", path, source))
}

/// File systems without content of the host.
const OWN: [&str; 7] = ["tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// The first line of a mount table that the configuration does not explain: neither the root nor a part of it, nor a
/// file system without content of the host, nor what is mounted at a configured place.
fn foreign_mount<'a>(table: &'a str, spec: &Spec) -> Option<&'a str> {
    let lines = || table.lines().filter_map(|line| Some((line, Line::parse(line)?)));
    let root = lines().map(|(_, entry)| entry).find(|entry| entry.place == "/");
    let clean = |path: &str| format!("/{}", path.trim_matches('/'));
    let deep = |mount: &Mount| mount.options.iter().any(|option| option == "rbind");
    let places = spec.mounts.iter().map(|mount| (clean(&mount.destination), deep(mount)));
    let masked = spec.linux.masked_paths.iter().map(|path| (clean(path), false));
    let devices = super::restore::bound_devices(spec).into_iter().map(|path| (path, false));
    let known = places.chain(masked).chain(devices).collect::<Vec<_>>();
    let explained = |entry: &Line<'_>| {
        let below =
            |whole: &str| entry.place.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let part = root.as_ref().is_some_and(|root| {
            let inside = root.root == "/" || entry.root == root.root || {
                entry.root.strip_prefix(root.root).is_some_and(|rest| rest.starts_with('/'))
            };
            root.device == entry.device && inside
        });
        part || OWN.contains(&entry.kind)
            || known.iter().any(|(place, deep)| entry.place == place || (*deep && below(place)))
    };
    lines().find(|(_, entry)| !explained(entry)).map(|(line, _)| line)
}

/// What matters of a line of `mountinfo` (proc(5)).
struct Line<'a> {
    device: &'a str,
    root: &'a str,
    place: &'a str,
    kind: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let (first, second) = line.split_once(" - ")?;
        let mut words = first.split(' ').skip(2);
        let (device, root, place) = (words.next()?, words.next()?, words.next()?);
        Some(Line { device, root, place, kind: second.split(' ').next()? })
    }
}

/// Refuses processes with more rights than the configuration's. `no_new_privs` is not looked for: CRIU before 4 loses it.
pub(super) fn rights(pid: i32, process: &Process, filtered: bool) -> Result<()> {
    let sets = process.capabilities.as_ref().map_or(Sets::default(), |names| Sets::new(names, u64::MAX));
    let most = sets.bounding | sets.permitted | sets.inheritable;
    for task in tasks(pid) {
        let path = format!("/proc/{task}/status");
        let text = match std::fs::read_to_string(&path) {
            Err(_) if task != pid && has_ended(task) => continue,
            text => text.map_err(|source| Error::file("read", &path, source))?,
        };
        if task != pid && is_over(&text) {
            continue;
        }
        if let Some(reason) = excess(&text, most, filtered) {
            return Err(Error::Criu { command: "restore", reason: format!("a process of the images {reason}") });
        }
    }
    Ok(())
}

fn excess(status: &str, most: u64, filtered: bool) -> Option<String> {
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim);
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let has = u64::from_str_radix(field(name), 16).unwrap_or(u64::MAX);
        if has & !most != 0 {
            return Some(format!("has capabilities that the configuration does not give ({name} {has:#x})"));
        }
    }
    if filtered && field("Seccomp") != "2" {
        return Some("lacks a seccomp filter".to_owned());
    }
    None
}

/// Whether a process runs no more, reaped or not: then it is in no namespace, and does nothing. CRIU's helpers end so,
/// with rights that nobody took from them.
fn has_ended(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |status| is_over(&status))
}

/// Whether a `status` (proc_pid_status(5)) is that of a process of which nothing runs: a leader of threads may be a
/// zombie while they go on.
fn is_over(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    field("State:").starts_with(['Z', 'X']) && matches!(field("Threads:"), "0" | "1")
}

/// A process and all that descend from it.
fn tasks(pid: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::from([pid]);
    let mut todo = vec![pid];
    while let Some(parent) = todo.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()) {
                if all.len() < MAX_TASKS && all.insert(child) {
                    todo.push(child);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let json = r#"{"ociVersion": "1.3.0", "root": {"path": "r"}, "linux": {"namespaces": [{"type": "mount"}],
            "maskedPaths": ["/proc/kcore"]}, "mounts": [
            {"destination": "/data/", "type": "bind", "source": "/srv", "options": ["rbind"]},
            {"destination": "/etc/hosts", "type": "none", "source": "/h", "options": ["bind"]}]}"#;
        Spec::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_has_ended_is_told_from_a_leader_whose_threads_go_on() {
        assert!(is_over("Name:\tcriu\nState:\tZ (zombie)\nThreads:\t1\n"));
        assert!(!is_over("Name:\tevil\nState:\tZ (zombie)\nThreads:\t2\n"));
        assert!(!is_over("Name:\tsleep\nState:\tS (sleeping)\nThreads:\t1\n"));
        assert!(!is_over(""));
    }

    #[test]
    fn mounts_that_the_configuration_does_not_explain_are_found() {
        let root = "20 1 8:1 /var/box / rw - ext4 /dev/sda rw\n";
        for fine in [
            "21 20 0:5 / /proc rw - proc proc rw",
            "22 20 8:1 /var/box/etc /etc rw - ext4 /dev/sda rw",
            "23 20 8:1 /srv /data rw - ext4 /dev/sda rw",
            "24 23 8:2 / /data/disk rw - xfs /dev/sdb rw",
            "25 20 8:1 /h /etc/hosts rw - ext4 /dev/sda rw",
            "26 21 0:6 /null /proc/kcore rw - devtmpfs udev rw",
        ] {
            assert_eq!(foreign_mount(&format!("{root}{fine}"), &spec()), None, "{fine}");
        }
        for bad in [
            "21 20 8:1 / /tmp/x rw - ext4 /dev/sda rw",
            "21 20 8:1 /var/boxes /tmp/x rw - ext4 /dev/sda rw",
            "21 20 8:2 / /mnt rw - xfs /dev/sdb rw",
            "21 20 0:50 / /mnt rw - overlay overlay rw,lowerdir=/",
            "21 20 0:6 / /dev rw - devtmpfs udev rw",
            "21 20 8:2 / /etc/hosts/x rw - xfs /dev/sdb rw",
        ] {
            assert_eq!(foreign_mount(&format!("{root}{bad}"), &spec()), Some(bad));
        }
    }

    #[test]
    fn a_process_that_has_ended_is_told_from_one_that_runs() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        while !has_ended(pid) {
            std::thread::yield_now();
        }
        assert!(namespace(pid, "mnt").is_err(), "a zombie has no namespace");
        child.wait().unwrap();
        assert!(!has_ended(std::process::id() as i32));
    }

    #[test]
    fn more_rights_than_configured_are_found() {
        let status = |caps: u64, extra: &str| {
            let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
            sets.iter().map(|name| format!("{name}:\t{caps:016x}\n")).collect::<String>() + extra
        };
        assert_eq!(excess(&status(0x5, "Seccomp:\t2\n"), 0x7, true), None);
        assert!(excess(&status(0x8, "Seccomp:\t2\n"), 0x7, true).unwrap().contains("CapInh"));
        assert!(excess(&status(0, "Seccomp:\t0\n"), 0, true).unwrap().contains("seccomp"));
        assert!(excess("", 0, false).is_some(), "what cannot be read is no leave");
    }

    #[test]
    fn a_directory_of_images_holds_files_and_leads_nowhere() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("1"), directory.path().join("2"));
        for path in [&first, &second] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("core-1.img"), "").unwrap();
        }
        symlink("../1", second.join("parent")).unwrap();
        images(&second).unwrap();
        symlink("/etc/passwd", first.join("restore.log")).unwrap();
        assert!(images(&second).unwrap_err().to_string().contains("restore.log"), "of its parent too");
        std::fs::remove_file(first.join("restore.log")).unwrap();
        for bad in ["/", "..", "../..", "../../1", "/tmp"] {
            std::fs::remove_file(second.join("parent")).unwrap();
            symlink(bad, second.join("parent")).unwrap();
            assert!(images(&second).is_err(), "{bad}");
        }
        std::fs::remove_file(second.join("parent")).unwrap();
        symlink("../2", second.join("parent")).unwrap();
        assert!(images(&second).is_err(), "a circle");
    }

    #[test]
    fn only_pipes_are_inherited() {
        let directory = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(directory.path().join(DESCRIPTORS), text).unwrap();
        write(r#"["/dev/null", "pipe:[12]", "pipe:[x]", "pipe:[4]"]"#);
        assert_eq!(pipes(directory.path()).unwrap(), [(1, "pipe:[12]".to_owned())]);
        write("null");
        assert!(pipes(directory.path()).unwrap().is_empty());
        for bad in ["", "{}", "[1]", r#"["a""#] {
            write(bad);
            assert!(pipes(directory.path()).is_err(), "{bad}");
        }
    }
}
