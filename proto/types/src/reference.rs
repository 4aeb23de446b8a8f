//! Image references as containerd's clients write them: `HOST/PATH[:TAG][@DIGEST]`.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// A full reference. Unlike Docker's short names nothing is added: the host must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry host, with its port where one was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Repository path within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Reference, InvalidReference> {
        let invalid = |reason| InvalidReference { text: text.chars().take(300).collect(), reason };
        if text.len() > 512 {
            return Err(invalid("longer than 512 bytes"));
        }
        if text.contains("://") {
            return Err(invalid("a reference has no scheme; leave out `http://`"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| invalid("what follows `@` is not a digest"))?))
            }
            None => (text, None),
        };
        let (host, rest) = name.split_once('/').ok_or_else(|| invalid("no registry host; write HOST/PATH[:TAG]"))?;
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !host_ok(host) {
            return Err(invalid("the registry host is neither a name nor an address, with or without a port"));
        }
        if !path.split('/').all(component) {
            return Err(invalid("path parts are lower-case letters and digits joined by `.`, `_`, `__` or `-`"));
        }
        if !tag.is_none_or(tag_ok) {
            return Err(invalid("a tag is at most 128 letters, digits, `_`, `.` or `-`, not starting with `.` or `-`"));
        }
        Ok(Reference { host: host.into(), path: path.into(), tag: tag.map(Into::into), digest })
    }
}

/// Names and IPv4 addresses, or an IPv6 address in brackets; then a port. Strict, for hosts name directories too.
fn host_ok(host: &str) -> bool {
    let port_ok = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (rest.is_empty() || rest.strip_prefix(':').is_some_and(port_ok));
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    name.split('.').all(label) && port.is_none_or(port_ok)
}

fn label(part: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn component(part: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        && !part.contains("..")
        && !part.contains("___")
        && !["._", "_.", ".-", "-.", "_-", "-_"].iter().any(|pair| part.contains(pair))
}

fn tag_ok(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference {text:?}: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

impl crate::HasKind for InvalidReference {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}
