//! Which entry of a credentials file is meant for a host.

/// `text` without scheme and path.
pub(super) fn host_of(text: &str) -> &str {
    let text = text.trim().trim_start_matches("https://").trim_start_matches("http://");
    text.split('/').next().unwrap_or(text)
}

/// Whether two host names mean the same registry; docker's own has several names.
pub(super) fn same_host(a: &str, b: &str) -> bool {
    let (a, b) = (host_of(a), host_of(b));
    a.eq_ignore_ascii_case(b) || (is_docker_hub(a) && is_docker_hub(b))
}

/// Whether `host` is one of the names of docker's own registry.
pub(super) fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}
