//! The messages of `Content.Write`, taken apart while they come: the data of one is hashed and written while its rest is
//! still on the way, and is never copied together.
//!
//! Serialisers write fields by their numbers (protobuf's encoding, "Field order"), so what says where the data
//! belongs comes before it. A message that has fields behind its data is waited for as a whole.

use bytes::{Buf as _, Bytes};
use gantry_api::pb::containerd::services::content::v1::WriteContentRequest;
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::plain::PREFIX;

/// The number of the field that has the data.
const DATA: u32 = 6;

/// Longest number of protobuf's encoding, bytes.
const VARINT: usize = 10;

/// The messages of a request. Each is asked for by [`Messages::next`], then its data.
pub(crate) struct Messages {
    body: Body,
    /// Bytes that have come and were not taken yet.
    held: Bytes,
    /// Bytes of a message at most.
    most: usize,
    /// Bytes of the current message that were not taken yet, and of its data.
    left: usize,
    data: usize,
    /// The data of a message that was waited for as a whole.
    whole: Bytes,
}

impl Messages {
    /// The messages of `body`, of `most` bytes each at most.
    pub(crate) fn new(body: Body, most: usize) -> Messages {
        Messages { body, held: Bytes::new(), most, left: 0, data: 0, whole: Bytes::new() }
    }

    /// The fields of the next message without its data; what is left of the one before is passed over. None at the end.
    ///
    /// # Errors
    /// Those of gRPC's framing, of protobuf's encoding, and of the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<WriteContentRequest>, Status> {
        self.pass().await?;
        if !self.more().await? {
            return Ok(None);
        }
        let mut prefix = [0; PREFIX];
        self.left = PREFIX;
        for byte in &mut prefix {
            *byte = self.byte().await?;
        }
        match prefix[0] {
            0 => {}
            1 => {
                let text = "received message with compressed-flag but no grpc-encoding was specified";
                return Err(Status::internal(format!("protocol error: {text}")));
            }
            flag => return Err(Status::internal(format!("protocol error: invalid compression flag: {flag}"))),
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.most {
            let text = "Error, decoded message length too large";
            return Err(Status::out_of_range(format!("{text}: found {len} bytes, the limit is: {} bytes", self.most)));
        }
        self.left = len;
        let mut fields = self.fields().await?;
        if self.left > self.data {
            encode_key(DATA, WireType::LengthDelimited, &mut fields);
            encode_varint(self.data as u64, &mut fields);
            self.data = 0;
            self.copy(self.left, &mut fields).await?;
        }
        let decoded = WriteContentRequest::decode(&fields[..]);
        let mut request = decoded.map_err(|error| Status::internal(error.to_string()))?;
        self.whole = std::mem::take(&mut request.data);
        Ok(Some(request))
    }

