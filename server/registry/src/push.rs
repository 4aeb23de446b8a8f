//! Pushing blobs and manifests (distribution-spec, "Push").

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use gantry_types::{Descriptor, Digest, Hasher};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;

use crate::hosts::Endpoint;
use crate::manifest::content_digest;
use crate::repository::{Answer, Call, Need, Repository, scope};
use crate::retry::Attempts;
use crate::transport::Payload;
use crate::{Error, Reason, Stage};

/// Repositories that are tried for a mount.
const MAX_MOUNTS: usize = 4;

/// Where the bytes of a blob to push come from. Asked again, with a higher offset, after a break.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The bytes from `offset` to the end.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn open(&self, offset: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>;
}

#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self, offset: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(stream::iter([Ok(self.slice(from..))]).boxed())
    }
}

/// How a pushed object came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there before.
    Existed,
    /// The registry took it from another repository of its own.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// Sends a blob, unless it is there or can be mounted from another repository.
pub(crate) async fn blob(
    repository: &Repository,
    descriptor: &Descriptor,
    source: &dyn BlobSource,
    mount_from: &[String],
) -> Result<Pushed, Error> {
    let mut attempts = repository.attempts(Need::Push, Stage::PushBlob, Some(&descriptor.digest));
    let mut session: Option<Session> = None;
    let mut furthest = 0;
    while let Some(endpoint) = attempts.next().await {
        let upload = Upload { repository, endpoint: &endpoint, descriptor, source, patience: attempts.patience() };
        match upload.run(&mut session, mount_from).await {
            Ok(pushed) => {
                attempts.worked();
                return Ok(pushed);
            }
            Err(reason) => {
                note_progress(&mut attempts, &session, &mut furthest);
                attempts.failed(reason);
            }
        }
    }
    Err(attempts.give_up())
}

/// Failures before the registry took more bytes than ever do not count.
fn note_progress(attempts: &mut Attempts, session: &Option<Session>, furthest: &mut u64) {
    let reached = session.as_ref().map_or(0, |session| session.offset);
    if reached >= *furthest + (1 << 20) {
        *furthest = reached;
        attempts.progressed();
    }
}

/// An upload that the registry has begun.
struct Session {
    location: Url,
    offset: u64,
    /// A request of it failed: the registry must be asked how far it is.
    broken: bool,
}

struct Upload<'a> {
    repository: &'a Repository,
    endpoint: &'a Endpoint,
    descriptor: &'a Descriptor,
    source: &'a dyn BlobSource,
    patience: Duration,
}

