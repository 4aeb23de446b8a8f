//! The stored form of a record: version byte, edges, body. Large opaque messages are compressed with a dictionary.

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use gantry_types::Any;
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

use crate::edges::Edge;

/// The version this build writes.
const VERSION: u8 = 1;

/// Messages shorter than this stay as they are.
const COMPRESS_FROM: usize = 200;

/// No message is longer: the limit of a message on the socket.
const MAX_MESSAGE: usize = 16 << 20;

const LEVEL: i32 = 3;

/// What stored messages of version 1 are compressed against: the common parts of a runtime specification. Never change it.
static DICTIONARY_1: &[u8] = include_bytes!("spec.v1.dict");

static ENCODER: LazyLock<EncoderDictionary<'static>> = LazyLock::new(|| EncoderDictionary::copy(DICTIONARY_1, LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> = LazyLock::new(|| DecoderDictionary::copy(DICTIONARY_1));

/// Why a stored record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("empty")]
    Empty,
    #[error("version {0} is not known to this build")]
    Version(u8),
    #[error("{0}")]
    Form(#[from] postcard::Error),
    #[error("a compressed message cannot be unpacked: {0}")]
    Packed(std::io::Error),
    #[error("{0}")]
    Content(String),
}

/// Version, edges and body.
pub(crate) fn encode(edges: &[Edge], body: &impl Serialize) -> Result<Vec<u8>, postcard::Error> {
    let bytes = postcard::to_extend(edges, vec![VERSION])?;
    postcard::to_extend(body, bytes)
}

/// The body.
pub(crate) fn decode<'a, B: Deserialize<'a>>(bytes: &'a [u8]) -> Result<B, Unreadable> {
    let (_, body) = postcard::take_from_bytes::<Skipped<'_>>(versioned(bytes)?)?;
    Ok(postcard::from_bytes(body)?)
}

/// The edges alone.
pub(crate) fn edges(bytes: &[u8]) -> Result<Vec<Edge>, Unreadable> {
    Ok(postcard::take_from_bytes(versioned(bytes)?)?.0)
}

/// Edges that are read and dropped, without a copy of their texts.
type Skipped<'a> = Vec<EdgeForm<'a>>;

