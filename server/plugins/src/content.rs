//! A content store in another process, over `containerd.services.content.v1`.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_api::convert::time_from_wire;
use gantry_api::pb::containerd::services::content::v1 as wire;
use gantry_content::{CHUNK, Error, Info, ReaderAt, Status, Store, Writer, WriterOptions};
use gantry_types::{Digest, ErrorKind};
use tonic::transport::Channel;

use crate::peer::{Failure, MAX_MESSAGE, Peer, QUICK, SLOW};
use crate::upload::Upload;

pub(crate) type Client = wire::content_client::ContentClient<Channel>;

/// The engine's records say whose blob is whose; to the other side all belong to one namespace.
pub(crate) const NAMESPACE: &str = "default";

/// A content store in another process. It decides by itself what "durable" means.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    pub(crate) peer: Peer,
    pub(crate) client: Client,
}

impl RemoteStore {
    /// The store that `peer` serves.
    pub fn new(peer: Peer) -> RemoteStore {
        let client =
            Client::new(peer.channel()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        RemoteStore { peer, client }
    }

    fn info_of(&self, info: Option<wire::Info>) -> Result<Info, Failure> {
        let info = info.ok_or_else(|| self.peer.broken("without an info"))?;
        let digest = info.digest.parse().map_err(|_| self.peer.broken("with a digest that is none"))?;
        let size = u64::try_from(info.size).map_err(|_| self.peer.broken("with a negative size"))?;
        Ok(Info { digest, size, created: self.time(info.created_at)?, updated: self.time(info.updated_at)? })
    }

    fn status_of(&self, status: wire::Status) -> Result<Status, Failure> {
        let size = |number: i64| u64::try_from(number).map_err(|_| self.peer.broken("with a negative size"));
        Ok(Status {
            offset: size(status.offset)?,
            total: Some(size(status.total)?).filter(|total| *total > 0),
            expected: status.expected.parse().ok(),
            started: self.time(status.started_at)?,
            updated: self.time(status.updated_at)?,
            reference: status.r#ref,
        })
    }

    pub(crate) fn time(&self, time: Option<prost_types::Timestamp>) -> Result<SystemTime, Failure> {
        let broken = |_| self.peer.broken("with a time that is none");
        time.map_or(Ok(SystemTime::UNIX_EPOCH), |time| time_from_wire(time).map_err(broken))
    }
}

/// Calls `method` of the other side.
macro_rules! call {
    ($store:expr, $method:ident, $limit:expr, $message:expr) => {{
        let mut client = $store.client.clone();
        let request = $store.peer.request(NAMESPACE, $limit, $message);
        $store.peer.answer($limit, client.$method(request)).await
    }};
}

/// The store's own error for a blob that is not there.
fn of_blob(failure: Failure, digest: &Digest) -> Error {
    match failure.kind {
        ErrorKind::NotFound => Error::NotFound { digest: digest.clone() },
        _ => failure.into(),
    }
}

fn of_ingest(failure: Failure, reference: &str) -> Error {
    match failure.kind {
        ErrorKind::NotFound => Error::IngestNotFound { reference: reference.to_owned() },
        _ => failure.into(),
    }
}

#[async_trait]
impl Store for RemoteStore {
    async fn info(&self, digest: &Digest) -> Result<Info, Error> {
        let message = wire::InfoRequest { digest: digest.to_string() };
        let answer = call!(self, info, QUICK, message).map_err(|failure| of_blob(failure, digest))?;
        Ok(self.info_of(answer.info)?)
    }

    async fn walk(&self) -> Result<Vec<Info>, Error> {
        let mut stream = call!(self, list, QUICK, wire::ListContentRequest { filters: Vec::new() })?;
        let mut infos = Vec::new();
        while let Some(part) = self.peer.next(QUICK, &mut stream).await? {
            for info in part.info {
                infos.push(self.info_of(Some(info))?);
            }
        }
        Ok(infos)
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let message = wire::DeleteContentRequest { digest: digest.to_string() };
        call!(self, delete, QUICK, message).map_err(|failure| of_blob(failure, digest))
    }

    async fn reader(&self, digest: &Digest) -> Result<Arc<dyn ReaderAt>, Error> {
        let size = self.info(digest).await?.size;
        Ok(Arc::new(RemoteReader { store: self.clone(), digest: digest.clone(), size }))
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>, Error> {
        Ok(Box::new(Upload::open(self, options).await?))
    }

    async fn status(&self, reference: &str) -> Result<Status, Error> {
        let message = wire::StatusRequest { r#ref: reference.to_owned() };
        let answer = call!(self, status, QUICK, message).map_err(|failure| of_ingest(failure, reference))?;
        Ok(self.status_of(answer.status.ok_or_else(|| self.peer.broken("without a status"))?)?)
    }

    async fn statuses(&self) -> Result<Vec<Status>, Error> {
        let answer = call!(self, list_statuses, QUICK, wire::ListStatusesRequest { filters: Vec::new() })?;
        Ok(answer.statuses.into_iter().map(|status| self.status_of(status)).collect::<Result<_, _>>()?)
    }

    async fn abort(&self, reference: &str) -> Result<(), Error> {
        let message = wire::AbortRequest { r#ref: reference.to_owned() };
        call!(self, abort, SLOW, message).map_err(|failure| of_ingest(failure, reference))
    }
}

/// A blob of the other side. Each read is a call of its own, so a blob that is deleted cannot be read on.
struct RemoteReader {
    store: RemoteStore,
    digest: Digest,
    size: u64,
}

#[async_trait]
impl ReaderAt for RemoteReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let message = wire::ReadContentRequest {
            digest: self.digest.to_string(),
            offset: signed(offset),
            size: signed(len as u64),
        };
        let opened = call!(self.store, read, SLOW, message);
        let mut stream = opened.map_err(|failure| of_blob(failure, &self.digest))?;
        let mut gathered = BytesMut::with_capacity(len.min(4 * CHUNK));
        while let Some(part) = self.store.peer.next(QUICK, &mut stream).await? {
            if part.data.len() == len {
                return Ok(part.data);
            }
            if gathered.len() + part.data.len() > len {
                return Err(self.store.peer.broken("with more bytes than asked for").into());
            }
            gathered.extend_from_slice(&part.data);
        }
        if gathered.len() < len {
            return Err(self.store.peer.broken("with fewer bytes than the blob has").into());
        }
        Ok(gathered.freeze())
    }
}
