//! What differs between two configurations, and what of it takes hold without a restart.

use super::Config;
use super::report::dotted;
use super::setting::Setting;
use super::tree::{self, Table, Value};

const TCP: &str = "io.containerd.server.v1.grpc-tcp";

/// Names of what takes hold at once.
const LIVE: &[&[&str]] = &[
    &["debug", "level"],
    &["gantry", "registry"],
    &["gantry", "runtimes"],
    &["plugins", "io.containerd.transfer.v1.local", "config_path"],
    &["plugins", "io.containerd.transfer.v1.local", "max_concurrent_unpacks"],
    &["plugins", TCP, "tls_ca"],
    &["plugins", TCP, "tls_cert"],
    &["plugins", TCP, "tls_key"],
];

/// Names of changed values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that take hold at once.
    pub live: Vec<String>,
    /// Those that need a restart.
    pub restart: Vec<String>,
}

impl Changes {
    /// What `new` changes of `old`.
    pub fn between(old: &Config, new: &Config) -> Changes {
        // A port cannot begin or cease to speak TLS while it is served.
        let begins_or_ceases = old.tcp.cert.is_some() != new.tcp.cert.is_some();
        let (old, new) = (written(old), written(new));
        let (old, new) = (tree::leaves(&old), tree::leaves(&new));
        let gone = old.iter().filter(|(path, _)| !new.iter().any(|(other, _)| other == path));
        let fresh = new.iter().filter(|(path, node)| !old.iter().any(|(other, was)| other == path && was == node));
        // An empty section says nothing.
        let said = gone.chain(fresh).filter(|(_, node)| node.table().is_none());
        let mut paths: Vec<&Vec<String>> = said.map(|(path, _)| path).collect();
        paths.sort();
        let is_live = |path: &&&Vec<String>| {
            let is_tls = path.get(1).is_some_and(|plugin| plugin == TCP);
            !(is_tls && begins_or_ceases)
                && LIVE.iter().any(|live| path.len() >= live.len() && live.iter().zip(path.iter()).all(|(a, b)| a == b))
        };
        let (live, restart): (Vec<_>, Vec<_>) = paths.iter().partition(is_live);
        let names = |paths: Vec<&Vec<String>>| paths.iter().map(|path| dotted(path)).collect();
        Changes { live: names(live), restart: names(restart) }
    }
}

/// The configuration as the tree that a file of it would be.
pub(super) fn written(config: &Config) -> Table {
    match config.write() {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_by_whether_it_needs_a_restart() {
        let old = Config::default();
        let mut new = old.clone();
        assert_eq!(Changes::between(&old, &new), Changes::default());
        new.root = "/elsewhere".into();
        new.hosts_dirs.push("/hosts".into());
        new.runtimes.insert("a.b.v1".into(), "/shim".into());
        let changes = Changes::between(&old, &new);
        assert_eq!(
            changes.live,
            ["gantry.runtimes.\"a.b.v1\"", "plugins.\"io.containerd.transfer.v1.local\".config_path"]
        );
        assert_eq!(changes.restart, ["root"]);
        assert_eq!(Changes::between(&new, &old).restart, ["root"]);
        let mut tls = old.clone();
        (tls.tcp.cert, tls.tcp.key) = (Some("/c".into()), Some("/k".into()));
        assert_eq!(Changes::between(&old, &tls).restart.len(), 2);
        let mut other = tls.clone();
        other.tcp.cert = Some("/d".into());
        assert_eq!((Changes::between(&tls, &other).live.len(), Changes::between(&tls, &other).restart.len()), (1, 0));
    }
}
