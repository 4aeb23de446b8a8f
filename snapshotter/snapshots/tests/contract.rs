//! The contract, for both local snapshotters.

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
