//! What somebody says of an image, and whether it is signed.
//!
//! * Simple signing (cosign's SIGNATURE_SPEC): a JSON payload that names the digest, signed as it is.
//! * Sigstore bundle v0.3: an in-toto statement in a DSSE envelope (in-toto `statement v1`, DSSE `protocol.md`), or a
//!   signature of the manifest itself. Only cosign's statement of a signature counts; other attestations say something else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gantry_types::{Digest, Reference};
use serde::Deserialize;

use super::{Key, Seen};

/// What a statement must be to be a signature.
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT: &str = "application/vnd.in-toto+json";

/// Something that may be a signature.
pub(super) enum Evidence {
    /// Payload and signature.
    Simple { payload: Bytes, signature: String },
    /// A bundle, and the manifest that it is about.
    Bundle { json: Bytes, manifest: Bytes },
    /// What could not be read, and why.
    Unreadable(String),
}

impl Evidence {
    /// Whether one of the keys signed that this digest is meant; else why not.
    pub(super) fn verify(self, keys: &[Key], digest: &Digest) -> Result<Seen, String> {
        match self {
            Evidence::Simple { payload, signature } => simple(&payload, &signature, keys, digest),
            Evidence::Bundle { json, manifest } => bundle(&json, &manifest, keys, digest),
            Evidence::Unreadable(reason) => Err(reason),
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text.trim()).map_err(|_| "a signature that is not base64".into())
}

fn signer<'k>(keys: &'k [Key], message: &[u8], signature: &[u8]) -> Result<&'k Key, String> {
    let of = keys.iter().find(|key| key.verifies(message, signature));
    of.ok_or_else(|| "a signature by another key, or a false one".to_owned())
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(default)]
    identity: Name,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Name {
    #[serde(rename = "docker-reference", default)]
    reference: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

fn simple(payload: &[u8], signature: &str, keys: &[Key], digest: &Digest) -> Result<Seen, String> {
    // Not a byte of the payload is looked at before it is known whose it is.
    let key = signer(keys, payload, &decode(signature)?)?;
    let payload: Payload = serde_json::from_slice(payload).map_err(|_| "a signed payload that makes no sense")?;
    let critical = payload.critical;
    if !matches!(critical.kind.as_str(), "cosign container image signature" | "atomic container signature") {
        return Err(format!("a signed payload of the type {:?}", critical.kind.chars().take(80).collect::<String>()));
    }
    if critical.image.digest != digest.as_str() {
        return Err("a signature of another image".into());
    }
    Ok(Seen { key: key.fingerprint.clone(), repository: named(&critical.identity.reference) })
}

/// The repository that a signature names, without tag or digest.
fn named(reference: &str) -> Option<String> {
    if reference.is_empty() {
        return None;
    }
    // What cannot be read is nobody's name.
    let repository = reference.parse::<Reference>().map(|reference| super::repository(&reference));
    Some(repository.unwrap_or_else(|_| reference.chars().take(200).collect()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
    message_signature: Option<MessageSignature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    #[serde(default)]
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct MessageSignature {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(default)]
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: std::collections::BTreeMap<String, String>,
}

fn bundle(json: &[u8], manifest: &[u8], keys: &[Key], digest: &Digest) -> Result<Seen, String> {
    let bundle: Bundle = serde_json::from_slice(json).map_err(|_| "a bundle that makes no sense")?;
    let key = match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => statement(&envelope, keys, digest)?,
        (None, Some(message)) => signer(keys, manifest, &decode(&message.signature)?)?,
        _ => return Err("a bundle without a signature".into()),
    };
    Ok(Seen { key: key.fingerprint.clone(), repository: None })
}

fn statement<'k>(envelope: &Envelope, keys: &'k [Key], digest: &Digest) -> Result<&'k Key, String> {
    let payload = decode(&envelope.payload)?;
    let message = pre_authentication(&envelope.payload_type, &payload);
    let mut last = "an envelope without a signature".to_owned();
    for signature in envelope.signatures.iter().take(16) {
        match decode(&signature.sig).and_then(|bytes| signer(keys, &message, &bytes)) {
            Ok(key) => {
                says_so(&envelope.payload_type, &payload, digest)?;
                return Ok(key);
            }
            Err(reason) => last = reason,
        }
    }
    Err(last)
}

fn says_so(payload_type: &str, payload: &[u8], digest: &Digest) -> Result<(), String> {
    let statement: Statement = serde_json::from_slice(payload).map_err(|_| "a signed statement that makes no sense")?;
    if payload_type != STATEMENT || statement.predicate_type != SIGN {
        return Err("a statement that is no signature".into());
    }
    let algorithm = digest.as_str().split(':').next().unwrap_or_default();
    let is_it = |subject: &Subject| subject.digest.get(algorithm).is_some_and(|hex| hex == digest.hex());
    if statement.subject.iter().any(is_it) { Ok(()) } else { Err("a signature of another image".into()) }
}

/// What is signed of an envelope (DSSE, `protocol.md`, "PAE").
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}
