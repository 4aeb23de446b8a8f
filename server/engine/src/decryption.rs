//! What the programs of imgcrypt (`ctd-decoder`), run as stream processors, are told of an encrypted layer: its
//! descriptor, whose annotations hold the layer's own key, encrypted in turn for keys that the node has.

use std::collections::BTreeMap;

use gantry_types::{Any, Descriptor};
use serde_json::json;

/// Names of the stream processors that are told, as imgcrypt has them.
const PROGRAMS: [&str; 2] = ["io.containerd.ocicrypt.decoder.v1.tar.gzip", "io.containerd.ocicrypt.decoder.v1.tar"];

/// Type of what they are told.
const TYPE: &str = "io.containerd.ocicrypt.v1.Payload";

/// How the media type of an encrypted layer ends.
const ENCRYPTED: &str = "+encrypted";

/// What stream processors are told of a layer, by their names; nothing of one that is not encrypted. Keys are those
/// that the programs find by themselves.
pub(crate) fn payloads(layer: &Descriptor) -> BTreeMap<String, Any> {
    if !layer.media_type.ends_with(ENCRYPTED) {
        return BTreeMap::new();
    }
    let payload = json!({ "DecryptConfig": { "Parameters": null }, "Descriptor": layer });
    let any = Any { type_url: TYPE.into(), value: payload.to_string().into_bytes() };
    PROGRAMS.map(|program| (program.to_owned(), any.clone())).into()
}

#[cfg(test)]
mod tests {
    use gantry_types::Digest;

    use super::*;

    #[test]
    fn programs_are_told_the_descriptor_of_an_encrypted_layer_alone() {
        let layer = |media_type: &str| Descriptor {
            annotations: [("org.opencontainers.image.enc.keys.jwe".to_owned(), "wrapped".to_owned())].into(),
            ..Descriptor::new(media_type, Digest::of(b"x"), 7)
        };
        assert!(payloads(&layer("application/vnd.oci.image.layer.v1.tar+gzip")).is_empty());
        let told = payloads(&layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
        let any = &told["io.containerd.ocicrypt.decoder.v1.tar.gzip"];
        let value: serde_json::Value = serde_json::from_slice(&any.value).unwrap();
        assert_eq!(any.type_url, "io.containerd.ocicrypt.v1.Payload");
        assert_eq!(value["Descriptor"]["annotations"]["org.opencontainers.image.enc.keys.jwe"], "wrapped");
        assert_eq!((told.len(), &value["Descriptor"]["size"]), (2, &json!(7)));
    }
}
