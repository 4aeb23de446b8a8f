//! Public keys as PEM (`BEGIN PUBLIC KEY`, RFC 5280 SubjectPublicKeyInfo): ECDSA on P-256, Ed25519, RSA of 2048 to 8192 bits.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_types::Digest;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

/// Largest file that is read, in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// A key, and how it verifies.
pub(super) struct Key {
    /// SHA-256 of the SubjectPublicKeyInfo, by which keys are known again.
    pub(super) fingerprint: String,
    verifies: UnparsedPublicKey<Vec<u8>>,
}

// Object identifiers as DER has them, without tag and length.
const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const ED25519: &[u8] = b"\x2b\x65\x70";
const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";

impl Key {
    /// Reads a key; else says what is wrong with it, the path included.
    pub(super) fn read(path: &Path) -> Result<Key, String> {
        let named = |reason: String| format!("key {}: {reason}", path.display());
        let size = std::fs::metadata(path).map_err(|error| named(error.to_string()))?.len();
        if size > MAX_SIZE {
            return Err(named("too large".into()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        Key::parse(&text).map_err(|reason| named(reason.to_owned()))
    }

    fn parse(pem: &str) -> Result<Key, &'static str> {
        let (_, rest) = pem.split_once("-----BEGIN PUBLIC KEY-----").ok_or("no PEM block `PUBLIC KEY`")?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----").ok_or("its PEM block does not end")?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| "its PEM block is not base64")?;
        let (algorithm, key) = parts(&der).ok_or("it is no public key in DER")?;
        let how: &'static dyn VerificationAlgorithm = match algorithm {
            (EC_PUBLIC_KEY, P256) => &signature::ECDSA_P256_SHA256_ASN1,
            (ED25519, _) => &signature::ED25519,
            (RSA, _) => &signature::RSA_PKCS1_2048_8192_SHA256,
            _ => return Err("its kind is none of ECDSA P-256, Ed25519 and RSA"),
        };
        let fingerprint = Digest::of(&der).to_string();
        Ok(Key { fingerprint, verifies: UnparsedPublicKey::new(how, key.to_vec()) })
    }

    /// Whether `signature` is this key's for `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifies.verify(message, signature).is_ok()
    }
}

/// Of a SubjectPublicKeyInfo: the algorithm with its parameter, and the key's bits.
#[allow(clippy::type_complexity, reason = "two pairs of what DER has side by side")]
fn parts(der: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let (outer, rest) = element(der, 0x30)?;
    let (algorithm, outer) = element(outer, 0x30)?;
    let (bits, end) = element(outer, 0x03)?;
    let (oid, parameters) = element(algorithm, 0x06)?;
    // A curve, or nothing that matters here.
    let parameter = element(parameters, 0x06).map_or(&[][..], |(curve, _)| curve);
    // The first byte counts unused bits.
    let key = bits.strip_prefix(&[0])?;
    (rest.is_empty() && end.is_empty()).then_some(((oid, parameter), key))
}

/// The content of the first element, which has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (*first == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_says_so() {
        let wrap = |body: &str| format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        for (pem, reason) in [
            (String::new(), "no PEM block"),
            (wrap("!"), "not base64"),
            (wrap("MAA="), "no public key"),
            (wrap(&STANDARD.encode([0x30, 0x82, 0xff])), "no public key"),
        ] {
            let error = Key::parse(&pem).err().unwrap();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }

    #[test]
    fn the_bounds_of_der_are_kept() {
        for der in [&[][..], &[0x30], &[0x30, 5, 1], &[0x30, 0x82, 1], &[0x30, 0x84, 0, 0, 0, 1, 0], &[0x30, 0x81]] {
            assert_eq!(element(der, 0x30), None, "{der:?}");
        }
        assert_eq!(element(&[0x30, 1, 7, 9], 0x30), Some((&[7][..], &[9][..])));
    }
}
