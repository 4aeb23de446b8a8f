//! What the shim keeps in a bundle's directory, so that whoever comes after it can clear up and tell the exit status.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use gantry_ttrpc::pb::containerd::runc::v1::Options;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::stale::Identity;
use crate::task::{Exit, Moment};

/// Largest record that is read back.
const MAX_RECORD: u64 = 64 << 10;
/// How and by what a container was made; written before it is.
const RUNTIME: &str = "gantry.json";
/// Exit status of the first process.
const EXIT: &str = "init.exit";
/// Process id of the first process.
const PID: &str = "init.pid";
/// The shim's process.
const SHIM: &str = "shim.pid";
/// The shim's socket.
const ADDRESS: &str = "address";
/// The runtime's options that the shim was started with.
const OPTIONS: &str = "runtime.options";
/// State of the built-in runtime.
const STATE: &str = "state";

/// A bundle's directory.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
}

/// What holds a container, for whoever has to remove it without its shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The container.
    pub id: String,
    /// The OCI runtime's command line; none for the built-in runtime.
    pub command: Option<Command>,
}

/// An OCI runtime with runc's command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Name or path of the program.
    pub program: String,
    /// Its `--root`.
    pub root: PathBuf,
    /// Whether systemd makes the cgroups.
    pub systemd_cgroup: bool,
}

impl Bundle {
    /// The bundle in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Bundle {
        Bundle { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the root file system is mounted for runtimes that do not do it themselves.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Where the built-in runtime keeps its state.
    pub fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// Stores how the container is about to be made.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        let bytes = serde_json::to_vec(record).map_err(|error| Error::file("encode", self.dir.join(RUNTIME), error))?;
        self.store(RUNTIME, &bytes)
    }

    /// How the container was made; none when none was.
    ///
    /// # Errors
    /// [`Error::File`] when the record is unreadable or damaged.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        let Some(bytes) = self.load(RUNTIME)? else { return Ok(None) };
        let damaged = |error: serde_json::Error| Error::file("decode", self.dir.join(RUNTIME), error);
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Stores the runtime's options; a sandbox is made with those that its shim was started with.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_options(&self, options: &Options) -> Result<(), Error> {
        self.store(OPTIONS, &options.encode_to_vec())
    }

    /// The stored options; the defaults where none were.
    ///
    /// # Errors
    /// [`Error::File`] when they are unreadable or damaged.
    pub fn options(&self) -> Result<Options, Error> {
        let bytes = self.load(OPTIONS)?.unwrap_or_default();
        Options::decode(bytes.as_slice())
            .map_err(|error| Error::file("decode", self.dir.join(OPTIONS), io::Error::other(error)))
    }

    /// Stores the first process's id.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_pid(&self, pid: i32) -> Result<(), Error> {
        self.store(PID, pid.to_string().as_bytes())
    }

    /// The first process's id, where there was one.
    pub fn pid(&self) -> Option<u32> {
        String::from_utf8(self.load(PID).ok()??).ok()?.trim().parse().ok()
    }

    /// Stores which process the shim is.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_shim(&self, shim: Identity) -> Result<(), Error> {
        self.store(SHIM, format!("{} {}", shim.pid, shim.started).as_bytes())
    }

    /// Which process the shim is, or was.
    pub fn shim(&self) -> Option<Identity> {
        let text = String::from_utf8(self.load(SHIM).ok()??).ok()?;
        let (pid, started) = text.split_once(' ')?;
        Some(Identity { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    /// Stores the shim's address.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_address(&self, socket: &Path) -> Result<(), Error> {
        self.store(ADDRESS, format!("unix://{}", socket.display()).as_bytes())
    }

    /// The shim's socket, where one was stored.
    pub fn socket(&self) -> Option<PathBuf> {
        let text = String::from_utf8(self.load(ADDRESS).ok()??).ok()?;
        text.strip_prefix("unix://").map(PathBuf::from)
    }

    /// Stores the exit of the first process, before it is announced.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_exit(&self, exit: Exit) -> Result<(), Error> {
        let Moment { seconds, nanos } = exit.at;
        self.store(EXIT, format!("{} {seconds} {nanos}\n", exit.status).as_bytes())
    }

    /// The stored exit of the first process.
    pub fn exit(&self) -> Option<Exit> {
        let text = String::from_utf8(self.load(EXIT).ok()??).ok()?;
        let mut words = text.split_whitespace();
        let status = words.next()?.parse().ok()?;
        let at = Moment { seconds: words.next()?.parse().ok()?, nanos: words.next()?.parse().ok()? };
        Some(Exit { status, at })
    }

    /// Writes a file whole or not at all. It outlives every process, but not the machine: neither does a container.
    fn store(&self, name: &'static str, bytes: &[u8]) -> Result<(), Error> {
        let (path, partial) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|source| Error::file("store", &path, source))
    }

    fn load(&self, name: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(|error| Error::file("read", &path, error))?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_as_they_were_stored() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        assert_eq!((bundle.exit(), bundle.record().unwrap(), bundle.pid()), (None, None, None));
        let exit = Exit { status: 137, at: Moment { seconds: 5, nanos: 7 } };
        let command = Command { program: "runc".into(), root: "/run/r".into(), systemd_cgroup: false };
        let record = Record { id: "c".into(), command: Some(command) };
        bundle.write_exit(exit).unwrap();
        bundle.write_record(&record).unwrap();
        bundle.write_pid(7).unwrap();
        bundle.write_address(Path::new("/s/x")).unwrap();
        assert_eq!((bundle.exit(), bundle.record().unwrap(), bundle.pid()), (Some(exit), Some(record), Some(7)));
        assert_eq!(bundle.socket(), Some(PathBuf::from("/s/x")));
    }

    #[test]
    fn a_damaged_record_is_an_error_and_a_damaged_exit_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RUNTIME), "{").unwrap();
        fs::write(dir.path().join(EXIT), "x").unwrap();
        let bundle = Bundle::new(dir.path());
        assert!(bundle.record().is_err());
        assert_eq!(bundle.exit(), None);
    }
}
