//! The bundle: the directory that daemon and shim share for one task.
//!
//! `STATE/io.containerd.runtime.v2.task/NS/ID/` with `config.json`, `rootfs/`, `work` → below ROOT, the fifo `log`, and
//! after the start `bootstrap.json` and `shim-binary-path`. Names that begin with `.` are bundles on their way out.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use gantry_mount::Unmount;
use nix::sys::stat::Mode;

use crate::{Answer, Config, Error, Result};

/// Directories of all bundles, below both STATE and ROOT.
const TASKS: &str = "io.containerd.runtime.v2.task";
const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";
/// Names the sandbox in whose shim the task is.
const SANDBOX: &str = "sandbox";
const CONFIG: &str = "config.json";
const BOOTSTRAP: &str = "bootstrap.json";
const BINARY: &str = "shim-binary-path";
const LOG: &str = "log";

/// A bundle's place. Making one of these touches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
    work: PathBuf,
}

/// What goes into a new bundle.
#[derive(Clone, Copy, Debug)]
pub struct BundleSpec<'a> {
    /// The OCI spec, written byte for byte; none for a container without one.
    pub config: Option<&'a [u8]>,
    /// Group that the container's root is mapped to; with it the bundle opens for that group.
    pub gid: Option<u32>,
}

/// What a bundle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Task,
    Sandbox,
}

impl Purpose {
    fn directory(self) -> &'static str {
        match self {
            Purpose::Task => TASKS,
            Purpose::Sandbox => SANDBOXES,
        }
    }
}

/// Directory of all bundles of a kind, by namespace.
pub(crate) fn state_dir(config: &Config, purpose: Purpose) -> PathBuf {
    config.state.join(purpose.directory())
}

impl Bundle {
    /// The bundle of a task or sandbox. Both names are validated identifiers.
    pub(crate) fn at(config: &Config, purpose: Purpose, namespace: &str, id: &str) -> Bundle {
        let below = Path::new(purpose.directory()).join(namespace).join(id);
        Bundle { path: config.state.join(&below), work: config.root.join(below) }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is mounted, where it is mounted at all.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The task's directory on the disk, below ROOT; it goes with the bundle.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Where the shim's log comes from.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Makes the directory and what is in it. Nothing stays behind after a failure.
    ///
    /// # Errors
    /// [`Error::BundleExists`], [`Error::Io`].
    pub(crate) fn create(&self, spec: BundleSpec<'_>) -> Result<()> {
        match make(&self.path, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::BundleExists { path: self.path.clone() });
            }
            made => made.map_err(Error::io("create", &self.path))?,
        }
        let filled = self.fill(spec);
        if filled.is_err() {
            // The first failure is what counts.
            let _ = self.remove();
        }
        filled
    }

    fn fill(&self, spec: BundleSpec<'_>) -> Result<()> {
        if let Some(gid) = spec.gid {
            chown(&self.path, None, Some(gid)).map_err(Error::io("chown", &self.path))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o710)).map_err(Error::io("chmod", &self.path))?;
        }
        let rootfs = self.rootfs();
        DirBuilder::new().mode(0o711).create(&rootfs).map_err(Error::io("create", &rootfs))?;
        clear(&self.work)?;
        make(&self.work, 0o711).map_err(Error::io("create", &self.work))?;
        let link = self.path.join("work");
        symlink(&self.work, &link).map_err(Error::io("link", &link))?;
        let log = self.log();
        nix::unistd::mkfifo(&log, Mode::from_bits_truncate(0o700))
            .map_err(io::Error::from)
            .map_err(Error::io("create", &log))?;
        let config = self.path.join(CONFIG);
        spec.config.map_or(Ok(()), |bytes| fs::write(&config, bytes)).map_err(Error::io("write", &config))
    }

    /// Notes how the shim is reached. Both files appear whole or not at all.
    pub(crate) fn note_start(&self, binary: &Path, answer: &Answer) -> Result<()> {
        replace(&self.path.join(BINARY), binary.to_string_lossy().as_bytes())?;
        let json = serde_json::to_vec(answer).map_err(io::Error::from).map_err(Error::io("encode", &self.path))?;
        replace(&self.path.join(BOOTSTRAP), &json)
    }

    /// Notes that the task is in the shim of a sandbox.
    pub(crate) fn note_sandbox(&self, id: &str) -> Result<()> {
        replace(&self.path.join(SANDBOX), id.as_bytes())
    }

    /// Whether the task is in the shim of a sandbox.
    pub(crate) fn is_in_sandbox(&self) -> bool {
        self.path.join(SANDBOX).exists()
    }

    /// How the shim is reached, as noted by [`Bundle::note_start`], or by a shim that wrote `address` itself.
    pub(crate) fn noted_answer(&self) -> Option<Answer> {
        let noted = fs::read(self.path.join(BOOTSTRAP)).or_else(|_| fs::read(self.path.join("address"))).ok()?;
        Answer::parse(&noted).ok()
    }

    /// The binary that holds this task.
    pub(crate) fn noted_binary(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.path.join(BINARY)).ok()?;
        let path = PathBuf::from(text.trim());
        path.is_absolute().then_some(path)
    }

    /// Unmounts and removes all of it. What is not there is no error.
    ///
    /// # Errors
    /// [`Error::Mount`], [`Error::Io`].
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return clear(&self.work);
        }
        // Never delete through a mount that could not be taken away. The kernel removes an empty directory only where
        // nothing is mounted, which spares us the mount table.
        if fs::remove_dir(self.rootfs()).is_err() {
            gantry_mount::unmount_recursive(&self.rootfs(), Unmount::LAZY)?;
        }
        // The bundle is what the next start finds: it goes last.
        clear(&self.work)?;
        let doomed = self.doomed();
        clear(&doomed)?;
        fs::rename(&self.path, &doomed).map_err(Error::io("rename", &self.path))?;
        clear(&doomed)
    }

    fn doomed(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}"))
    }
}

