//! What is read from outside, each as one function over any bytes. None may panic, and what was understood must hold what
//! its reader promises. `fuzz/` hands these to cargo-fuzz; `tests/` runs them for a bounded time on a stable compiler.
//!
//! ```text
//! cd integration/fuzz && cargo +nightly fuzz run layer
//! ```
#![forbid(unsafe_code)]
// A broken promise is told by panicking.
#![allow(clippy::expect_used, clippy::missing_panics_doc)]

use std::borrow::Cow;
use std::io::{BufReader, Cursor, Read as _};
use std::path::Path;

use gantry_types::{Fields, Filter, Labels, Platform, Reference};
use prost::Message as _;

/// A target of fuzzing.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("filter", filter),
    ("reference", reference),
    ("labels", labels),
    ("configuration", configuration),
    ("manifest", manifest),
    ("ttrpc", ttrpc),
    ("inflate", inflate),
    ("layer", layer),
    ("hosts", hosts),
    ("docker_archive", docker_archive),
    ("restart_labels", restart_labels),
];

struct Anything;

impl Fields for Anything {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        path.last().map(|last| Cow::Owned((*last).to_owned()))
    }
}

/// The filter language: what was understood can be asked.
pub fn filter(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let alternatives: Vec<&str> = text.split('\n').collect();
    if let Ok(filter) = Filter::parse(&alternatives) {
        filter.matches(&Anything);
    }
}

/// Names of images: what was understood is written as it was read, and has its parts.
pub fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(reference) = text.parse::<Reference>() {
        assert!(!reference.host().is_empty() && !reference.path().starts_with('/'), "{text:?}");
        let again: Reference = reference.to_string().parse().expect("what is written can be read");
        assert_eq!(again, reference);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let again: Platform = platform.to_string().parse().expect("what is written can be read");
        assert_eq!(again, platform, "{text:?}");
    }
}

/// Labels, and the edges of garbage collection that they make.
pub fn labels(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pairs = text.split('\n').map(|line| line.split_once('=').unwrap_or((line, "")));
    let labels: Labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let valid = gantry_types::labels::validate_all(&labels).is_ok();
    let each = labels.iter().all(|(key, value)| gantry_types::labels::validate(key, value).is_ok());
    assert_eq!(valid, each);
    let _ = gantry_metadata::edges_of_labels(&labels);
}

/// The daemon's configuration: mistakes are named with a line that the file has.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut config = gantry_daemon::config::Config::default();
    if config.parse(Path::new("/config.toml"), &text).is_ok() {
        let _ = config.engine();
    }
}

/// Indexes, manifests and configurations of images.
pub fn manifest(bytes: &[u8]) {
    gantry_engine::fuzzing::manifest(bytes);
}

/// Frames of the shims' protocol, their rules, and the messages in them.
pub fn ttrpc(bytes: &[u8]) {
    use gantry_ttrpc::frame::{Decoded, Decoder, encode};
    let mut decoder = Decoder::new();
    let mut rule = gantry_ttrpc::StreamRule::default();
    let mut rest = bytes;
    while let Some(decoded) = decoder.feed(&mut rest) {
        if let Decoded::Frame(frame) = &decoded {
            let mut again = Vec::new();
            encode(frame.stream, frame.kind, frame.flags, &frame.payload, &mut again)
                .expect("a frame that was read fits");
            let mut input = again.as_slice();
            let read = Decoder::new().feed(&mut input);
            assert!(matches!(&read, Some(Decoded::Frame(same)) if same == frame), "{read:?}");
            let _ = gantry_ttrpc::wire::Request::decode(frame.payload.as_slice());
            let _ = gantry_ttrpc::wire::Response::decode(frame.payload.as_slice());
        }
        let _ = rule.admit(decoded);
    }
}

/// DEFLATE: what flate2 makes of it, or refused as there; the first two bytes say by how many helpers and in what pieces.
pub fn inflate(bytes: &[u8]) {
    let [how, piece, packed @ ..] = bytes else { return };
    // A byte becomes a thousand at most.
    let packed = &packed[..packed.len().min(4 << 10)];
    let (input, output) = (1 + usize::from(how >> 2), 1 + usize::from(*piece) * 16);
    let mut reader = gantry_inflate::Reader::new(BufReader::with_capacity(input, packed));
    reader.help(usize::from(how & 3), 1 << 10);
    let (mut plain, mut buffer) = (Vec::new(), vec![0; output]);
    let whole = loop {
        match reader.inflate(&mut buffer) {
            Ok(made) if made > 0 => plain.extend_from_slice(&buffer[..made]),
            end => break end.is_ok(),
        }
    };
    let mut expected = Vec::new();
    let read = flate2::bufread::DeflateDecoder::new(packed).read_to_end(&mut expected);
    assert_eq!(whole, read.is_ok());
    assert!(!whole || plain == expected);
}

/// A layer, plain or compressed: whatever it says, all that it makes lies below its root.
pub fn layer(bytes: &[u8]) {
    let world = tempfile::tempdir().expect("a directory");
    let root = world.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::write(world.path().join("outside"), "kept").expect("a file");
    let options = gantry_layer::Options {
        unprivileged: true,
        limits: gantry_layer::Limits { bytes: 1 << 20, entries: 1000, ..gantry_layer::Limits::default() },
        ..gantry_layer::Options::default()
    };
    let _ = gantry_layer::apply(Cursor::new(bytes), &root, &options);
    let mut left: Vec<_> =
        std::fs::read_dir(world.path()).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, ["outside", "root"]);
    assert_eq!(std::fs::read(world.path().join("outside")).expect("a file"), b"kept");
    make_removable(&root);
}

/// A layer may have made directories that nobody may enter.
fn make_removable(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_removable(&entry.path());
        }
    }
}

/// `hosts.toml`.
pub fn hosts(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a directory");
    let own = folder.path().join("registry.example");
    std::fs::create_dir(&own).expect("a directory");
    std::fs::write(own.join("hosts.toml"), bytes).expect("a file");
    if let Ok(hosts) = gantry_registry::hosts::load(&[folder.path().to_owned()], "registry.example", None) {
        assert!(!hosts.endpoints.is_empty());
    }
}

/// `manifest.json` of an archive in Docker's form, and the paths in it.
pub fn docker_archive(bytes: &[u8]) {
    gantry_engine::fuzzing::docker_archive(bytes);
}

/// The labels that the restart monitor follows: no output but a file or a program by an absolute path.
pub fn restart_labels(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(output) = gantry_engine::fuzzing::restart_output(&text) {
        assert!(output.starts_with("file:///") || output.starts_with("binary:///"), "{output:?}");
        assert!(!output.split(['?', '#']).next().unwrap_or_default().split('/').any(|part| part == ".."), "{output:?}");
    }
}
