//! The contract, for the local snapshotters.

mod overlay {
    use std::sync::Arc;

    use gantry_snapshots::{Overlay, OverlayConfig};

    gantry_snapshots::contract_tests!(|root| Arc::new(Overlay::open(root, OverlayConfig::default()).unwrap()));
}

mod native {
    use std::sync::Arc;

    use gantry_snapshots::Native;

    gantry_snapshots::contract_tests!(|root| Arc::new(Native::open(root).unwrap()));
}

/// Where the kernel has it.
mod erofs {
    use std::sync::Arc;

    use gantry_snapshots::{Erofs, ErofsConfig};

    gantry_snapshots::contract_tests!(|root| Arc::new(Erofs::open(root, ErofsConfig::default()).unwrap()));
}
