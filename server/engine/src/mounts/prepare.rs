//! What is made before a mount: directories (`X-containerd.mkdir.…`) and file systems (`X-containerd.mkfs.…`). Both
//! only below directories of our own, and through no symbolic link that leads out of them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use gantry_types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::Error;

const MKDIR: &str = "X-containerd.mkdir.";
const MKFS: &str = "X-containerd.mkfs.";

/// How long making a file system may take.
const MKFS_LIMIT: Duration = Duration::from_secs(300);

/// Directories below which things are made.
#[derive(Clone, Debug)]
pub(crate) struct Roots(pub(crate) Vec<PathBuf>);

/// A place below a root: the directory that holds it, and its name there.
struct Place {
    parent: OwnedFd,
    name: String,
    path: PathBuf,
}

impl Roots {
    fn place(&self, path: &str) -> Result<Place, Error> {
        let path = clean(Path::new(path));
        let outside = || Error::Outside { path: path.clone(), roots: self.0.clone() };
        let root = self.0.iter().find(|root| path.starts_with(root) && path != **root).ok_or_else(outside)?;
        let below = path.strip_prefix(root).map_err(|_| outside())?;
        let name = below.file_name().and_then(|name| name.to_str()).ok_or_else(outside)?.to_owned();
        let directory = File::open(root).map_err(Error::io("open", root))?;
        let parent = below.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let parent =
            openat2(&directory, parent, how).map_err(|errno| Error::io("open the parent of", &path)(errno.into()))?;
        Ok(Place { parent, name, path })
    }
}

/// The path without `.` and `..`, as text.
fn clean(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut cleaned, part| {
        match part {
            Component::ParentDir => drop(cleaned.pop()),
            Component::CurDir => {}
            part => cleaned.push(part),
        }
        cleaned
    })
}

impl Place {
    /// What is there now; none where nothing is.
    fn open(&self) -> Result<Option<OwnedFd>, Error> {
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
        match openat2(&self.parent, self.name.as_str(), how) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::io("open", &self.path)(errno.into())),
        }
    }
}

/// Makes the directories that `mount`'s options ask for, `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`; gives it
/// without these options.
pub(crate) fn mkdir(mount: Mount, roots: &Roots) -> Result<Mount, Error> {
    let (asked, options): (Vec<String>, _) = mount.options.into_iter().partition(|option| option.starts_with(MKDIR));
    asked.iter().try_for_each(|option| Directory::parse(option)?.make(roots))?;
    Ok(Mount { options, ..mount })
}

#[derive(Debug, PartialEq, Eq)]
struct Directory<'a> {
    path: &'a str,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Directory<'_> {
    fn parse(option: &str) -> Result<Directory<'_>, Error> {
        let invalid = |reason: &str| Error::Option { option: option.to_owned(), reason: reason.to_owned() };
        let value = option.strip_prefix(MKDIR).and_then(|rest| rest.strip_prefix("path="));
        let parts: Vec<&str> = value.ok_or_else(|| invalid("only path= is known"))?.split(':').collect();
        let mode = |text: &str| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o777 == 0);
            mode.ok_or_else(|| invalid("the mode must be octal and of permission bits only"))
        };
        let id = |text: &str| text.parse::<u32>().map_err(|_| invalid("owner and group must be numbers"));
        match parts.as_slice() {
            [path] => Ok(Directory { path, mode: 0o700, owner: None }),
            [path, bits] => Ok(Directory { path, mode: mode(bits)?, owner: None }),
            [path, bits, uid, gid] => Ok(Directory { path, mode: mode(bits)?, owner: Some((id(uid)?, id(gid)?)) }),
            _ => Err(invalid("expected PATH, PATH:MODE or PATH:MODE:UID:GID")),
        }
    }

    fn make(&self, roots: &Roots) -> Result<(), Error> {
        let place = roots.place(self.path)?;
        if let Some(there) = place.open()? {
            let now = fstat(&there).map_err(|errno| Error::io("stat", &place.path)(errno.into()))?.st_mode & 0o777;
            let unlike = Error::Unsupported { what: "changing the mode of a directory that is there" };
            return if now == self.mode { Ok(()) } else { Err(unlike) };
        }
        let made = mkdirat(&place.parent, place.name.as_str(), Mode::from_bits_truncate(0o700));
        made.map_err(|errno| Error::io("make", &place.path)(errno.into()))?;
        let gone = || Error::io("open", &place.path)(std::io::ErrorKind::NotFound.into());
        let directory = place.open()?.ok_or_else(gone)?;
        if let Some((uid, gid)) = self.owner {
            let owned = fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            owned.map_err(|errno| Error::io("change the owner of", &place.path)(errno.into()))?;
        }
        let changed = fchmod(directory.as_fd(), Mode::from_bits_truncate(self.mode));
        changed.map_err(|errno| Error::io("change the mode of", &place.path)(errno.into()))
    }
}

