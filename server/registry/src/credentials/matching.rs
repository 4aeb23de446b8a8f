//! Which entry of a credentials file is meant for a host.

/// `text` without scheme and path.
pub(super) fn host_of(text: &str) -> &str {
    let text = without_scheme(text);
    text.split('/').next().unwrap_or(text)
}

fn without_scheme(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text)
}

/// Whether two host names mean the same registry; docker's own has several names.
pub(super) fn same_host(a: &str, b: &str) -> bool {
    let (a, b) = (host_of(a), host_of(b));
    a.eq_ignore_ascii_case(b) || (is_docker_hub(a) && is_docker_hub(b))
}

/// Whether `host` is one of the names of docker's own registry.
fn is_docker_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Whether the pattern of a kubelet credential provider is for `host` and `path`: dot-separated parts of the host match
/// one by one, `*` within a part; ports must be the same; a path in the pattern must be a prefix.
pub(super) fn matches_pattern(pattern: &str, host: &str, path: &str) -> bool {
    let pattern = without_scheme(pattern);
    let (wanted, prefix) = pattern.split_once('/').unwrap_or((pattern, ""));
    if !path.starts_with(prefix) {
        return false;
    }
    if same_host(wanted, host) {
        return true;
    }
    let (wanted, wanted_port) = crate::hosts::split_port(wanted);
    let (name, port) = crate::hosts::split_port(host);
    let (wanted, name): (Vec<&str>, Vec<&str>) = (wanted.split('.').collect(), name.split('.').collect());
    wanted_port == port && wanted.len() == name.len() && wanted.iter().zip(name).all(|(w, n)| glob(w, n))
}

/// `*` stands for any run of characters within one part of a name.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_registry_are_the_same_whatever_is_around_them() {
        assert!(same_host("https://index.docker.io/v1/", "registry-1.docker.io"));
        assert!(same_host("http://R.example:5000/x", "r.example:5000"));
        assert!(!same_host("r.example", "r.example:5000") && !same_host("example", "r.example"));
    }

    #[test]
    fn patterns_match_part_by_part() {
        assert!(matches_pattern("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-1.amazonaws.com", "a/b"));
        assert!(matches_pattern("*.example.org:8080/team", "r.example.org:8080", "team/x"));
        assert!(matches_pattern("app*z.k8s.io", "appxyz.k8s.io", "x"));
        for (pattern, host) in [
            ("*.example.org", "example.org"),
            ("*.example.org", "a.b.example.org"),
            ("*.example.org", "a.example.org:80"),
            ("*.example.org/team", "a.example.org"),
            ("ab*ba.org", "aba.org"),
        ] {
            assert!(!matches_pattern(pattern, host, "other/x"), "{pattern} {host}");
        }
    }
}
