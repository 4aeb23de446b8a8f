//! The end-to-end tests: one file a feature. Run as root by `integration/test`, one at a time.

mod descriptors;
mod layering;
