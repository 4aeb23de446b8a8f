//! Writing into a content store in another process: one conversation an ingest, each message answered by where it
//! stands.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::pb::containerd::services::content::v1 as wire;
use gantry_api::pb::containerd::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use gantry_content::{Commit, Error, Info, Status, Writer, WriterOptions};
use gantry_types::{Digest, ErrorKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::content::{NAMESPACE, RemoteStore};
use crate::peer::{Failure, LAYER, QUICK, SLOW};

/// Bytes in one message at most.
const PIECE: usize = 4 << 20;

/// An open ingest. The conversation's end unlocks its name.
pub(crate) struct Upload {
    store: RemoteStore,
    messages: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    status: Status,
}

impl Upload {
    pub(crate) async fn open(store: &RemoteStore, options: WriterOptions) -> Result<Upload, Error> {
        let WriterOptions { reference, total, expected } = options;
        let (messages, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total: signed(total.unwrap_or_default()),
            expected: expected.as_ref().map(Digest::to_string).unwrap_or_default(),
            ..WriteContentRequest::default()
        };
        // There is room for one.
        let _ = messages.send(first).await;
        let mut client = store.client.clone();
        let request = store.peer.request(NAMESPACE, LAYER, ReceiverStream::new(receiver));
        let refused = |failure: Failure| match (failure.kind, &expected) {
            (ErrorKind::AlreadyExists, Some(digest)) => Error::AlreadyExists { digest: digest.clone() },
            _ => failure.into(),
        };
        // Some servers send their headers with the first answer only.
        let answers = store.peer.answer(QUICK, client.write(request)).await.map_err(refused)?;
        let now = SystemTime::UNIX_EPOCH;
        let status = Status { reference, offset: 0, total, expected: expected.clone(), started: now, updated: now };
        let mut upload = Upload { store: store.clone(), messages, answers, status };
        let answer = upload.answer(QUICK).await.map_err(refused)?;
        upload.status.started = store.time(answer.started_at)?;
        upload.status.updated = store.time(answer.updated_at)?;
        Ok(upload)
    }

    /// The answer to what was sent last.
    async fn answer(&mut self, limit: Duration) -> Result<WriteContentResponse, Failure> {
        let answer = self.store.peer.next(limit, &mut self.answers).await?;
        let answer = answer.ok_or_else(|| self.store.peer.broken("with the end of a conversation amid it"))?;
        let negative = |_| self.store.peer.broken("with a negative offset");
        self.status.offset = u64::try_from(answer.offset).map_err(negative)?;
        Ok(answer)
    }

    async fn say(&mut self, limit: Duration, message: WriteContentRequest) -> Result<WriteContentResponse, Failure> {
        // A conversation that is over says why in its last answer.
        let _ = self.messages.send(message).await;
        self.answer(limit).await
    }

    fn offset_error(&self, given: u64) -> Error {
        Error::Offset { reference: self.status.reference.clone(), current: self.status.offset, given }
    }

    async fn append(&mut self, data: Bytes) -> Result<(), Error> {
        let offset = self.status.offset;
        let expected = offset + data.len() as u64;
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: signed(offset),
            data,
            ..WriteContentRequest::default()
        };
        self.say(SLOW, message).await?;
        if self.status.offset == expected {
            return Ok(());
        }
        Err(self
            .store
            .peer
            .broken(&format!("that it is at {} after a write up to {expected}", self.status.offset))
            .into())
    }

    /// The store's own error for what a commit can fail by.
    fn not_committed(&self, failure: Failure, digest: &Digest) -> Error {
        match failure.kind {
            ErrorKind::AlreadyExists => Error::AlreadyExists { digest: digest.clone() },
            ErrorKind::NotFound => Error::IngestNotFound { reference: self.status.reference.clone() },
            _ => failure.into(),
        }
    }
}

#[async_trait]
impl Writer for Upload {
    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn write(&mut self, offset: u64, mut data: Bytes) -> Result<u64, Error> {
        if offset != self.status.offset {
            return Err(self.offset_error(offset));
        }
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            self.append(piece).await?;
        }
        self.status.updated = SystemTime::now();
        Ok(self.status.offset)
    }

    async fn digest(&mut self) -> Result<Digest, Error> {
        let message = WriteContentRequest { action: WriteAction::Stat.into(), ..WriteContentRequest::default() };
        let answer = self.say(SLOW, message).await?;
        Ok(answer.digest.parse().map_err(|_| self.store.peer.broken("with a digest that is none"))?)
    }

    /// To nothing, or to where it is: the service has no words for more.
    async fn truncate(&mut self, size: u64) -> Result<(), Error> {
        match size {
            size if size == self.status.offset => Ok(()),
            0 => {
                // A write at the beginning of what has bytes begins anew.
                self.say(SLOW, WriteContentRequest { action: WriteAction::Write.into(), ..Default::default() }).await?;
                Ok(())
            }
            size if size > self.status.offset => Err(self.offset_error(size)),
            _ => {
                let message = "a remote content store drops all bytes of an ingest or none".to_owned();
                Err(Error::Other { kind: ErrorKind::Unimplemented, message })
            }
        }
    }

    async fn commit(mut self: Box<Self>, commit: Commit) -> Result<Info, Error> {
        let size = self.status.offset;
        let reference = self.status.reference.clone();
        if let Some(expected) = commit.size.filter(|expected| *expected != size) {
            return Err(Error::Size { reference, expected, actual: size });
        }
        let digest = match commit.digest.clone().or(self.status.expected.clone()) {
            Some(digest) => digest,
            None => self.digest().await?,
        };
        let message = wire::WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: signed(size),
            total: signed(size),
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        let answer = self.say(SLOW, message).await.map_err(|failure| self.not_committed(failure, &digest))?;
        if answer.digest != digest.as_str() {
            return Err(self
                .store
                .peer
                .broken(&format!("that it has committed {}, not {digest}", answer.digest))
                .into());
        }
        let now = SystemTime::now();
        Ok(Info { digest, size, created: now, updated: now })
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        let Upload { store, messages, mut answers, .. } = *self;
        drop(messages);
        // The name is free when the other side has ended its half.
        while store.peer.next(QUICK, &mut answers).await?.is_some() {}
        Ok(())
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
