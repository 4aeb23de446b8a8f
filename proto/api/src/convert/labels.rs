//! Labels: the same map on both sides, checked on its way in.

use gantry_types::{Labels, labels};

use super::InvalidMessage;

/// Checks every label.
///
/// # Errors
/// [`InvalidMessage::Label`] for the first that is too long or has no key.
pub fn labels_from_wire(map: Labels) -> Result<Labels, InvalidMessage> {
    for (key, value) in &map {
        labels::validate(key, value)?;
    }
    Ok(map)
}
