//! The daemon's half of the shim contract: bundle, launch, connection, event intake, restore
