//! OCI distribution client: hosts, auth, resolve, fetch, push
