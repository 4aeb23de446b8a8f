//! HTTP: one client for each way to reach hosts, redirects that never carry credentials elsewhere, bounded bodies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Client, Response, Url};

use crate::hosts::{ClientCertificate, Endpoint, HostsError, is_loopback};
use crate::pace::Pace;
use crate::{Config, Reason, Secret, http_date, tls};

/// Most bytes of an error's body that are kept.
const MAX_ERROR_BODY: usize = 1024;
/// Clients that are kept; more than this many kinds of TLS settings start from nothing.
const MAX_CLIENTS: usize = 256;

/// What a request carries.
#[derive(Default)]
pub(crate) enum Payload {
    /// Nothing.
    #[default]
    Empty,
    /// Bytes that can be sent again.
    Bytes(Bytes),
    /// A stream that can be sent once.
    Stream(reqwest::Body),
}

/// A request on its way to an endpoint.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Headers for whoever answers.
    pub(crate) headers: HeaderMap,
    /// Headers for the endpoint alone: credentials and what `hosts.toml` adds.
    pub(crate) own_headers: HeaderMap,
    pub(crate) payload: Payload,
    /// Longest wait for the head of the answer.
    pub(crate) patience: Duration,
}

/// Connections, shared by all calls.
pub(crate) struct Transport {
    connect_timeout: Duration,
    max_redirects: u32,
    clients: Mutex<HashMap<ClientKey, Client>>,
}

/// What makes two clients different. Files are told apart by size and time, so that a renewed certificate counts.
#[derive(PartialEq, Eq, Hash)]
struct ClientKey {
    tls: bool,
    /// Proxies of the environment count, but never for this machine itself.
    proxied: bool,
    foreign: bool,
    skip_verify: bool,
    dial_timeout: Duration,
    ca: Vec<(PathBuf, Stamp)>,
    client: Option<(ClientCertificate, Stamp, Stamp)>,
}

type Stamp = Option<(u64, SystemTime)>;

impl Transport {
    pub(crate) fn new(config: &Config) -> Transport {
        Transport {
            connect_timeout: config.connect_timeout,
            max_redirects: config.max_redirects,
            clients: Mutex::default(),
        }
    }

    /// Sends a request and follows redirects. Once another origin is involved, [`Outgoing::own_headers`] and client
    /// certificates stay at home.
    pub(crate) async fn send(&self, endpoint: &Endpoint, mut out: Outgoing) -> Result<Response, Reason> {
        let home = endpoint_origin(endpoint)?;
        let mut foreign = !same_origin(&home, &out.url);
        for _ in 0..=self.max_redirects {
            let response = self.send_once(endpoint, &mut out, foreign).await?;
            let Some(next) = redirect(&response)? else { return Ok(response) };
            if out.url.scheme() == "https" && next.scheme() == "http" {
                return Err(Reason::Redirect("it leads from TLS to plain text"));
            }
            if matches!(out.payload, Payload::Stream(_)) {
                return Err(Reason::Redirect("an upload cannot be repeated elsewhere"));
            }
            foreign = foreign || !same_origin(&home, &next);
            out.url = next;
        }
        Err(Reason::Redirect("there were too many"))
    }

    /// Sends a request whose body holds credentials: a redirect is not followed.
    pub(crate) async fn send_at_home(&self, endpoint: &Endpoint, mut out: Outgoing) -> Result<Response, Reason> {
        let response = self.send_once(endpoint, &mut out, false).await?;
        match redirect(&response)? {
            None => Ok(response),
            Some(_) => Err(Reason::Redirect("credentials are not sent on")),
        }
    }

    async fn send_once(&self, endpoint: &Endpoint, out: &mut Outgoing, foreign: bool) -> Result<Response, Reason> {
        let client = self.client(endpoint, &out.url, foreign)?;
        let mut request = client.request(out.method.clone(), out.url.clone()).headers(out.headers.clone());
        if !foreign {
            request = request.headers(out.own_headers.clone());
        }
        request = match &mut out.payload {
            Payload::Empty => request,
            Payload::Bytes(bytes) => request.body(bytes.clone()),
            Payload::Stream(body) => request.body(std::mem::take(body)),
        };
        match tokio::time::timeout(out.patience, request.send()).await {
            Err(_) => Err(Reason::Timeout { waited_for: "answer", limit: out.patience }),
            Ok(Err(error)) => Err(self.reason(endpoint, error)),
            Ok(Ok(response)) => Ok(response),
        }
    }

    fn reason(&self, endpoint: &Endpoint, error: reqwest::Error) -> Reason {
        if error.is_connect() && error.is_timeout() {
            let limit = endpoint.dial_timeout.unwrap_or(self.connect_timeout);
            return Reason::Timeout { waited_for: "connection", limit };
        }
        if error.is_connect() { Reason::Connect(cause(&error)) } else { Reason::Broken(cause(&error)) }
    }

    fn client(&self, endpoint: &Endpoint, url: &Url, foreign: bool) -> Result<Client, HostsError> {
        let key = self.key(endpoint, url, foreign);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        let client = build(endpoint, &key)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn key(&self, endpoint: &Endpoint, url: &Url, foreign: bool) -> ClientKey {
        let tls = url.scheme() == "https";
        let client = endpoint.client.first().filter(|_| tls && !foreign);
        let client = client.map(|c| (c.clone(), stamp(&c.certificate), c.key.as_ref().and_then(|k| stamp(k))));
        let ca = if tls { endpoint.ca.as_slice() } else { &[] };
        ClientKey {
            tls,
            proxied: !is_here(url),
            foreign: foreign && client.is_some(),
            skip_verify: endpoint.skip_verify && tls,
            dial_timeout: endpoint.dial_timeout.unwrap_or(self.connect_timeout),
            ca: ca.iter().map(|path| (path.clone(), stamp(path))).collect(),
            client,
        }
    }
}

fn stamp(path: &std::path::Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.modified().ok()?))
}

