//! libcni's cache of results, so that other users of CNI on the host can check, delete and collect our attachments.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::network::{Error, Result};

const KIND: &str = "cniCacheV1";

/// One result.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    kind: String,
    pub(super) container_id: String,
    config: String,
    pub(super) if_name: String,
    pub(super) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<[String; 2]>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default)]
    result: Value,
}

impl Entry {
    pub(super) fn new(network: &str, config: &str, id: &str, interface: &str, netns: &str) -> Entry {
        Entry {
            kind: KIND.into(),
            container_id: id.into(),
            config: STANDARD.encode(config),
            if_name: interface.into(),
            network_name: network.into(),
            netns: netns.into(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: Value::Null,
        }
    }

    pub(super) fn with(mut self, args: Vec<[String; 2]>, capabilities: Map<String, Value>, result: Value) -> Entry {
        (self.cni_args, self.capability_args, self.result) = (args, capabilities, result);
        self
    }

    /// Writes it, in place of an older one.
    pub(super) fn store(&self, cache: &Path) -> Result<()> {
        let path = path(cache, &self.network_name, &self.container_id, &self.if_name);
        let failed = "write CNI result";
        let bytes = serde_json::to_vec(self).map_err(|e| Error::io(failed, &path)(e.into()))?;
        let dir = cache.join("results");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("make directory", &dir))?;
        let temporary = dir.join(format!(".{}-{}", self.container_id, self.if_name));
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let written = file.and_then(|mut file| file.write_all(&bytes)).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(Error::io(failed, &path))
    }
}

/// Forgets a result. None there is no error.
pub(super) fn remove(cache: &Path, network: &str, id: &str, interface: &str) -> Result<()> {
    let path = path(cache, network, id, interface);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove CNI result", &path)(error)),
        _ => Ok(()),
    }
}

/// All results of a network, ours and others'. What cannot be read is left out.
pub(super) fn list(cache: &Path, network: &str) -> Vec<Entry> {
    let Ok(files) = fs::read_dir(cache.join("results")) else { return Vec::new() };
    let texts = files.flatten().filter_map(|file| fs::read(file.path()).ok());
    let entries = texts.filter_map(|text| serde_json::from_slice::<Entry>(&text).ok());
    entries.filter(|entry| entry.kind == KIND && entry.network_name == network).collect()
}

fn path(cache: &Path, network: &str, id: &str, interface: &str) -> PathBuf {
    cache.join("results").join(format!("{network}-{id}-{interface}"))
}
