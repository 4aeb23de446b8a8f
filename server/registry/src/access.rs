//! What differs from call to call: whose credentials, which host configuration.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::credentials::{Anonymous, Ask, Credential, Credentials, CredentialsError};

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

/// How the calls of one job (a pull, a push) reach registries. Clones share what was learnt of credentials, so that a
/// source is asked once a host and job.
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
    known: Arc<Mutex<HashMap<String, Option<Credential>>>>,
}

impl Access {
    /// Access with these credentials and everything else by default.
    pub fn new(credentials: Arc<dyn Credentials>) -> Access {
        Access { credentials, hosts_dirs: None, default_scheme: None, headers: Vec::new(), known: Arc::default() }
    }

    /// Access without credentials.
    pub fn anonymous() -> Access {
        Access::new(Arc::new(Anonymous))
    }

    /// The credential for a host, asked for once; `else_ask` is asked where the call itself has none.
    pub(crate) async fn credential(
        &self,
        ask: Ask<'_>,
        else_ask: Option<&dyn Credentials>,
    ) -> Result<Option<Credential>, CredentialsError> {
        let mut known = self.known.lock().await;
        if let Some(credential) = known.get(ask.host) {
            return Ok(credential.clone());
        }
        let mut credential = self.credentials.get(ask).await?;
        if let (None, Some(other)) = (&credential, else_ask) {
            credential = other.get(ask).await?;
        }
        known.insert(ask.host.to_owned(), credential.clone());
        Ok(credential)
    }
}

impl Default for Access {
    fn default() -> Access {
        Access::anonymous()
    }
}