/// The form of [`Edge`], variant by variant.
#[derive(Deserialize)]
#[allow(dead_code, reason = "only their lengths count")]
enum EdgeForm<'a> {
    Root,
    #[serde(borrow)]
    Refers(TargetForm<'a>),
    BackRefers(TargetForm<'a>),
    Parent(&'a str),
    Expires(i64),
    Flat,
}

/// The form of [`crate::Target`], variant by variant.
#[derive(Deserialize)]
#[allow(dead_code, reason = "only their lengths count")]
enum TargetForm<'a> {
    Content(&'a str),
    Snapshot { snapshotter: &'a str, key: &'a str },
    Image(&'a str),
    Container(&'a str),
    Sandbox(&'a str),
    Lease(&'a str),
    Ingest(&'a str),
    Mount(&'a str),
}

fn versioned(bytes: &[u8]) -> Result<&[u8], Unreadable> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => Err(Unreadable::Version(*version)),
        None => Err(Unreadable::Empty),
    }
}

/// A time, as seconds and nanoseconds since 1970.
pub(crate) type Time = (i64, u32);

pub(crate) fn time(time: SystemTime) -> Time {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            (-i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX), before.duration().subsec_nanos())
        }
    }
}

pub(crate) fn system_time((seconds, nanos): Time) -> SystemTime {
    let distance = Duration::new(seconds.unsigned_abs(), nanos.min(999_999_999));
    let time = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(distance),
        _ => SystemTime::UNIX_EPOCH.checked_sub(distance),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A stored message.
#[derive(Serialize, Deserialize)]
pub(crate) struct Packed {
    type_url: String,
    /// Length of the message, where it is compressed.
    unpacked: Option<u32>,
    bytes: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    /// What was decompressed last, and from what: who changes a label of a container stores its specification as it was.
    static LAST: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Longer messages are not remembered.
const REMEMBERED: usize = 64 << 10;

pub(crate) fn pack(any: &Any) -> Packed {
    let plain = |any: &Any| Packed { type_url: any.type_url.clone(), unpacked: None, bytes: any.value.clone() };
    if !(COMPRESS_FROM..=MAX_MESSAGE).contains(&any.value.len()) {
        return plain(any);
    }
    match compress(&any.value) {
        Ok(bytes) if bytes.len() < any.value.len() => {
            Packed { type_url: any.type_url.clone(), unpacked: u32::try_from(any.value.len()).ok(), bytes }
        }
        _ => plain(any),
    }
}

pub(crate) fn unpack(packed: Packed) -> Result<Any, Unreadable> {
    let Packed { type_url, unpacked: Some(length), bytes } = packed else {
        return Ok(Any { type_url: packed.type_url, value: packed.bytes });
    };
    let value = decompress(&bytes, length as usize).map_err(Unreadable::Packed)?;
    if value.len() <= REMEMBERED {
        LAST.with_borrow_mut(|last| {
            last.0.clear();
            last.0.extend_from_slice(&value);
            last.1 = bytes;
        });
    }
    Ok(Any { type_url, value })
}

/// Appends the message behind what is stored of it.
pub(crate) fn append_unpacked(bytes: &[u8], length: Option<u32>, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let Some(length) = length else {
        out.extend_from_slice(bytes);
        return Ok(());
    };
    let start = out.len();
    with_decompressor(length as usize, |decompressor| {
        out.resize(start + length as usize, 0);
        let written = decompressor.decompress_to_buffer(bytes, &mut out[start..])?;
        match written == length as usize {
            true => Ok(()),
            false => Err(std::io::Error::other("shorter than it is said to be")),
        }
    })
    .map_err(Unreadable::Packed)
}

fn compress(value: &[u8]) -> std::io::Result<Vec<u8>> {
    let known = LAST.with_borrow(|(last, from)| (last == value).then(|| from.clone()));
    if let Some(known) = known {
        return Ok(known);
    }
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::with_prepared_dictionary(&ENCODER)?),
        };
        compressor.compress(value)
    })
}

fn decompress(bytes: &[u8], length: usize) -> std::io::Result<Vec<u8>> {
    with_decompressor(length, |decompressor| decompressor.decompress(bytes, length))
}

/// Decompresses a message of `length` bytes with this thread's decompressor.
fn with_decompressor<T>(
    length: usize,
    decompress: impl FnOnce(&mut Decompressor<'static>) -> std::io::Result<T>,
) -> std::io::Result<T> {
    if length > MAX_MESSAGE {
        return Err(std::io::Error::other("longer than any message"));
    }
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::with_prepared_dictionary(&DECODER)?),
        };
        decompress(decompressor)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packed_message_comes_back_as_it_was(url in ".*", value in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let any = Any { type_url: url, value };
            prop_assert_eq!(&unpack(pack(&any)).unwrap(), &any);
            let again = pack(&any);
            prop_assert_eq!(unpack(again).unwrap(), any);
        }

        #[test]
        fn times_come_back_as_they_were(seconds in 0u64..1 << 40, nanos in 0u32..1_000_000_000) {
            let after = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            let before = SystemTime::UNIX_EPOCH - Duration::new(seconds.max(1), nanos);
            prop_assert_eq!(system_time(time(after)), after);
            prop_assert_eq!(system_time(time(before)), before);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut versioned = vec![VERSION];
            versioned.extend(&bytes);
            for bytes in [&bytes, &versioned] {
                let _ = edges(bytes);
                let _ = decode::<(String, Packed)>(bytes).map(|(_, packed)| unpack(packed));
            }
        }
    }

    #[test]
    fn edges_of_every_kind_are_passed_over() {
        use crate::Target::{Container, Content, Image, Ingest, Lease, Mount, Sandbox, Snapshot};
        let text = || "some text".to_owned();
        let snapshot = Snapshot { snapshotter: text(), key: text() };
        let targets = [
            Content(text()),
            snapshot,
            Image(text()),
            Container(text()),
            Sandbox(text()),
            Lease(text()),
            Ingest(text()),
            Mount(text()),
        ];
        let mut all = vec![Edge::Root, Edge::Parent(text()), Edge::Expires(-7), Edge::Flat];
        all.extend(targets.iter().cloned().map(Edge::Refers).chain(targets.iter().cloned().map(Edge::BackRefers)));
        let stored = encode(&all, &"body").unwrap();
        assert_eq!(decode::<&str>(&stored).unwrap(), "body");
        assert_eq!(edges(&stored).unwrap(), all);
    }

    #[test]
    fn a_newer_version_is_refused_by_number() {
        assert_eq!(edges(&[9, 0]).unwrap_err().to_string(), "version 9 is not known to this build");
    }

    #[test]
    fn a_usual_specification_shrinks_to_a_fraction() {
        let value = String::from_utf8(DICTIONARY_1.to_vec()).unwrap().replace("/bin/sh", "/bin/true").into_bytes();
        let packed = pack(&Any { type_url: String::new(), value: value.clone() });
        assert!(packed.bytes.len() * 20 < value.len(), "{} of {}", packed.bytes.len(), value.len());
    }
}
