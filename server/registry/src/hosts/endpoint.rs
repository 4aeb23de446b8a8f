//! One host that serves a registry.

use std::path::PathBuf;
use std::time::Duration;

use super::HostsError;
use crate::Scheme;

/// A certificate by which we prove who we are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientCertificate {
    /// PEM file with the certificate chain, and with the key where `key` is none.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub key: Option<PathBuf>,
}

/// A host to ask, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host, with a port where one was given.
    pub host: String,
    /// Path of the API without a slash at its end: `/v2`, or whatever `override_path` allowed.
    pub path: String,
    /// May serve manifests by digest and blobs.
    pub pull: bool,
    /// May turn tags into digests.
    pub resolve: bool,
    /// May be pushed to.
    pub push: bool,
    /// May list referrers.
    pub referrers: bool,
    /// Certificates of authorities to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Certificates to show; the first one is used.
    pub client: Vec<ClientCertificate>,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Headers to send along, to this host only.
    pub headers: Vec<(String, String)>,
    /// Longest wait for a connection; none for the configured default.
    pub dial_timeout: Option<Duration>,
    /// Program that gives credentials for this host (docker's credential helper protocol).
    pub credential_helper: Option<String>,
    /// Name under which the helper knows this host; none for the host itself.
    pub credential_domain: Option<String>,
    /// Whether this is another host than the reference names, so that it must be told for whom it answers (`?ns=`).
    pub mirror: bool,
    /// Whether this is the registry's own server, whose word that something is not there is final.
    pub upstream: bool,
}

impl Endpoint {
    /// The registry `host` itself, as it is without any configuration.
    pub fn of_registry(host: &str, scheme: Option<Scheme>) -> Endpoint {
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let scheme = scheme.unwrap_or_else(|| default_scheme(host));
        Endpoint { upstream: true, ..Endpoint::new(scheme, host.to_owned(), "/v2".to_owned()) }
    }

    fn new(scheme: Scheme, host: String, path: String) -> Endpoint {
        Endpoint {
            scheme,
            host,
            path,
            pull: true,
            resolve: true,
            push: true,
            referrers: true,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            headers: Vec::new(),
            dial_timeout: None,
            credential_helper: None,
            credential_domain: None,
            mirror: false,
            upstream: false,
        }
    }

    /// The endpoint that `server = "…"` or `[host."…"]` names: a host or an URL with a path. Without `override_path`
    /// the path ends in `/v2`.
    pub(super) fn of_url(text: &str, override_path: bool) -> Result<Endpoint, HostsError> {
        let invalid = || HostsError::Host(text.to_owned());
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(invalid()),
            None => (None, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_host(host)?;
        if path.contains(['?', '#', ' ']) || path.split('/').any(|part| part == "..") {
            return Err(invalid());
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut path: String = parts.iter().flat_map(|part| ["/", part]).collect();
        if !override_path && parts.last() != Some(&"v2") {
            path.push_str("/v2");
        }
        Ok(Endpoint::new(scheme.unwrap_or_else(|| default_scheme(host)), host.to_owned(), path))
    }

    /// `https://HOST`.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.name(), self.host)
    }
}

/// Refuses what is not `HOST[:PORT]`.
pub(super) fn check_host(host: &str) -> Result<(), HostsError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let sane = !host.is_empty() && host.len() <= 255 && host.bytes().all(fine) && !host.starts_with('.');
    if sane { Ok(()) } else { Err(HostsError::Host(host.chars().take(255).collect())) }
}

/// `http` for loopback, except at TLS's own port.
fn default_scheme(host: &str) -> Scheme {
    let (name, port) = split_port(host);
    if is_loopback(name) && port != Some("443") { Scheme::Http } else { Scheme::Https }
}

/// Host name and port; brackets of an IPv6 address are dropped.
pub(crate) fn split_port(host: &str) -> (&str, Option<&str>) {
    if let Some((name, rest)) = host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        return (name, rest.strip_prefix(':'));
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether a host name means this machine.
pub(crate) fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_plain_text_and_all_else_is_tls() {
        for host in ["localhost", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000", "LOCALHOST:80"] {
            assert_eq!(Endpoint::of_registry(host, None).scheme, Scheme::Http, "{host}");
        }
        for host in ["localhost:443", "example.org", "10.0.0.1:5000", "localhost.example.org", "docker.io"] {
            assert_eq!(Endpoint::of_registry(host, None).scheme, Scheme::Https, "{host}");
        }
        assert_eq!(Endpoint::of_registry("docker.io", None).host, "registry-1.docker.io");
    }

    #[test]
    fn paths_end_in_v2_unless_overridden() {
        let path = |text: &str, over| Endpoint::of_url(text, over).unwrap().path;
        assert_eq!(path("https://a.example", false), "/v2");
        assert_eq!(path("https://a.example/", false), "/v2");
        assert_eq!(path("https://a.example/v2/", false), "/v2");
        assert_eq!(path("https://a.example/x//y", false), "/x/y/v2");
        assert_eq!(path("https://a.example/x/y/", true), "/x/y");
        assert_eq!(path("https://a.example", true), "");
    }

    #[test]
    fn nonsense_is_not_a_host() {
        for text in ["", "ftp://a", "https://", "https://user:pw@a", "https://a/../b", "https://a/?x=1", "a b"] {
            assert!(Endpoint::of_url(text, false).is_err(), "{text:?}");
        }
    }
}
