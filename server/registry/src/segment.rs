//! A range of a blob, fetched in one stream that is mended where it breaks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gantry_types::Descriptor;
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use crate::hosts::Endpoint;
use crate::pace::Pace;
use crate::repository::{Call, Need, Repository};
use crate::retry::Attempts;
use crate::transport::{length, next_piece};
use crate::{Error, Reason, Stage};

/// Progress that makes earlier failures forgotten. Less than this between two breaks counts as none, so that a host
/// which gives one byte a connection is given up.
const PROGRESS: u64 = 1 << 20;
/// Longest wait for other transfers to end.
const SLOT_TIMEOUT: Duration = Duration::from_secs(600);

/// The reader of a range.
pub(crate) struct Segment {
    repository: Arc<Repository>,
    descriptor: Arc<Descriptor>,
    position: u64,
    end: u64,
    gained: u64,
    attempts: Attempts,
    open: Option<Open>,
}

/// A body that bytes come from.
struct Open {
    response: Response,
    endpoint: Arc<Endpoint>,
    pace: Pace,
    /// Bytes before the range, from a host that cannot start in the middle.
    skip: u64,
    whole: bool,
    /// Frees the slot of this transfer.
    _slot: OwnedSemaphorePermit,
}

impl Segment {
    pub(crate) fn new(repository: Arc<Repository>, descriptor: Arc<Descriptor>, range: Range<u64>) -> Segment {
        let attempts = repository.attempts(Need::Pull, Stage::FetchBlob, Some(&descriptor.digest));
        Segment { repository, descriptor, position: range.start, end: range.end, gained: 0, attempts, open: None }
    }

    /// Asks hosts until one has begun to answer; the host. Nothing is done where one has.
    pub(crate) async fn begin(&mut self) -> Result<String, Error> {
        if let Some(open) = &self.open {
            return Ok(open.endpoint.host.clone());
        }
        while let Some(endpoint) = self.attempts.next().await {
            match self.request(endpoint.clone()).await {
                Ok(open) => {
                    self.attempts.worked();
                    self.open = Some(open);
                    return Ok(endpoint.host.clone());
                }
                Err(reason) => self.attempts.failed(reason),
            }
        }
        Err(self.attempts.give_up())
    }

    /// Whether the host sends the whole blob although a part was asked for.
    pub(crate) fn is_whole(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.whole)
    }

    /// Goes on to `end`, where the body has so many bytes.
    pub(crate) fn extend_to(&mut self, end: u64) {
        self.end = end;
    }

    /// The next bytes; none at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.position < self.end {
            self.begin().await?;
            match self.read().await {
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => return Ok(Some(bytes)),
                Err(reason) => self.broke(reason)?,
            }
        }
        self.finish().await
    }

    fn broke(&mut self, reason: Reason) -> Result<(), Error> {
        self.open = None;
        if self.gained >= PROGRESS {
            self.attempts.progressed();
        }
        self.gained = 0;
        let transient = reason.is_transient();
        self.attempts.failed(reason);
        if transient { Ok(()) } else { Err(self.attempts.give_up()) }
    }

    /// Reads one piece, without what is outside of the range.
    async fn read(&mut self) -> Result<Bytes, Reason> {
        let (received, expected) = (self.position, self.end);
        let Some(open) = &mut self.open else { return Ok(Bytes::new()) };
        let Some(mut bytes) = next_piece(&mut open.response, &mut open.pace).await? else {
            return Err(Reason::Short { expected, received });
        };
        self.repository.shared.throttle.take(bytes.len()).await;
        let skipped = open.skip.min(bytes.len() as u64);
        open.skip -= skipped;
        bytes.advance(skipped as usize);
        let left = expected - received;
        if bytes.len() as u64 > left {
            if !open.whole || expected == self.descriptor.size {
                return Err(Reason::WrongLength { expected: left, offered: bytes.len() as u64 });
            }
            bytes.truncate(left as usize);
        }
        self.position += bytes.len() as u64;
        self.gained += bytes.len() as u64;
        Ok(bytes)
    }

    /// At the end: a body of unknown length must not have more bytes.
    async fn finish(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let at_end_of_blob = self.end == self.descriptor.size;
        if length(open.response.headers()).is_some() || !at_end_of_blob {
            return Ok(None);
        }
        match next_piece(&mut open.response, &mut open.pace).await {
            Ok(Some(more)) if !more.is_empty() => {
                let offered = self.end + more.len() as u64;
                self.attempts.failed(Reason::WrongLength { expected: self.end, offered });
                Err(self.attempts.give_up())
            }
            _ => Ok(None),
        }
    }

    async fn request(&self, endpoint: Arc<Endpoint>) -> Result<Open, Reason> {
        let slot = self.slot().await?;
        let url = self.repository.url(&endpoint, &format!("blobs/{}", self.descriptor.digest))?;
        let scope = self.repository.scope("pull");
        let mut call = Call::new(Method::GET, url, scope, self.attempts.patience()).accept(&["*/*"]);
        call = call.header(ACCEPT_ENCODING, "identity");
        if self.position > 0 || self.end < self.descriptor.size {
            call = call.header(RANGE, &format!("bytes={}-{}", self.position, self.end - 1));
        }
        let answer = self.repository.send(&endpoint, call).await?;
        let response = answer.expect(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await?;
        let whole = response.status() == StatusCode::OK;
        let skip = if whole { self.check_whole(&response)? } else { self.check_part(&response)? };
        Ok(Open { response, endpoint, pace: self.repository.pace(), skip, whole, _slot: slot })
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, Reason> {
        let slot = self.repository.shared.transfers.clone().acquire_owned();
        match tokio::time::timeout(SLOT_TIMEOUT, slot).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(Reason::Timeout { waited_for: "free transfer slot", limit: SLOT_TIMEOUT }),
        }
    }

    /// An answer with the whole blob: how many bytes to leave out.
    fn check_whole(&self, response: &Response) -> Result<u64, Reason> {
        let expected = self.descriptor.size;
        match length(response.headers()) {
            Some(offered) if offered != expected => Err(Reason::WrongLength { expected, offered }),
            _ => Ok(self.position),
        }
    }

    /// An answer with a part: it must be the one asked for.
    fn check_part(&self, response: &Response) -> Result<u64, Reason> {
        let range = response.headers().get(CONTENT_RANGE).and_then(|h| h.to_str().ok()).and_then(parse_range);
        let (range, size) = range.ok_or_else(|| Reason::Invalid("a part without a Content-Range".into()))?;
        if let Some(offered) = size.filter(|size| *size != self.descriptor.size) {
            return Err(Reason::WrongLength { expected: self.descriptor.size, offered });
        }
        if range != (self.position..self.end) {
            return Err(Reason::Invalid("another part than the one asked for".into()));
        }
        let expected = self.end - self.position;
        match length(response.headers()) {
            Some(offered) if offered != expected => Err(Reason::WrongLength { expected, offered }),
            _ => Ok(0),
        }
    }
}

/// `bytes FIRST-LAST/SIZE`, where SIZE may be `*`.
fn parse_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = last.trim().parse::<u64>().ok()?.checked_add(1)?;
    Some((first.trim().parse().ok()?..end, size.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(parse_range("bytes 0-99/200"), Some((0..100, Some(200))));
        assert_eq!(parse_range("bytes 5-5/*"), Some((5..6, None)));
        for text in ["", "bytes */200", "0-9/10", "bytes 0-18446744073709551615/1", "bytes a-b/c"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
