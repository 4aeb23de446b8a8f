//! From a call's headers to the [`Scope`] it runs in.

use std::time::{Duration, Instant};

use gantry_types::{Namespace, Scope};
use hyper::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::status;

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";
const TIMEOUT: &str = "grpc-timeout";

/// The scope of a call.
///
/// # Errors
/// `FailedPrecondition` without a namespace, `InvalidArgument` where it is no identifier.
pub(crate) fn of<T>(request: &Request<T>) -> Result<Scope, Status> {
    of_headers(request.metadata())
}

fn of_headers(headers: &MetadataMap) -> Result<Scope, Status> {
    let namespace = namespace(headers)?.ok_or_else(|| Status::failed_precondition("namespace is required"))?;
    let lease = text(headers, LEASE).filter(|lease| !lease.is_empty()).map(Into::into);
    let deadline = timeout(headers.as_ref()).and_then(|left| Instant::now().checked_add(left));
    Ok(Scope { namespace, lease, deadline })
}

/// The namespace, for calls that can do without.
fn namespace(headers: &MetadataMap) -> Result<Option<Namespace>, Status> {
    match text(headers, NAMESPACE) {
        Some(name) if !name.is_empty() => name.parse().map(Some).map_err(status::of),
        _ => Ok(None),
    }
}

fn text<'a>(headers: &'a MetadataMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// How much time the client gives, where it says so.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(TIMEOUT).and_then(|value| value.to_str().ok()).and_then(gantry_api::timeout::parse)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (name, value) in pairs {
            map.insert(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_call_without_a_namespace_fails_its_precondition() {
        for without in [headers(&[]), headers(&[(NAMESPACE, "")])] {
            assert_eq!(of_headers(&without).unwrap_err().code(), Code::FailedPrecondition);
        }
    }

    #[test]
    fn a_namespace_that_is_no_identifier_is_refused_and_a_lease_may_be_any_text() {
        let bad = headers(&[(NAMESPACE, "../x")]);
        assert_eq!(of_headers(&bad).unwrap_err().code(), Code::InvalidArgument);
        let scope = of_headers(&headers(&[(NAMESPACE, "a"), (LEASE, "/mnt/x")])).unwrap();
        assert_eq!(scope.lease.as_deref(), Some("/mnt/x"));
    }

    #[test]
    fn namespace_lease_and_deadline_are_read() {
        let before = Instant::now();
        let scope = of_headers(&headers(&[(NAMESPACE, "a"), (LEASE, "b"), (TIMEOUT, "2S")])).unwrap();
        assert_eq!((scope.namespace.as_str(), scope.lease.as_deref()), ("a", Some("b")));
        let left = scope.deadline.unwrap() - before;
        assert!(left >= Duration::from_secs(2) && left < Duration::from_secs(3), "{left:?}");
    }
}
