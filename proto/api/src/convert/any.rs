//! `google.protobuf.Any`: carried opaquely, or packed and unpacked where the type is ours.

use gantry_types::Any;
use prost::Name;

use super::InvalidMessage;

/// Takes the message as it came.
pub fn any_from_wire(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: any.value }
}

/// Gives the message back as it came.
pub fn any_to_wire(any: Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value }
}

/// Packs `message` under its bare full name, as containerd's clients expect it.
pub fn pack<M: Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Unpacks a message of type `M`; a `HOST/` before the name does not matter.
///
/// # Errors
/// [`InvalidMessage::Type`] when it is of another type, [`InvalidMessage::Decode`] when its bytes are damaged.
pub fn unpack<M: Name + Default>(any: &Any) -> Result<M, InvalidMessage> {
    let name = M::full_name();
    let sent = any.type_url.rsplit('/').next().unwrap_or_default();
    if sent != name {
        return Err(InvalidMessage::Type { expected: name, got: any.type_url.chars().take(200).collect() });
    }
    M::decode(any.value.as_slice()).map_err(|source| InvalidMessage::Decode { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::containerd::types::{Mount, Platform};

    fn platform() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() }
    }

    #[test]
    fn packs_under_the_bare_name() {
        assert_eq!(pack(&platform()).type_url, "containerd.types.Platform");
    }

    #[test]
    fn unpacks_with_and_without_a_host_in_the_url() {
        let mut any = pack(&platform());
        assert_eq!(unpack::<Platform>(&any), Ok(platform()));
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<Platform>(&any), Ok(platform()));
    }

    #[test]
    fn refuses_another_type_and_damaged_bytes() {
        let any = pack(&platform());
        assert!(matches!(unpack::<Mount>(&any), Err(InvalidMessage::Type { .. })));
        let damaged = Any { value: vec![0xff], ..any };
        assert!(matches!(unpack::<Platform>(&damaged), Err(InvalidMessage::Decode { .. })));
    }
}
