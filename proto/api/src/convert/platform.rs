//! Platforms, normalised on their way in.

use gantry_types::Platform;

use crate::pb::containerd::types as wire;

/// Takes a platform from the wire.
pub fn platform_from_wire(platform: wire::Platform) -> Platform {
    Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
        os_version: platform.os_version,
        os_features: platform.os_features,
    }
    .normalised()
}

/// Encodes a platform.
pub fn platform_to_wire(platform: &Platform) -> wire::Platform {
    wire::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}
