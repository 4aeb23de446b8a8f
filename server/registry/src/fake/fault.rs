//! Ways to misbehave, and when.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, Response, StatusCode};

use super::reply::{Body, empty, full, streamed};

/// A way to misbehave.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Wait before the answer.
    Slow(Duration),
    /// Break the connection after this many bytes of the body.
    CutAt(usize),
    /// Answer 401, with a challenge, whatever the caller shows.
    Unauthorized,
    /// Answer with a status, and a `Retry-After`.
    Status(u16, Option<String>),
    /// Send a body with its first byte changed.
    WrongBytes,
    /// Announce and send this many bytes, cut off or filled up with zeros.
    WrongLength(usize),
    /// Send the body without its length, and these many bytes more.
    Longer(usize),
    /// Send this many bytes of the body without its length, and end properly.
    Shorter(usize),
    /// Send a piece of this many bytes each so often.
    Trickle(usize, Duration),
    /// Redirect to an URL.
    Redirect(String),
    /// Redirect to itself for ever.
    RedirectLoop,
    /// Send this many bytes of headers.
    GiantHeaders(usize),
    /// Take the request and never answer.
    Silence,
    /// Say another digest than the content has.
    WrongDigestHeader,
    /// Say another type of content.
    MediaType(String),
}

/// For which requests a fault holds.
#[derive(Clone, Debug)]
pub struct Rule {
    method: Option<&'static str>,
    path: String,
    times: Option<u32>,
    after: u32,
    fault: Fault,
}

impl Rule {
    /// `fault` for every request whose path contains `path`.
    pub fn new(path: impl Into<String>, fault: Fault) -> Rule {
        Rule { method: None, path: path.into(), times: None, after: 0, fault }
    }

    /// Only for this method.
    pub fn method(mut self, method: &'static str) -> Rule {
        self.method = Some(method);
        self
    }

    /// Only so many times.
    pub fn times(mut self, times: u32) -> Rule {
        self.times = Some(times);
        self
    }

    /// Only after so many fitting requests went well.
    pub fn after(mut self, requests: u32) -> Rule {
        self.after = requests;
        self
    }

    /// The fault for this request, if the rule is for it; counts it.
    pub(super) fn strike(&mut self, method: &str, path: &str) -> Option<Fault> {
        if self.method.is_some_and(|m| m != method) || !path.contains(&self.path) {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        match &mut self.times {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => (),
        }
        Some(self.fault.clone())
    }
}

/// What comes instead of a good answer, or none where the answer itself is to be made bad.
pub(super) async fn instead(fault: &Fault, path: &str, challenge: &str) -> Option<Response<Body>> {
    let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match fault {
        Fault::Slow(delay) => {
            tokio::time::sleep(*delay).await;
            return None;
        }
        Fault::Silence => std::future::pending().await,
        Fault::Unauthorized => with_status(StatusCode::UNAUTHORIZED, "no entry"),
        Fault::Status(code, _) => with_status(status(*code), "scripted failure"),
        Fault::Redirect(_) | Fault::RedirectLoop => empty(StatusCode::TEMPORARY_REDIRECT),
        _ => return None,
    };
    let (name, value) = match fault {
        Fault::Unauthorized => ("www-authenticate", challenge),
        Fault::Status(_, Some(after)) => ("retry-after", after.as_str()),
        Fault::Redirect(to) => ("location", to.as_str()),
        Fault::RedirectLoop => ("location", path),
        _ => return Some(response),
    };
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    Some(response)
}

fn with_status(status: StatusCode, message: &str) -> Response<Body> {
    let text = format!("{{\"errors\":[{{\"code\":\"SCRIPTED\",\"message\":\"{message}\"}}]}}");
    full(status, "application/json", text.into())
}

/// The answer `head` with the body `bytes`, made bad.
pub(super) fn spoil(fault: Fault, mut head: Response<()>, bytes: Bytes) -> Response<Body> {
    let pieces = |list: Vec<std::io::Result<Bytes>>| streamed(stream::iter(list).boxed());
    let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let announce = |head: &mut Response<()>, length: usize| {
        head.headers_mut().insert("content-length", HeaderValue::from(length));
    };
    let body = match fault {
        Fault::CutAt(at) => {
            announce(&mut head, bytes.len());
            let piece = bytes.slice(..at.min(bytes.len()));
            // The pause lets the bytes out before the break.
            let end = stream::once(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(broken())
            });
            streamed(stream::iter([Ok(piece)]).chain(end).boxed())
        }
        Fault::WrongBytes => {
            announce(&mut head, bytes.len());
            let mut wrong = bytes.to_vec();
            wrong.first_mut().into_iter().for_each(|b| *b ^= 1);
            pieces(vec![Ok(wrong.into())])
        }
        Fault::WrongLength(length) => {
            announce(&mut head, length);
            let mut wrong = bytes.to_vec();
            wrong.resize(length, 0);
            pieces(vec![Ok(wrong.into())])
        }
        Fault::Longer(more) => pieces(vec![Ok(bytes), Ok(vec![0; more].into())]),
        Fault::Shorter(length) => pieces(vec![Ok(bytes.slice(..length.min(bytes.len())))]),
        Fault::Trickle(size, every) => {
            announce(&mut head, bytes.len());
            let parts =
                (0..bytes.len()).step_by(size.max(1)).map(move |at| bytes.slice(at..(at + size).min(bytes.len())));
            let slow = stream::iter(parts).then(move |piece| async move {
                tokio::time::sleep(every).await;
                Ok(piece)
            });
            streamed(slow.boxed())
        }
        other => {
            change_head(&mut head, other);
            announce(&mut head, bytes.len());
            pieces(vec![Ok(bytes)])
        }
    };
    head.map(|()| body)
}

fn change_head(head: &mut Response<()>, fault: Fault) {
    let (name, value) = match fault {
        Fault::GiantHeaders(size) => ("x-giant", "x".repeat(size)),
        Fault::WrongDigestHeader => ("docker-content-digest", format!("sha256:{}", "0".repeat(64))),
        Fault::MediaType(text) => ("content-type", text),
        _ => return,
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        head.headers_mut().insert(name, value);
    }
}