    /// The next bytes of the data, as they came; none when all were taken.
    ///
    /// # Errors
    /// As [`Messages::next`], and where the message ends early.
    pub(crate) async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        if !self.whole.is_empty() {
            return Ok(Some(std::mem::take(&mut self.whole)));
        }
        if self.data == 0 {
            return Ok(None);
        }
        self.some().await?;
        let piece = self.held.split_to(self.held.len().min(self.data));
        self.data -= piece.len();
        self.left -= piece.len();
        Ok(Some(piece))
    }

    /// The bytes of all fields up to the data, whose length is known then, or to the end of the message.
    async fn fields(&mut self) -> Result<Vec<u8>, Status> {
        let mut fields = Vec::new();
        while self.left > 0 {
            let start = fields.len();
            let key = self.varint(&mut fields).await?;
            let kind = WireType::try_from(key & 7).map_err(|error| Status::internal(error.to_string()))?;
            let more = match kind {
                WireType::LengthDelimited => {
                    let len = self.varint(&mut fields).await?;
                    let len = usize::try_from(len).ok().filter(|&len| len <= self.left).ok_or_else(malformed)?;
                    if key >> 3 == u64::from(DATA) {
                        fields.truncate(start);
                        self.data = len;
                        break;
                    }
                    len
                }
                WireType::Varint => {
                    self.varint(&mut fields).await?;
                    0
                }
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                WireType::StartGroup | WireType::EndGroup => return Err(malformed()),
            };
            self.copy(more, &mut fields).await?;
        }
        Ok(fields)
    }

    async fn varint(&mut self, into: &mut Vec<u8>) -> Result<u64, Status> {
        let start = into.len();
        for _ in 0..VARINT {
            let byte = self.byte().await?;
            into.push(byte);
            if byte < 0x80 {
                return prost::encoding::decode_varint(&mut &into[start..]).map_err(|_| malformed());
            }
        }
        Err(malformed())
    }

    async fn copy(&mut self, mut len: usize, into: &mut Vec<u8>) -> Result<(), Status> {
        if len > self.left {
            return Err(malformed());
        }
        while len > 0 {
            self.some().await?;
            let piece = self.held.split_to(self.held.len().min(len));
            self.left -= piece.len();
            len -= piece.len();
            into.extend_from_slice(&piece);
        }
        Ok(())
    }

    async fn byte(&mut self) -> Result<u8, Status> {
        if self.left == 0 {
            return Err(malformed());
        }
        self.some().await?;
        self.left -= 1;
        Ok(self.held.get_u8())
    }

    /// Passes over what is left of the current message.
    async fn pass(&mut self) -> Result<(), Status> {
        self.whole = Bytes::new();
        self.data = self.left;
        while self.data().await?.is_some() {}
        Ok(())
    }

    /// Waits until there are bytes; the message needs them.
    async fn some(&mut self) -> Result<(), Status> {
        if self.more().await? { Ok(()) } else { Err(Status::internal("Unexpected EOF decoding stream.")) }
    }

    /// Waits until there are bytes, or until there will be none any more: the client has said all, or has gone.
    async fn more(&mut self) -> Result<bool, Status> {
        while self.held.is_empty() {
            match self.body.frame().await {
                Some(Ok(frame)) => self.held = frame.into_data().unwrap_or_default(),
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(false),
                Some(Err(status)) => return Err(status),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn malformed() -> Status {
    Status::internal("failed to decode a WriteContentRequest: its fields do not fit its length")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::{BufMut as _, BytesMut};
    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;

    use super::*;

    /// Messages as a client sends them.
    fn framed(messages: &[WriteContentRequest]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        for message in messages {
            bytes.put_u8(0);
            bytes.put_u32(message.encoded_len() as u32);
            message.encode(&mut bytes).unwrap();
        }
        bytes.to_vec()
    }

    /// Bytes that come in pieces of these lengths, over and over.
    fn cut(bytes: &[u8], lengths: &[usize]) -> Messages {
        let (mut rest, mut pieces) = (bytes, Vec::new());
        for length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*length).min(rest.len()));
            pieces.push(Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))));
            rest = behind;
        }
        Messages::new(Body::new(StreamBody::new(stream::iter(pieces))), 1 << 20)
    }

    async fn all(messages: &mut Messages) -> Result<Vec<WriteContentRequest>, Status> {
        let mut found = Vec::new();
        while let Some(message) = messages.next().await? {
            let mut data = Vec::new();
            while let Some(piece) = messages.data().await? {
                data.extend_from_slice(&piece);
            }
            found.push(WriteContentRequest { data: data.into(), ..message });
        }
        Ok(found)
    }

    fn now<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    prop_compose! {
        fn message()(
            action in 0..3i32, offset in 0..1000i64, total in -1..1000i64, r#ref in "[a-z]{0,20}", expected in "[a-f:]{0,9}",
            data in proptest::collection::vec(any::<u8>(), 0..700),
            labels in proptest::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..3),
        ) -> WriteContentRequest {
            WriteContentRequest { action, r#ref, total, expected, offset, data: data.into(), labels }
        }
    }

    proptest! {
        #[test]
        fn messages_are_those_that_prost_encodes_however_they_are_cut(
            messages in proptest::collection::vec(message(), 0..4),
            lengths in proptest::collection::vec(1..300usize, 1..6),
        ) {
            let found = now(all(&mut cut(&framed(&messages), &lengths))).unwrap();
            prop_assert_eq!(found, messages);
        }

        #[test]
        fn rubbish_ends_with_an_error_or_as_prost_has_it(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(bytes.len() as u32);
            framed.extend_from_slice(&bytes);
            if let Ok(found) = now(all(&mut cut(&framed, &[7]))) {
                prop_assert_eq!(found, vec![WriteContentRequest::decode(&bytes[..]).unwrap()]);
            }
        }
    }

    #[test]
    fn fields_behind_the_data_count_whatever_their_order() {
        // The data, then the offset (field 5), and other data, which is what counts (protobuf: the last one does).
        for (bytes, data) in
            [(&[0x32, 1, b'x', 0x28, 3][..], &b"x"[..]), (&[0x32, 1, b'x', 0x28, 3, 0x32, 1, b'y'], b"y")]
        {
            let framed = [&[0, 0, 0, 0, bytes.len() as u8], bytes].concat();
            let found = now(all(&mut cut(&framed, &[3]))).unwrap();
            let wanted = WriteContentRequest { offset: 3, data: data.to_vec().into(), ..Default::default() };
            assert_eq!(found, [wanted]);
        }
    }

    #[test]
    fn what_was_not_taken_of_a_message_is_passed_over() {
        let first = WriteContentRequest {
            data: vec![7; 500].into(),
            labels: BTreeMap::from([("a".into(), "b".into())]),
            ..Default::default()
        };
        let second = WriteContentRequest { r#ref: "second".into(), ..Default::default() };
        let mut messages = cut(&framed(&[first, second.clone()]), &[11]);
        now(async {
            messages.next().await.unwrap().unwrap();
            assert_eq!(messages.next().await.unwrap(), Some(second));
            assert_eq!(messages.next().await.unwrap(), None);
        });
    }

    #[test]
    fn a_message_that_ends_early_or_is_too_long_is_refused() {
        let whole =
            framed(&[WriteContentRequest { r#ref: "r".into(), data: vec![1; 50].into(), ..Default::default() }]);
        for len in 1..whole.len() {
            let status = now(all(&mut cut(&whole[..len], &[9]))).unwrap_err();
            assert_eq!(status.message(), "Unexpected EOF decoding stream.", "{len}");
        }
        let long = now(all(&mut cut(&[0, 0, 0x10, 0, 1], &[5]))).unwrap_err();
        assert_eq!(long.code(), Code::OutOfRange, "{long}");
        let packed = now(all(&mut cut(&[1, 0, 0, 0, 0], &[5]))).unwrap_err();
        assert_eq!(packed.code(), Code::Internal, "{packed}");
    }
}
