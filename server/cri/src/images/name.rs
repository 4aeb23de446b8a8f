//! Names of images as Kubernetes writes them: short ones mean Docker's registry, as in its reference grammar.

use gantry_types::{Digest, Reference};

use crate::{Error, Result};

const DEFAULT_HOST: &str = "docker.io";

/// The full reference of `text`: host, path, and either a digest or a tag.
///
/// # Errors
/// [`Error::Invalid`] that names `field`.
pub(crate) fn normalize(field: &str, text: &str) -> Result<Reference> {
    if text.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    let full = full_text(text);
    full.parse().map_err(|error: gantry_types::InvalidReference| Error::invalid(field, error.to_string()))
}

fn full_text(text: &str) -> String {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if is_host(host) => (host, rest),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let library = if host == DEFAULT_HOST && !rest.contains('/') { "library/" } else { "" };
    let (path, tag) = rest.rsplit_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
    match digest {
        // A digest says more than a tag: the tag is dropped.
        Some(digest) => format!("{host}/{library}{path}@{digest}"),
        None => format!("{host}/{library}{path}:{}", tag.unwrap_or("latest")),
    }
}

fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase)
}

/// The name by which an image is known by its digest: `HOST/PATH@DIGEST`.
pub(crate) fn with_digest(reference: &Reference, digest: &Digest) -> String {
    format!("{}/{}@{digest}", reference.host(), reference.path())
}

/// The hexadecimal part of something that may be an image's id, or the beginning of one.
pub(crate) fn id_prefix(text: &str) -> Option<&str> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let hexadecimal = !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then_some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_dockers_registry_and_its_library() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("host:5000/app:2", "host:5000/app:2"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ] {
            assert_eq!(normalize("image", short).unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_digest_makes_the_tag_superfluous() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference = normalize("image", &format!("registry.k8s.io/pause:3.9@{digest}")).unwrap();
        assert_eq!(reference.to_string(), format!("registry.k8s.io/pause@{digest}"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_field() {
        for bad in ["", "x/UPPER", "a b", "http://x/y", "x@sha256:zz"] {
            let error = normalize("image.image", bad).unwrap_err();
            assert!(matches!(&error, Error::Invalid { field, .. } if field == "image.image"), "{bad}: {error}");
        }
    }

    #[test]
    fn ids_may_be_cut_short() {
        assert_eq!(id_prefix("sha256:ab12"), Some("ab12"));
        assert_eq!(id_prefix("ab12"), Some("ab12"));
        assert_eq!(id_prefix("pause:3.9"), None);
    }
}
