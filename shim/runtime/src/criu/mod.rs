//! Checkpoint and restore through CRIU (criu.org), as runc does it: what either wrote, the other can restore.
//!
//! An image directory holds CRIU's images and `descriptors.json`: the names of the first process's streams. External to
//! it are bind mounts (by their place), masked files, and the network and pid namespaces that are joined by path.
//! Images come from elsewhere: see [`guard`].

mod dump;
mod guard;
mod restore;
mod rpc;
mod swrk;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

pub(crate) use dump::checkpoint;
pub(crate) use restore::restore;

use crate::error::{Error, Result};
use crate::spec::Spec;

/// The oldest version with all that is asked of it (external network namespaces).
const OLDEST: i32 = 31_100;
/// The file beside the images that names the first process's streams.
const DESCRIPTORS: &str = "descriptors.json";

/// How much of cgroups CRIU itself saves and restores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum CgroupMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
    /// What CRIU has as its default.
    #[default]
    Default = 6,
}

impl CgroupMode {
    /// Reads runc's words.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(word: &str) -> Result<CgroupMode> {
        Ok(match word {
            "" => CgroupMode::Default,
            "soft" => CgroupMode::Soft,
            "full" => CgroupMode::Full,
            "strict" => CgroupMode::Strict,
            "ignore" => CgroupMode::Ignore,
            other => return Err(Error::invalid("manage-cgroups-mode", format!("{other:?} is none"))),
        })
    }
}

/// What is asked of CRIU. Each member is what runc's option of that name is.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct CriuOptions {
    /// The program; a bare name is sought in `PATH`.
    pub program: PathBuf,
    /// Directory of the images.
    pub images: PathBuf,
    /// Directory of logs and what else CRIU leaves; the images' by default.
    pub work: Option<PathBuf>,
    /// Images of an earlier pre-dump, relative to the images.
    pub parent: Option<PathBuf>,
    pub leave_running: bool,
    pub tcp_established: bool,
    pub tcp_skip_in_flight: bool,
    pub link_remap: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub file_locks: bool,
    /// Only the memory, of a container that goes on.
    pub pre_dump: bool,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    /// Written to when pages can be fetched.
    pub status_fd: Option<i32>,
    /// Address and port of a page server.
    pub page_server: Option<(String, i32)>,
    pub manage_cgroups: CgroupMode,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

impl CriuOptions {
    /// Nothing but the images' directory.
    pub fn new(images: impl Into<PathBuf>) -> CriuOptions {
        CriuOptions {
            program: PathBuf::from("criu"),
            images: images.into(),
            work: None,
            parent: None,
            leave_running: false,
            tcp_established: false,
            tcp_skip_in_flight: false,
            link_remap: false,
            ext_unix_sk: false,
            shell_job: false,
            file_locks: false,
            pre_dump: false,
            auto_dedup: false,
            lazy_pages: false,
            status_fd: None,
            page_server: None,
            manage_cgroups: CgroupMode::Default,
            lsm_profile: None,
            lsm_mount_context: None,
        }
    }

    /// Refuses a program that is missing, does not work here, or is too old.
    fn check_program(&self) -> Result<i32> {
        let version = swrk::version(&self.program)?;
        if version < OLDEST {
            let what = format!("checkpoint and restore: CRIU {version} is older than {OLDEST}");
            return Err(Error::Unsupported { what });
        }
        Ok(version)
    }

    /// The options that both directions share, for directories that are open.
    fn common(&self, directories: &Directories, log: &str, spec: &Spec) -> rpc::Options {
        rpc::Options {
            images_dir_fd: directories.images.as_raw_fd(),
            work_dir_fd: directories.work.as_ref().map(AsRawFd::as_raw_fd),
            log_level: Some(4),
            log_file: Some(log.to_owned()),
            notify_scripts: Some(true),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(self.manage_cgroups as i32),
            ext_unix_sk: Some(self.ext_unix_sk),
            tcp_established: Some(self.tcp_established),
            shell_job: Some(self.shell_job),
            file_locks: Some(self.file_locks),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            orphan_pts_master: Some(true),
            // Devices and addresses of a network are its maker's to set up again.
            empty_namespaces: Some(libc::CLONE_NEWNET as u32),
            config_file: config_file(spec),
            ..rpc::Options::default()
        }
    }
}

/// A file of settings beside the call: the annotation's, which may be none, or runc's default.
fn config_file(spec: &Spec) -> Option<String> {
    match spec.annotations.get("org.criu.config") {
        Some(path) => Some(path.clone()).filter(|path| !path.is_empty()),
        None => Some("/etc/criu/runc.conf".to_owned()),
    }
}

/// The directories of a run, held open: CRIU finds them by our descriptors.
struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
}

impl Directories {
    fn open(options: &CriuOptions) -> Result<Directories> {
        let open =
            |path: &Path| File::open(path).map(OwnedFd::from).map_err(|source| Error::file("open", path, source));
        let work = match &options.work {
            Some(path) => {
                make(path)?;
                Some(open(path)?)
            }
            None => None,
        };
        Ok(Directories { images: open(&options.images)?, work })
    }

    /// The same as a process sees them, which is in a mount namespace of its own: what CRIU mounts in its working
    /// directory must be there.
    fn as_seen_by(&self, pid: i32) -> Result<Directories> {
        let open = |fd: &OwnedFd| {
            let failed = |source| Error::file("open", format!("/proc/self/fd/{}", fd.as_raw_fd()), source);
            let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed)?;
            let below = path.strip_prefix("/").unwrap_or(&path);
            File::open(Path::new(&format!("/proc/{pid}/root")).join(below)).map(OwnedFd::from).map_err(failed)
        };
        Ok(Directories { images: open(&self.images)?, work: self.work.as_ref().map(open).transpose()? })
    }

    /// A failure of CRIU with what its log says.
    fn explain(&self, error: Error, log: &str) -> Error {
        match error {
            Error::Criu { command, reason } => {
                let words = swrk::errors_in_log(self.work.as_ref().unwrap_or(&self.images), log);
                let reason = if words.is_empty() { reason } else { format!("{reason}; {log}: {words}") };
                Error::Criu { command, reason }
            }
            other => other,
        }
    }
}

/// Makes a directory that nobody else can look into; one that is there is fine.
fn make(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(|source| Error::file("make", path, source))
}
