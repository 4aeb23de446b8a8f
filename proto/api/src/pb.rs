//! Messages, clients and servers of the gRPC API: one module a protobuf package, generated from `proto/defs`. Maps are
//! ordered; every message knows its full name ([`prost::Name`]).
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]

/// `containerd.*`.
pub mod containerd {
    pub use gantry_ttrpc::pb::containerd::{events, runc, runtime, task, types, v1};

    /// `containerd.services.*`.
    pub mod services {
        /// `containerd.services.containers`.
        pub mod containers {
            /// `containerd.services.containers.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.containers.v1");
            }
        }

        /// `containerd.services.content`.
        pub mod content {
            /// `containerd.services.content.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }

        /// `containerd.services.diff`.
        pub mod diff {
            /// `containerd.services.diff.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }

        /// `containerd.services.events`.
        pub mod events {
            pub use gantry_ttrpc::pb::containerd::services::events::ttrpc;

            /// `containerd.services.events.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.events.v1");
            }
        }

        /// `containerd.services.images`.
        pub mod images {
            /// `containerd.services.images.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }

        /// `containerd.services.introspection`.
        pub mod introspection {
            /// `containerd.services.introspection.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.introspection.v1");
            }
        }

        /// `containerd.services.leases`.
        pub mod leases {
            /// `containerd.services.leases.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }

        /// `containerd.services.mounts`.
        pub mod mounts {
            /// `containerd.services.mounts.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.mounts.v1");
            }
        }

        /// `containerd.services.namespaces`.
        pub mod namespaces {
            /// `containerd.services.namespaces.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.namespaces.v1");
            }
        }

        /// `containerd.services.sandbox`.
        pub mod sandbox {
            /// `containerd.services.sandbox.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.sandbox.v1");
            }
        }

        /// `containerd.services.snapshots`.
        pub mod snapshots {
            /// `containerd.services.snapshots.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }

        /// `containerd.services.streaming`.
        pub mod streaming {
            /// `containerd.services.streaming.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.streaming.v1");
            }
        }

        /// `containerd.services.tasks`.
        pub mod tasks {
            /// `containerd.services.tasks.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.tasks.v1");
            }
        }

        /// `containerd.services.transfer`.
        pub mod transfer {
            /// `containerd.services.transfer.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.transfer.v1");
            }
        }

        /// `containerd.services.version`.
        pub mod version {
            /// `containerd.services.version.v1`.
            pub mod v1 {
                tonic::include_proto!("containerd.services.version.v1");
            }
        }
    }
}

/// `gantry.*`: our own.
pub mod gantry {
    /// `gantry.admin`.
    pub mod admin {
        /// `gantry.admin.v1`.
        pub mod v1 {
            tonic::include_proto!("gantry.admin.v1");
        }
    }
}

/// `google.*`.
pub mod google {
    /// `google.rpc`.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// `io.containerd.*`.
pub mod io {
    pub use gantry_ttrpc::pb::io::containerd;
}

pub use gantry_ttrpc::pb::runtimeoptions;

/// `runtime.*`: Kubernetes' Container Runtime Interface.
#[cfg(feature = "cri")]
pub mod runtime {
    /// `runtime.v1`.
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}
