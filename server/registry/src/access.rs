//! What differs from call to call: whose credentials, which host configuration.

use std::path::PathBuf;
use std::sync::Arc;

use crate::credentials::{Anonymous, Credentials};

/// The scheme to use for a registry that no `hosts.toml` describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// How one call reaches registries.
#[derive(Clone)]
pub struct Access {
    /// Who may tell a user name and a secret for a host.
    pub credentials: Arc<dyn Credentials>,
    /// Directories of `HOST[_PORT_]/hosts.toml`, instead of [`crate::Config::hosts_dirs`].
    pub hosts_dirs: Option<Vec<PathBuf>>,
    /// Scheme of registries without a `hosts.toml`; none: `http` for loopback addresses, `https` for all others.
    pub default_scheme: Option<Scheme>,
    /// Headers for every request to a registry; never sent to where it redirects.
    pub headers: Vec<(String, String)>,
}

impl Access {
    /// Access with these credentials and everything else by default.
    pub fn new(credentials: Arc<dyn Credentials>) -> Access {
        Access { credentials, hosts_dirs: None, default_scheme: None, headers: Vec::new() }
    }

    /// Access without credentials.
    pub fn anonymous() -> Access {
        Access::new(Arc::new(Anonymous))
    }
}

impl Default for Access {
    fn default() -> Access {
        Access::anonymous()
    }
}
