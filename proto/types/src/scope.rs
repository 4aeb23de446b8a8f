//! Under whose name a call runs.

use std::time::Instant;

use crate::Namespace;

/// Namespace, lease and deadline of a call: an explicit argument of every engine operation that is namespaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The namespace (header `containerd-namespace`).
    pub namespace: Namespace,
    /// The lease that keeps what this call makes (header `containerd-lease`): free text, clients use paths too.
    pub lease: Option<String>,
    /// When the caller stops waiting (header `grpc-timeout`).
    pub deadline: Option<Instant>,
}

impl Scope {
    /// A scope without lease or deadline.
    pub fn new(namespace: Namespace) -> Scope {
        Scope { namespace, lease: None, deadline: None }
    }
}
