//! The end-to-end tests: one file a feature. Run as root by `integration/test`, one at a time.

#![allow(clippy::expect_used)]

mod bad_requests;
mod clients;
mod crash;
mod ctr_images;
mod ctr_run;
mod descriptors;
mod gctr;
mod go_client;
mod hostile;
mod layering;
mod mounts;
mod restart;
mod service;
mod tour;
mod trees;