/// Makes a directory, and those above it where they are missing.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(mode).create(path);
    match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
            make()
        }
        (made, _) => made,
    }
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn clear(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    fs::write(&temporary, bytes).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path) -> Bundle {
        Bundle::at(&Config::new(dir.join("root"), dir.join("state"), "/bin/true"), Purpose::Task, "default", "web")
    }

    const SPEC: BundleSpec<'_> = BundleSpec { config: Some(b"{ \"ociVersion\" : 1}"), gid: None };

    #[test]
    fn a_bundle_has_the_files_that_clients_and_shims_look_for() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(SPEC).unwrap();
        assert!(bundle.path().ends_with("state/io.containerd.runtime.v2.task/default/web"));
        assert_eq!(fs::metadata(bundle.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(bundle.rootfs()).unwrap().permissions().mode() & 0o777, 0o711);
        assert_eq!(fs::read(bundle.path().join("config.json")).unwrap(), SPEC.config.unwrap());
        assert!(fs::read_link(bundle.path().join("work")).unwrap().ends_with("default/web"));
        assert!(bundle.log().exists());
    }

    #[test]
    fn a_second_bundle_of_the_name_is_refused_and_the_first_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(SPEC).unwrap();
        assert!(matches!(bundle.create(SPEC), Err(Error::BundleExists { .. })));
        assert!(bundle.path().join("config.json").exists());
    }

    #[test]
    fn what_was_noted_at_the_start_is_found_again_and_removal_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle(dir.path());
        bundle.create(SPEC).unwrap();
        let (address, protocol) = ("unix:///run/s".into(), "ttrpc".into());
        let metadata = [("k".to_owned(), "v".to_owned())].into();
        let answer = Answer { version: 3, address, protocol, metadata };
        bundle.note_start(Path::new("/bin/shim"), &answer).unwrap();
        assert_eq!(bundle.noted_answer(), Some(answer));
        assert_eq!(bundle.noted_binary(), Some("/bin/shim".into()));
        bundle.remove().unwrap();
        bundle.remove().unwrap();
        assert_eq!(fs::read_dir(bundle.path().parent().unwrap()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(bundle.work.parent().unwrap()).unwrap().count(), 0);
    }
}
