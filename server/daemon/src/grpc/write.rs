//! The conversation of `Content.Write`: the first message names the ingest, each message is answered by where it
//! stands, `COMMIT` or the end of the stream ends it. A client that goes away leaves its bytes for the next writer.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use gantry_api::convert::{labels_from_wire, time_to_wire};
use gantry_api::pb::containerd::services::content::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use gantry_engine::content::{Content, Writer};
use gantry_types::{Digest, ErrorKind, HasKind as _, Scope};
use prost::Message as _;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::Services;
use super::arriving::Messages;
use super::decode::{optional_digest, optional_size, signed};
use super::front::{Answers, Method};
use super::plain::{PREFIX, Piece, answer, seal};
use crate::{scope, status};

/// Answers `Write`.
#[derive(Clone)]
pub(crate) struct Writing {
    services: Services,
    max_receive: usize,
}

impl Writing {
    /// Clients may send messages of `max_receive` bytes.
    pub(crate) fn new(services: Services, max_receive: usize) -> Writing {
        Writing { services, max_receive }
    }
}

impl Answers for Writing {
    fn method(name: &str) -> Option<Method<Writing>> {
        (name == "Write").then_some(|writing, request| Box::pin(async move { writing.converse(request) }))
    }
}

impl Writing {
    /// Answers a client's messages until it is done.
    fn converse(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let head = Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, ());
        let talk = Conversation {
            content: self.services.engine.content.clone(),
            scope: scope::of(&head)?,
            messages: Messages::new(body, self.max_receive),
            ingest: None,
            total: None,
            expected: None,
            over: false,
        };
        let answers = stream::try_unfold(talk, |mut talk| async {
            let Some(answer) = talk.answer().await? else { return Ok(None) };
            Ok(Some((piece(&answer)?, talk)))
        });
        Ok(answer(answers.boxed()))
    }
}

/// An answer as gRPC sends it.
fn piece(answer: &WriteContentResponse) -> Result<Piece, Status> {
    let mut bytes = BytesMut::zeroed(PREFIX);
    answer.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    let len = bytes.len() - PREFIX;
    seal(&mut bytes[..PREFIX], len, usize::MAX)?;
    Ok((bytes.freeze(), Bytes::new()))
}

struct Conversation {
    content: Content,
    scope: Scope,
    messages: Messages,
    ingest: Option<Ingest>,
    /// Size and digest of the whole blob, as far as the client has said.
    total: Option<u64>,
    expected: Option<Digest>,
    over: bool,
}

struct Ingest {
    reference: String,
    writer: Writer,
}

impl Conversation {
    /// The answer to the next message; none when the client has nothing more to say.
    async fn answer(&mut self) -> Result<Option<WriteContentResponse>, Status> {
        if self.over {
            return Ok(None);
        }
        let Some(request) = self.messages.next().await? else {
            self.close().await?;
            return Ok(None);
        };
        self.total = optional_size(request.total).or(self.total);
        let expected = optional_digest(&request.expected)?;
        if expected.is_some() {
            self.expected = expected;
        }
        let mut ingest = self.opened(&request.r#ref).await?;
        if !request.expected.is_empty() {
            ingest = self.unless_there(ingest).await?;
        }
        let action = WriteAction::try_from(request.action)
            .map_err(|_| Status::invalid_argument(format!("unknown action {}", request.action)))?;
        match action {
            WriteAction::Stat => self.stat(ingest).await,
            WriteAction::Write => self.write(ingest, request).await,
            WriteAction::Commit => self.commit(ingest, request).await,
        }
        .map(Some)
    }

    /// The ingest of this conversation, opened by its first message.
    async fn opened(&mut self, reference: &str) -> Result<Ingest, Status> {
        if let Some(ingest) = self.ingest.take() {
            return Ok(ingest);
        }
        if reference.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference"));
        }
        let opened = self.content.writer(&self.scope, reference, self.total, self.expected.as_ref()).await;
        Ok(Ingest { reference: reference.into(), writer: opened.map_err(status::of)? })
    }

    /// Gives the ingest back, or drops it where the blob it shall become has come in by another way.
    async fn unless_there(&mut self, ingest: Ingest) -> Result<Ingest, Status> {
        let Some(expected) = &self.expected else { return Ok(ingest) };
        match self.content.info(&self.scope, expected).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ingest),
            Err(error) => return Err(status::of(error)),
            Ok(_) => {}
        }
        ingest.writer.close().await.map_err(status::of)?;
        self.content.abort(&self.scope, &ingest.reference).await.map_err(status::of)?;
        Err(Status::already_exists(format!("blob with expected digest {expected} exists")))
    }

    async fn stat(&mut self, mut ingest: Ingest) -> Result<WriteContentResponse, Status> {
        let now = ingest.writer.status();
        let digest = ingest.writer.digest().await.map_err(status::of)?;
        self.ingest = Some(ingest);
        Ok(WriteContentResponse {
            action: WriteAction::Stat.into(),
            started_at: Some(time_to_wire(now.started)),
            updated_at: Some(time_to_wire(now.updated)),
            offset: signed(now.offset),
            total: self.total.map(signed).unwrap_or_default(),
            digest: digest.to_string(),
        })
    }

    async fn write(
        &mut self,
        mut ingest: Ingest,
        request: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        let offset = self.append(&mut ingest.writer, &request).await?;
        let digest = ingest.writer.digest().await.map_err(status::of)?;
        self.ingest = Some(ingest);
        Ok(done(WriteAction::Write, offset, &digest))
    }

    async fn commit(
        &mut self,
        mut ingest: Ingest,
        request: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        let labels = labels_from_wire(request.labels.clone()).map_err(status::of)?;
        let offset = self.append(&mut ingest.writer, &request).await?;
        let blob = ingest.writer.commit(self.total, self.expected.as_ref(), labels).await.map_err(status::of)?;
        self.over = true;
        Ok(done(WriteAction::Commit, offset, &blob.digest))
    }

    /// Adds a message's data at its offset; offset 0 of an ingest that has bytes means to begin anew. Gives the new offset.
    async fn append(&mut self, writer: &mut Writer, request: &WriteContentRequest) -> Result<u64, Status> {
        let at = writer.status().offset;
        let mut offset = u64::try_from(request.offset).unwrap_or(0);
        if offset > 0 && offset != at {
            return Err(Status::out_of_range(format!("write @{offset} must occur at current offset {at}")));
        }
        if offset == 0 && at > 0 {
            writer.truncate(0).await.map_err(status::of)?;
        }
        while let Some(data) = self.messages.data().await? {
            offset = writer.write(offset, data).await.map_err(status::of)?;
        }
        Ok(offset)
    }

    async fn close(&mut self) -> Result<(), Status> {
        match self.ingest.take() {
            Some(ingest) => ingest.writer.close().await.map_err(status::of),
            None => Ok(()),
        }
    }
}

fn done(action: WriteAction, offset: u64, digest: &Digest) -> WriteContentResponse {
    WriteContentResponse {
        action: action.into(),
        offset: signed(offset),
        digest: digest.to_string(),
        ..WriteContentResponse::default()
    }
}
