//! What only the disk can tell of a configuration: certificates, `hosts.toml` files, programs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Config;
use super::report::{Place, Report};
use super::tree::{self, Table};

const TCP: &[&str] = &["plugins", "io.containerd.server.v1.grpc-tcp"];
const HOSTS: &[&str] = &["plugins", "io.containerd.transfer.v1.local", "config_path"];
const CRI_HOSTS: &[&str] = &["plugins", "io.containerd.cri.v1.images", "registry", "config_path"];
const HANDLERS: &[&str] = &["plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes"];

impl Config {
    /// Reports what cannot work; `tree` is what the configuration was read from.
    pub(super) fn look(&self, tree: &Table, report: &mut Report) {
        let at = |path: &[&str]| tree::get(tree, path).map_or_else(Place::nowhere, |node| node.place.clone());
        if let Err(errors) = crate::tls::load(&self.tcp) {
            errors.iter().for_each(|error| report.mistake(&at(TCP), error.to_string()));
        }
        let cri = &self.cri.images.registry.config_path;
        for (dirs, path) in [(&self.hosts_dirs, HOSTS), (cri, CRI_HOSTS)] {
            for error in gantry_engine::check_hosts(dirs) {
                report.mistake(&at(path), error.to_string());
            }
        }
        for (name, path) in &self.runtimes {
            program(path, &at(&["gantry", "runtimes", name]), report);
        }
        for (name, handler) in &self.cri.runtime.runtimes {
            let place = at(&[HANDLERS, &[name]].concat());
            if let Some(path) = &handler.runtime_path {
                program(path, &place, report);
            }
            if let Some(path) = &handler.base_runtime_spec
                && let Err(error) = std::fs::metadata(path)
            {
                report.mistake(&place, format!("{} cannot be read: {error}", path.display()));
            }
        }
    }
}

fn program(path: &Path, place: &Place, report: &mut Report) {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {}
        Ok(_) => report.mistake(place, format!("{} is no program", path.display())),
        Err(error) => report.mistake(place, format!("{} cannot be run: {error}", path.display())),
    }
}
