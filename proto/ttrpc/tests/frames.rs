//! The codec against frames of the Go implementation, and against anything at all.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use gantry_ttrpc::frame::{Decoded, Decoder, Frame, HEADER_LEN, Header, Kind, MAX_PAYLOAD, encode};
use gantry_ttrpc::wire::{Request, Response};
use gantry_ttrpc::{StreamRule, kind_of};
use gantry_types::ErrorKind;
use proptest::prelude::*;
use prost::Message;

fn decode_all(mut bytes: &[u8]) -> Vec<Decoded> {
    let mut decoder = Decoder::new();
    std::iter::from_fn(|| decoder.feed(&mut bytes)).collect()
}

fn only_frame(bytes: &[u8]) -> Frame {
    match decode_all(bytes).as_slice() {
        [Decoded::Frame(frame)] => frame.clone(),
        other => panic!("expected one frame, got {other:?}"),
    }
}

fn again(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(frame.stream, frame.kind, frame.flags, &frame.payload, &mut bytes).unwrap();
    bytes
}

#[test]
fn requests_of_the_go_client_are_read_and_written_to_the_byte() {
    let bytes = include_bytes!("frames/client_request_with_metadata.bin");
    let frame = only_frame(bytes);
    assert_eq!((frame.stream, frame.kind, frame.flags), (1, Kind::Request, 0));
    let request = Request::decode(frame.payload.as_slice()).unwrap();
    assert_eq!((request.service.as_str(), request.method.as_str()), ("gantry.test.Echo", "Say"));
    assert_eq!(request.payload, b"\x0a\x05hello");
    assert!(request.timeout_nano > 4_000_000_000);
    assert_eq!(request.metadata[0].key, "containerd-namespace-ttrpc");
    assert_eq!(request.metadata[0].value, "default");
    assert_eq!(request.encode_to_vec(), frame.payload);
    assert_eq!(again(&frame), bytes);
}

#[test]
fn answers_of_the_go_server_are_read() {
    let frame = only_frame(include_bytes!("frames/server_response.bin"));
    assert_eq!((frame.stream, frame.kind), (1, Kind::Response));
    assert_eq!(Response::decode(frame.payload.as_slice()).unwrap().payload, b"\x0a\x0bheard hello");
    for (bytes, kind, text) in [
        (&include_bytes!("frames/server_response_not_found.bin")[..], ErrorKind::NotFound, "no such thing: not found"),
        (include_bytes!("frames/server_response_no_method.bin"), ErrorKind::Unimplemented, "method Nope"),
        (
            include_bytes!("frames/server_response_no_service.bin"),
            ErrorKind::Unimplemented,
            "service gantry.test.Nothing",
        ),
    ] {
        let status = Response::decode(only_frame(bytes).payload.as_slice()).unwrap().status.unwrap();
        assert_eq!((kind_of(status.code), status.message.as_str()), (Some(kind), text));
    }
}

#[test]
fn a_streaming_call_of_the_go_client_is_refused_cleanly() {
    let mut rule = StreamRule::default();
    let answers: Vec<_> =
        decode_all(include_bytes!("frames/client_stream.bin")).into_iter().map(|decoded| rule.admit(decoded)).collect();
    let kinds: Vec<_> =
        answers.into_iter().map(|answer| answer.map_err(|(stream, status)| (stream, status.kind))).collect();
    assert_eq!(
        kinds,
        [
            Err((9, ErrorKind::Unimplemented)),
            Err((9, ErrorKind::InvalidArgument)),
            Err((9, ErrorKind::InvalidArgument))
        ]
    );
}

#[test]
fn streams_are_odd_and_rise() {
    let frame = |stream, kind| Decoded::Frame(Frame { stream, kind, flags: 0, payload: Vec::new() });
    let mut rule = StreamRule::default();
    assert!(matches!(rule.admit(frame(3, Kind::Request)), Ok(Some(_))));
    for stream in [1, 3, 4, 0] {
        assert_eq!(rule.admit(frame(stream, Kind::Request)).unwrap_err().1.kind, ErrorKind::InvalidArgument);
    }
    assert_eq!(rule.admit(frame(5, Kind::Other(9))), Ok(None), "unknown types are for the future");
    assert!(matches!(rule.admit(frame(5, Kind::Request)), Ok(Some(_))));
}

#[test]
fn an_oversized_message_is_skipped_and_what_follows_is_read() {
    let length = u32::try_from(MAX_PAYLOAD + 1).unwrap();
    let header = Header { length, stream: 7, kind: Kind::Request, flags: 0 };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + MAX_PAYLOAD + 1, 0xaa);
    encode(9, Kind::Request, 0, b"next", &mut bytes).unwrap();
    let decoded = decode_all(&bytes);
    assert_eq!(decoded[0], Decoded::Oversized(header));
    assert!(matches!(&decoded[1], Decoded::Frame(frame) if frame.payload == b"next"));
    assert_eq!(encode(1, Kind::Data, 0, &vec![0; MAX_PAYLOAD + 1], &mut bytes).unwrap_err().length, MAX_PAYLOAD + 1);
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let kind = prop_oneof![Just(Kind::Request), Just(Kind::Response), Just(Kind::Data), Just(Kind::Other(77))];
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let frame = (any::<u32>(), kind, any::<u8>(), payload);
    prop::collection::vec(frame.prop_map(|(stream, kind, flags, payload)| Frame { stream, kind, flags, payload }), 0..8)
}

proptest! {
    #[test]
    fn frames_survive_any_way_of_being_cut(frames in frames(), cuts in prop::collection::vec(1usize..40, 1..200)) {
        let bytes: Vec<u8> = frames.iter().flat_map(again).collect();
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        let (mut rest, mut cuts) = (bytes.as_slice(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (mut piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            rest = tail;
            while let Some(Decoded::Frame(frame)) = decoder.feed(&mut piece) {
                decoded.push(frame);
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert!(decoder.is_between_frames());
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn no_bytes_break_the_decoder_or_the_rule(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut rule = StreamRule::default();
        for decoded in decode_all(&bytes) {
            let _ = rule.admit(decoded);
        }
    }
}