/// Makes `mount`'s source a file system where it is not there yet, as the options `X-containerd.mkfs.size=`, `.fs=`
/// (ext2, ext3, ext4, xfs) and `.uuid=` say; gives the mount without these options.
pub(crate) async fn mkfs(mount: Mount, roots: &Roots) -> Result<Mount, Error> {
    let (asked, options): (Vec<String>, _) = mount.options.iter().cloned().partition(|option| option.starts_with(MKFS));
    let place = roots.place(&mount.source)?;
    let wanted = FileSystem::parse(&asked)?;
    if place.open()?.is_none() {
        let made = wanted.make(&place).await;
        if made.is_err() {
            // Half a file system would be taken for a whole one.
            let _ = unlinkat(&place.parent, place.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        made?;
    }
    Ok(Mount { options, ..mount })
}

#[derive(Debug, PartialEq, Eq)]
struct FileSystem {
    size: u64,
    kind: String,
    uuid: Option<String>,
}

impl FileSystem {
    fn parse(options: &[String]) -> Result<FileSystem, Error> {
        let mut wanted = FileSystem { size: 0, kind: "ext4".into(), uuid: None };
        for option in options {
            let invalid = |reason: &str| Error::Option { option: option.clone(), reason: reason.to_owned() };
            match option.strip_prefix(MKFS).and_then(|rest| rest.split_once('=')) {
                Some(("size", value)) => wanted.size = size(value).ok_or_else(|| invalid("no size like 64MiB"))?,
                Some(("fs", kind @ ("ext2" | "ext3" | "ext4" | "xfs"))) => kind.clone_into(&mut wanted.kind),
                Some(("fs", _)) => return Err(invalid("only ext2, ext3, ext4 and xfs are made")),
                Some(("uuid", value)) => wanted.uuid = Some(value.to_owned()),
                _ => return Err(invalid("none of size=, fs= and uuid=")),
            }
        }
        if wanted.size == 0 {
            let option = format!("{MKFS}size");
            return Err(Error::Option { option, reason: "is required, and must not be zero".into() });
        }
        Ok(wanted)
    }

    async fn make(&self, place: &Place) -> Result<(), Error> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(0o640))
            .resolve(ResolveFlag::RESOLVE_BENEATH);
        let file = openat2(&place.parent, place.name.as_str(), how);
        let file = File::from(file.map_err(|errno| Error::io("make", &place.path)(errno.into()))?);
        file.set_len(self.size).map_err(Error::io("set the size of", &place.path))?;
        let program = format!("mkfs.{}", self.kind);
        let mut command = tokio::process::Command::new(&program);
        command.arg("-q").args(self.uuid_arguments()).arg(&place.path).kill_on_drop(true);
        let failed = |reason: String| Error::Mkfs { program: program.clone(), path: place.path.clone(), reason };
        let ended = tokio::time::timeout(MKFS_LIMIT, command.output()).await;
        let ended = ended.map_err(|_| failed(format!("not done within {} s", MKFS_LIMIT.as_secs())))?;
        let output = ended.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect::<String>();
        Err(failed(format!("{}: {said}", output.status)))
    }

    fn uuid_arguments(&self) -> Vec<String> {
        match (&self.uuid, self.kind.as_str()) {
            (None, _) => Vec::new(),
            (Some(uuid), "xfs") => vec!["-m".into(), format!("uuid={uuid}")],
            (Some(uuid), _) => vec!["-U".into(), uuid.clone()],
        }
    }
}

/// Bytes of a size as people write it, in powers of 1024: `1073741824`, `64m`, `1.5GiB`.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024f64.powi(power);
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("512", 512), ("64m", 64 << 20), ("1.5GiB", 3 << 29), ("2 kB", 2048)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "x", "1x", "-1", "1..2"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn a_directory_is_made_below_a_root_only_and_with_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots(vec![root.path().to_owned()]);
        let inside = root.path().join("upper");
        let asked = |text: String| Mount { options: vec!["ro".into(), text], ..Mount::default() };
        let option = format!("X-containerd.mkdir.path={}:0755", inside.display());
        assert_eq!(mkdir(asked(option.clone()), &roots).unwrap().options, ["ro"]);
        assert_eq!(inside.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        // Asked again, it is there.
        mkdir(asked(option), &roots).unwrap();
        for outside in ["/tmp/elsewhere".to_owned(), format!("{}/../x", root.path().display())] {
            let error = mkdir(asked(format!("X-containerd.mkdir.path={outside}")), &roots).unwrap_err();
            assert!(matches!(error, Error::Outside { .. }), "{error}");
        }
        std::os::unix::fs::symlink("/tmp", root.path().join("out")).unwrap();
        let through = format!("X-containerd.mkdir.path={}/out/x", root.path().display());
        assert!(mkdir(asked(through), &roots).is_err());
    }

    #[test]
    fn options_that_nobody_knows_are_refused() {
        for option in ["X-containerd.mkdir.mode=1", "X-containerd.mkdir.path=/a:9", "X-containerd.mkdir.path=/a:0700:1"]
        {
            assert!(Directory::parse(option).is_err(), "{option}");
        }
        let parse = |text: &str| FileSystem::parse(&[format!("X-containerd.mkfs.{text}")]);
        assert!(parse("fs=ext4").is_err() && parse("size=1x").is_err() && parse("nonsense").is_err());
        assert_eq!(parse("size=1m").unwrap().size, 1 << 20);
    }
}