fn build(endpoint: &Endpoint, key: &ClientKey) -> Result<Client, HostsError> {
    let plain = Endpoint { ca: Vec::new(), client: Vec::new(), ..endpoint.clone() };
    let tls = tls::config(if key.tls { endpoint } else { &plain }, key.client.is_none(), key.tls)?;
    let builder = if key.proxied { Client::builder() } else { Client::builder().no_proxy() };
    builder
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(key.dial_timeout)
        .tcp_keepalive(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(60))
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(16)
        .http2_initial_stream_window_size(4 << 20)
        .http2_initial_connection_window_size(16 << 20)
        .http2_max_header_list_size(64 << 10)
        .build()
        .map_err(|e| HostsError::Certificate { path: endpoint.origin(), what: cause(&e) })
}

/// The URL of the endpoint's root.
fn endpoint_origin(endpoint: &Endpoint) -> Result<Url, Reason> {
    Url::parse(&endpoint.origin()).map_err(|_| HostsError::Host(endpoint.host.clone()).into())
}

/// Whether `url` is at the endpoint itself.
pub(crate) fn is_own(endpoint: &Endpoint, url: &Url) -> bool {
    endpoint_origin(endpoint).is_ok_and(|home| same_origin(&home, url))
}

fn same_origin(a: &Url, b: &Url) -> bool {
    let origin = |u: &Url| (u.scheme().to_owned(), u.host_str().map(str::to_owned), u.port_or_known_default());
    origin(a) == origin(b)
}

/// Whether credentials may be sent to `url` at all: by TLS, or without leaving this machine.
pub(crate) fn is_private(url: &Url) -> bool {
    url.scheme() == "https" || is_here(url)
}

fn is_here(url: &Url) -> bool {
    is_loopback(url.host_str().unwrap_or("").trim_matches(['[', ']']))
}

fn redirect(response: &Response) -> Result<Option<Url>, Reason> {
    use StatusCode as S;
    let status = response.status();
    let redirects = [S::MOVED_PERMANENTLY, S::FOUND, S::SEE_OTHER, S::TEMPORARY_REDIRECT, S::PERMANENT_REDIRECT];
    if !redirects.contains(&status) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let location = location.ok_or(Reason::Redirect("it does not say where to"))?;
    let next = response.url().join(location).map_err(|_| Reason::Redirect("it leads to no valid address"))?;
    let sane = matches!(next.scheme(), "http" | "https") && next.username().is_empty() && next.password().is_none();
    if sane { Ok(Some(next)) } else { Err(Reason::Redirect("it leads to no valid address")) }
}

/// The innermost causes of an error, without the URL, which may carry a signature.
fn cause(error: &reqwest::Error) -> String {
    let mut texts = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        texts.push(inner.to_string());
        source = inner.source();
    }
    texts.dedup();
    let text = match texts.len() {
        0 => "unknown cause".to_owned(),
        n => texts[n.saturating_sub(2)..].join(": "),
    };
    text.chars().take(300).collect()
}

/// The next piece of a body, by the pace it must keep; none at its end.
pub(crate) async fn next_piece(response: &mut Response, pace: &mut Pace) -> Result<Option<Bytes>, Reason> {
    loop {
        let start = tokio::time::Instant::now();
        match tokio::time::timeout(pace.left(), response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                pace.note(bytes.len(), start.elapsed())?;
                return Ok(Some(bytes));
            }
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return Err(Reason::Broken(cause(&error))),
            Err(_) => pace.note(0, start.elapsed())?,
        }
    }
}

/// A whole body of at most `limit` bytes, called `what` in the error when it is longer.
pub(crate) async fn body(
    mut response: Response,
    limit: u64,
    what: &'static str,
    mut pace: Pace,
) -> Result<Bytes, Reason> {
    let too_big = Reason::TooBig { what, limit };
    if length(response.headers()).is_some_and(|length| length > limit) {
        return Err(too_big);
    }
    let mut bytes = BytesMut::new();
    while let Some(piece) = next_piece(&mut response, &mut pace).await? {
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(too_big);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// The announced length of a body.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The announced media type, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim())
}

/// The reason that an answer which says no stands for. Reads the beginning of its body, for a short while.
pub(crate) async fn refusal(mut response: Response, secrets: &[Secret]) -> Reason {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|h| h.to_str().ok());
    let retry_after = retry_after.and_then(|text| http_date::retry_after(text, SystemTime::now()));
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = response.chunk().await {
            text.extend_from_slice(&piece);
            if text.len() >= MAX_ERROR_BODY {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), read).await;
    Reason::Status { status, body: printable(&text, secrets), retry_after }
}

/// At most [`MAX_ERROR_BODY`] bytes of `text` in one line, without control characters and secrets.
fn printable(text: &[u8], secrets: &[Secret]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_BODY)]);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    secrets.iter().fold(clean, |text, secret| secret.redact(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_one_bounded_line_without_secrets() {
        let text = printable(b"a\r\n\x1b[31m b   hunter22 c", &[Secret::new("hunter22")]);
        assert_eq!(text, "a [31m b [redacted] c");
        assert!(printable(&[b'x'; 5000], &[]).len() <= MAX_ERROR_BODY);
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(same_origin(&url("https://a/x"), &url("https://A:443/y")));
        for other in ["http://a/", "https://b/", "https://a:444/"] {
            assert!(!same_origin(&url("https://a/"), &url(other)), "{other}");
        }
    }
}