impl Upload<'_> {
    async fn run(&self, session: &mut Option<Session>, mount_from: &[String]) -> Result<Pushed, Reason> {
        if session.is_none() {
            if self.exists().await? {
                return Ok(Pushed::Existed);
            }
            for other in mount_from.iter().take(MAX_MOUNTS) {
                if self.mount(other, session).await? {
                    return Ok(Pushed::Mounted);
                }
            }
        }
        match session {
            Some(open) if open.broken => self.ask_offset(session).await?,
            Some(_) => (),
            None => *session = Some(self.begin().await?),
        }
        let Some(open) = session else { return Err(Reason::Invalid("the upload is lost".into())) };
        open.broken = true;
        self.send(open).await.map(|()| Pushed::Sent)
    }

    fn call(&self, method: Method, url: Url) -> Call {
        Call::new(method, url, self.repository.scope("pull,push"), self.patience)
    }

    fn url(&self, rest: &str) -> Result<Url, Reason> {
        self.repository.url(self.endpoint, rest)
    }

    async fn exists(&self) -> Result<bool, Reason> {
        let url = self.url(&format!("blobs/{}", self.descriptor.digest))?;
        let answer = self.repository.send(self.endpoint, self.call(Method::HEAD, url)).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => answer.expect(&[]).await.map(|_| false),
        }
    }

    /// Whether the registry takes the blob from the repository `other`. Where it does not, it begins an upload.
    async fn mount(&self, other: &str, session: &mut Option<Session>) -> Result<bool, Reason> {
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", self.descriptor.digest.as_str()).append_pair("from", other);
        let mut call = self.call(Method::POST, url.clone()).header(CONTENT_LENGTH, "0");
        call.scopes.insert(scope(other, "pull"));
        let answer = self.repository.send(self.endpoint, call).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                *session = Some(self.session(&url, answer.response.headers(), 0)?);
                Ok(false)
            }
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
            _ => answer.expect(&[]).await.map(|_| false),
        }
    }

    async fn begin(&self) -> Result<Session, Reason> {
        let url = self.url("blobs/uploads/")?;
        let call = self.call(Method::POST, url.clone()).header(CONTENT_LENGTH, "0");
        let response = self.repository.send(self.endpoint, call).await?.expect(&[StatusCode::ACCEPTED]).await?;
        self.session(&url, response.headers(), 0)
    }

    /// After a break: asks how far the registry got. An upload it does not know any more begins anew.
    async fn ask_offset(&self, session: &mut Option<Session>) -> Result<(), Reason> {
        let Some(open) = session.take() else { return Ok(()) };
        let answer = self.repository.send(self.endpoint, self.call(Method::GET, open.location.clone())).await?;
        let headers = answer.response.headers();
        let reached = if answer.status().is_success() { received(headers) } else { None };
        *session = Some(match reached.filter(|offset| *offset <= self.descriptor.size) {
            Some(offset) if headers.contains_key(LOCATION) => self.session(&open.location, headers, offset)?,
            Some(offset) => Session { offset, broken: false, ..open },
            None => self.begin().await?,
        });
        Ok(())
    }

    /// The upload that an answer names. Where a proxy makes the registry name itself by another scheme than ours, ours
    /// counts.
    fn session(&self, base: &Url, headers: &HeaderMap, offset: u64) -> Result<Session, Reason> {
        let invalid = || Reason::Invalid("an upload without a valid Location".into());
        let text = headers.get(LOCATION).and_then(|h| h.to_str().ok()).ok_or_else(invalid)?;
        let mut location = base.join(text).map_err(|_| invalid())?;
        if location.scheme() != base.scheme() && location.host_str() == base.host_str() {
            location.set_scheme(base.scheme()).map_err(|()| invalid())?;
        }
        if !matches!(location.scheme(), "http" | "https") || (base.scheme() == "https" && location.scheme() == "http") {
            return Err(invalid());
        }
        Ok(Session { location, offset, broken: false })
    }

    /// Sends what is missing: all at once, or in chunks where the configuration says so or a part is there already.
    async fn send(&self, session: &mut Session) -> Result<(), Reason> {
        let chunk = self.repository.shared.config.push_chunk;
        let size = self.descriptor.size;
        if chunk == 0 && session.offset == 0 {
            return self.finish(session, true).await;
        }
        while session.offset < size {
            let end = if chunk == 0 { size } else { (session.offset + chunk).min(size) };
            self.patch(session, end).await?;
        }
        self.finish(session, false).await
    }

    async fn patch(&self, session: &mut Session, end: u64) -> Result<(), Reason> {
        let length = end - session.offset;
        let call = self
            .call(Method::PATCH, session.location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, &length.to_string())
            .header(CONTENT_RANGE, &format!("{}-{}", session.offset, end - 1));
        let response = self.send_bytes(call, session.offset, length).await?.expect(&[StatusCode::ACCEPTED]).await?;
        let reached = received(response.headers()).unwrap_or(end);
        if reached <= session.offset || reached > end {
            return Err(Reason::Invalid(format!("the registry took {reached} bytes of {end}")));
        }
        *session = Session { broken: true, ..self.session(&session.location, response.headers(), reached)? };
        Ok(())
    }

    async fn finish(&self, session: &Session, with_bytes: bool) -> Result<(), Reason> {
        let mut url = session.location.clone();
        url.query_pairs_mut().append_pair("digest", self.descriptor.digest.as_str());
        let call = self.call(Method::PUT, url).header(CONTENT_TYPE, "application/octet-stream");
        let answer = if with_bytes {
            let call = call.header(CONTENT_LENGTH, &self.descriptor.size.to_string());
            self.send_bytes(call, 0, self.descriptor.size).await?
        } else {
            self.repository.send(self.endpoint, call.header(CONTENT_LENGTH, "0")).await?
        };
        answer.expect(&[StatusCode::CREATED, StatusCode::NO_CONTENT]).await.map(drop)
    }

    /// Sends a request with `length` bytes of the blob. It may take as long as it likes, as long as it moves.
    async fn send_bytes(&self, mut call: Call, offset: u64, length: u64) -> Result<Answer, Reason> {
        let sent = Arc::new(AtomicU64::new(0));
        let bytes = self.source.open(offset).await.map_err(Reason::Source)?;
        call.patience = Duration::from_secs(24 * 3600);
        let call = call.payload(Payload::Stream(reqwest::Body::wrap_stream(counted(bytes, length, sent.clone()))));
        tokio::select! {
            answer = self.repository.send(self.endpoint, call) => answer,
            reason = self.watch(&sent, length) => Err(reason),
        }
    }

    /// Ends when the sending stands still.
    async fn watch(&self, sent: &AtomicU64, length: u64) -> Reason {
        let config = &self.repository.shared.config;
        let minimum = config.min_bytes_per_second;
        loop {
            let before = sent.load(Relaxed);
            let window = if before >= length { self.patience.max(config.slow_window) } else { config.slow_window };
            tokio::time::sleep(window).await;
            let moved = sent.load(Relaxed) - before;
            if before >= length {
                return Reason::Timeout { waited_for: "answer to an upload", limit: window };
            }
            let enough = (minimum as f64 * window.as_secs_f64()) as u64;
            if sent.load(Relaxed) < length && moved < enough.max(1) {
                return Reason::TooSlow { received: moved, window, minimum };
            }
        }
    }
}

