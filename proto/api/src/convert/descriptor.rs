//! Descriptors. The wire knows neither urls nor platform: they stay behind.

use gantry_types::Descriptor;

use super::InvalidMessage;
use crate::pb::containerd::types as wire;

/// Understands a descriptor.
///
/// # Errors
/// When the digest is none or the size is negative.
pub fn descriptor_from_wire(descriptor: wire::Descriptor) -> Result<Descriptor, InvalidMessage> {
    let size = u64::try_from(descriptor.size).map_err(|_| InvalidMessage::NegativeSize { size: descriptor.size })?;
    let mut known = Descriptor::new(descriptor.media_type, descriptor.digest.parse()?, size);
    known.annotations = descriptor.annotations;
    Ok(known)
}

/// Encodes a descriptor.
pub fn descriptor_to_wire(descriptor: &Descriptor) -> wire::Descriptor {
    wire::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone(),
    }
}

#[cfg(test)]
mod tests {
    use gantry_types::Digest;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_descriptor_comes_back_from_the_wire(kind in ".{0,40}", bytes: Vec<u8>, size in 0..=i64::MAX, key in "[a-z.]{1,9}") {
            let mut sent = Descriptor::new(kind, Digest::of(&bytes), size.unsigned_abs());
            sent.annotations.insert(key, "v".into());
            prop_assert_eq!(descriptor_from_wire(descriptor_to_wire(&sent)), Ok(sent));
        }
    }

    #[test]
    fn refuses_a_negative_size_and_a_bad_digest() {
        let good = descriptor_to_wire(&Descriptor::new("x", Digest::of(b""), 0));
        let negative = wire::Descriptor { size: -1, ..good.clone() };
        assert_eq!(descriptor_from_wire(negative), Err(InvalidMessage::NegativeSize { size: -1 }));
        let nameless = wire::Descriptor { digest: "sha256:../..".into(), ..good };
        assert!(matches!(descriptor_from_wire(nameless), Err(InvalidMessage::Digest(_))));
    }
}
