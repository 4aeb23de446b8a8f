//! Events as JSON: decoded by the descriptors the API was generated from, so that no event type is forgotten.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

/// The message in an `Any`; its type and length where the type is not known.
pub fn event_json(any: &prost_types::Any) -> Value {
    decode(any).unwrap_or_else(|| json!({"type": any.type_url, "bytes": any.value.len()}))
}

fn decode(any: &prost_types::Any) -> Option<Value> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(gantry_api::FILE_DESCRIPTOR_SET).ok()).as_ref()?;
    let name = any.type_url.rsplit('/').next().unwrap_or(&any.type_url);
    let descriptor = pool.get_message_by_name(name)?;
    let message = DynamicMessage::decode(descriptor, &any.value[..]).ok()?;
    serde_json::to_value(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::pb::containerd::events::TaskExit;
    use prost::{Message, Name};

    #[test]
    fn a_known_event_is_shown_by_its_fields_and_an_unknown_one_by_its_type() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 7, ..Default::default() };
        let any = prost_types::Any { type_url: TaskExit::full_name(), value: exit.encode_to_vec() };
        assert_eq!(event_json(&any), json!({"containerId": "c", "exitStatus": 7}));
        let any = prost_types::Any { type_url: "x.Y".into(), value: vec![1, 2] };
        assert_eq!(event_json(&any), json!({"type": "x.Y", "bytes": 2}));
    }
}
