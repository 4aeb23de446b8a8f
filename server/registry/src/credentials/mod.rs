//! Who may enter a registry: the trait that says so, and its sources.

mod docker_config;
mod helper;
mod kubelet;
mod matching;

use async_trait::async_trait;
use base64::Engine as _;
use gantry_types::{ErrorKind, HasKind};

pub use docker_config::DockerConfig;
pub(crate) use helper::Helper;
pub use kubelet::KubeletCredentials;

use crate::Secret;

/// What lets a caller into a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User name and password: for Basic, or to get a token with.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        password: Secret,
    },
    /// An identity token, to get access tokens with (OAuth2 `refresh_token`).
    Refresh(Secret),
    /// An access token, sent as it is.
    Bearer(Secret),
    /// A whole `Authorization` header, sent as it is.
    Header(Secret),
}

impl Credential {
    /// A credential of user name and secret as Docker's tools write them: an empty name, or `<token>`, marks an
    /// identity token; none where both are empty.
    pub fn from_pair(username: &str, secret: Secret) -> Option<Credential> {
        match username {
            "" if secret.is_empty() => None,
            "" | "<token>" => Some(Credential::Refresh(secret)),
            _ => Some(Credential::Basic { username: username.to_owned(), password: secret }),
        }
    }

    /// A credential of the fields of CRI's `AuthConfig` (and of an entry in docker's `config.json`): the first that is
    /// set of identity token, registry token, user name and password, and `auth` (base64 of `USER:PASSWORD`).
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`] where `auth` is not such a text.
    pub fn from_parts(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        if !identity_token.is_empty() {
            return Ok(Some(Credential::Refresh(Secret::new(identity_token))));
        }
        if !registry_token.is_empty() {
            return Ok(Some(Credential::Bearer(Secret::new(registry_token))));
        }
        if !username.is_empty() {
            return Ok(Credential::from_pair(username, Secret::new(password)));
        }
        if auth.is_empty() { Ok(None) } else { decode_auth(auth) }
    }

    /// The secret in it, to black it out elsewhere.
    pub(crate) fn secret(&self) -> &Secret {
        match self {
            Credential::Basic { password: secret, .. }
            | Credential::Refresh(secret)
            | Credential::Bearer(secret)
            | Credential::Header(secret) => secret,
        }
    }
}

fn decode_auth(auth: &str) -> Result<Option<Credential>, CredentialsError> {
    let malformed = || CredentialsError::Malformed { what: "auth is not base64 of USER:PASSWORD".into() };
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| malformed())?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (username, password) = text.split_once(':').ok_or_else(malformed)?;
    Ok(Credential::from_pair(username, Secret::new(password.trim_end_matches('\0'))))
}

/// For whom and why credentials are asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Registry host as the reference or `hosts.toml` names it, with its port where one was given.
    pub host: &'a str,
    /// Reference being moved; empty for a catalog.
    pub reference: &'a str,
    /// `WWW-Authenticate` headers of the registry.
    pub challenges: &'a [String],
}

/// A source of credentials. Asked once a registry asks for them; the answer is not kept beyond the tokens got with it.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// The credential for a host; none to go on without.
    ///
    /// # Errors
    /// When the source is there but cannot be read or understood.
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError>;
}

/// No credentials for anyone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn get(&self, _: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        Ok(None)
    }
}

/// Credentials that came with a call: one credential, for one host.
#[derive(Clone, Debug)]
pub struct Provided {
    host: String,
    credential: Option<Credential>,
}

impl Provided {
    /// `credential` for `host` only; its scheme and path, if any, are ignored.
    pub fn new(host: &str, credential: Option<Credential>) -> Provided {
        Provided { host: matching::host_of(host).to_owned(), credential }
    }
}

#[async_trait]
impl Credentials for Provided {
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        Ok(if matching::same_host(&self.host, ask.host) { self.credential.clone() } else { None })
    }
}

/// Credentials could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Text that should hold credentials does not. Never contains them.
    #[error("{what}")]
    Malformed {
        /// What is wrong and where.
        what: String,
    },
    /// A credential helper failed.
    #[error("credential helper {helper}: {why}")]
    Helper {
        /// Name of the program.
        helper: String,
        /// What happened.
        why: String,
    },
    /// Whoever was asked went away or refused.
    #[error("{0}")]
    Unavailable(String),
}

impl HasKind for CredentialsError {
    fn kind(&self) -> ErrorKind {
        match self {
            CredentialsError::Malformed { .. } => ErrorKind::InvalidArgument,
            CredentialsError::Read { source, .. } => ErrorKind::of_io(source),
            CredentialsError::Helper { .. } => ErrorKind::FailedPrecondition,
            CredentialsError::Unavailable(_) => ErrorKind::Unavailable,
        }
    }
}
