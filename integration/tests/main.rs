//! The end-to-end tests: one file a feature. Run as root by `integration/test`, one at a time.

#![allow(clippy::expect_used)]

mod bad_requests;
mod clients;
mod config;
mod crash;
mod cri;
mod cri_checkpoint;
mod cri_churn;
mod cri_images;
mod cri_network;
mod cri_node;
mod cri_nri;
mod cri_pull;
mod cri_stop;
mod cri_streaming;
mod cri_verbose;
mod ctr_images;
mod ctr_run;
mod descriptors;
mod garbage;
mod gctr;
mod go_client;
mod hostile;
mod images;
mod killed;
mod kubelet;
mod layering;
mod lazy;
mod mounts;
mod oci;
mod podman;
mod proxy;
mod restart;
mod restart_monitor;
mod sandbox;
mod service;
mod shims;
mod snapshotters;
mod stopped;
mod tour;
mod trees;