/// Exactly `length` bytes of a stream, counted as they go.
fn counted(
    bytes: BoxStream<'static, std::io::Result<Bytes>>,
    length: u64,
    sent: Arc<AtomicU64>,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold((bytes, length, sent), |(mut bytes, left, sent)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut piece) = bytes.try_next().await? else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        sent.fetch_add(piece.len() as u64, Relaxed);
        let left = left - piece.len() as u64;
        Ok(Some((piece, (bytes, left, sent))))
    })
}

/// How many bytes the registry has, by `Range: 0-LAST`.
fn received(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let (first, last) = text.trim().trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    // `0-0` stands for one byte, but registries say it for none as well: from none nothing is lost.
    if first.trim() == "0" { Some(if last == 0 { 0 } else { last.checked_add(1)? }) } else { None }
}

/// Sends a manifest by tag, or by digest where the reference has no tag.
pub(crate) async fn manifest(repository: &Repository, descriptor: &Descriptor, bytes: Bytes) -> Result<Pushed, Error> {
    let digest = &descriptor.digest;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    if bytes.len() as u64 != descriptor.size || hasher.finish() != *digest {
        let reason = Reason::Request("the bytes are not those of the descriptor");
        return Err(repository.error(Stage::PushManifest, Some(digest), reason));
    }
    let name = repository.tag().unwrap_or(digest.as_str());
    let mut attempts = repository.attempts(Need::Push, Stage::PushManifest, Some(digest));
    while let Some(endpoint) = attempts.next().await {
        match put(repository, &endpoint, name, descriptor, &bytes, attempts.patience()).await {
            Ok(pushed) => {
                attempts.worked();
                return Ok(pushed);
            }
            Err(reason) => attempts.failed(reason),
        }
    }
    Err(attempts.give_up())
}

async fn put(
    repository: &Repository,
    endpoint: &Endpoint,
    name: &str,
    descriptor: &Descriptor,
    bytes: &Bytes,
    patience: Duration,
) -> Result<Pushed, Reason> {
    let url = repository.url(endpoint, &format!("manifests/{name}"))?;
    let call = |method| Call::new(method, url.clone(), repository.scope("pull,push"), patience);
    let head = call(Method::HEAD).accept(&[&descriptor.media_type]);
    let answer = repository.send(endpoint, head).await?;
    if answer.status() == StatusCode::OK
        && content_digest(answer.response.headers()).as_ref() == Some(&descriptor.digest)
    {
        return Ok(Pushed::Existed);
    }
    let put = call(Method::PUT).header(CONTENT_TYPE, &descriptor.media_type).payload(Payload::Bytes(bytes.clone()));
    let wanted = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
    let response = repository.send(endpoint, put).await?.expect(&wanted).await?;
    check_stored(content_digest(response.headers()), &descriptor.digest)?;
    Ok(Pushed::Sent)
}

fn check_stored(found: Option<Digest>, expected: &Digest) -> Result<(), Reason> {
    match found {
        Some(found) if found.algorithm() == expected.algorithm() && found != *expected => {
            Err(Reason::WrongDigest { expected: expected.clone(), found })
        }
        _ => Ok(()),
    }
}
