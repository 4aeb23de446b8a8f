//! Records of attachments: one file each, written before anything is done and removed when all of it is undone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bridge::Holding;
use super::cni::{Network, is_valid_name};
use super::networks::Stage;
use super::{Error, PodNetwork, Result};

/// What is known of one attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod: PodNetwork,
    pub(super) stage: Stage,
    pub(super) by: By,
}

/// By what a pod is attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum By {
    /// CNI plug-ins.
    Cni(Vec<Network>),
    /// The built-in network.
    Bridge(Holding),
}

/// The directory of all records.
#[derive(Clone, Debug)]
pub(super) struct Records(PathBuf);

impl Records {
    /// Opens the directory, made where it is not there, and reads what it holds. A damaged record is set aside and
    /// named in the log.
    pub(super) fn open(dir: &Path) -> Result<(Records, Vec<Record>)> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(Error::io("make directory", dir))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => found.extend(read(&path)),
                // A write that was never finished.
                Some("new") => fs::remove_file(&path).map_err(Error::io("remove", &path))?,
                _ => {}
            }
        }
        Ok((Records(dir.to_owned()), found))
    }

    /// Writes a record in place of an older one. What plug-ins keep outlives a power cut, so records of theirs do too;
    /// nothing of the built-in network does.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.pod.id);
        let temporary = path.with_extension("new");
        let durable = matches!(record.by, By::Cni(_));
        let written = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            if durable {
                file.sync_data()?;
            }
            fs::rename(&temporary, &path)?;
            if durable { File::open(&self.0)?.sync_all() } else { Ok(()) }
        };
        written().map_err(Error::io("write the record of a pod's network", &path))
    }

    /// Removes a record. None there is no error.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove the record of a pod's network", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }
}

fn read(path: &Path) -> Option<Record> {
    let parsed = fs::read(path).map_err(|e| e.to_string());
    let parsed = parsed.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(|e| e.to_string()));
    let id = path.file_stem().unwrap_or_default();
    match parsed {
        Ok(record) if is_valid_name(&record.pod.id) && *record.pod.id == *id => Some(record),
        Ok(record) => set_aside(path, &format!("it names pod {:?}", record.pod.id)),
        Err(reason) => set_aside(path, &reason),
    }
}

fn set_aside(path: &Path, reason: &str) -> Option<Record> {
    let aside = path.with_extension("damaged");
    tracing::error!(record = %path.display(), aside = %aside.display(), reason, "a damaged record of a pod's network is set aside");
    let _ = fs::rename(path, aside);
    None
}
