//! Which images an archive's manifests become (containerd.types.transfer, ImageStore and ImageReference).

use std::time::SystemTime;

use gantry_types::labels::GC_EXPIRE;
use gantry_types::{Descriptor, Labels};

use crate::leases::rfc3339;
use crate::transfer::{ImageReference, Import};

/// Annotation with an image's full name.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with an image's name or tag (OCI image-spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Label: goes with the image it names.
const BACK_REFERENCE: &str = "containerd.io/gc.bref.image";

/// The names of the archive's index itself, with their labels.
pub(crate) fn of_index(import: &Import, index: &Descriptor) -> Vec<(String, Labels)> {
    let own = (!import.name.is_empty()).then(|| (import.name.clone(), import.labels.clone()));
    let wanted = import.references.iter().filter(|r| !r.is_prefix || r.add_digest);
    let extra = wanted.map(|r| {
        let name = if r.add_digest { format!("{}@{}", r.name, index.digest) } else { r.name.clone() };
        (name, extra_labels(import))
    });
    own.into_iter().chain(extra).collect()
}

/// The names of one of the index's manifests, with their labels.
pub(crate) fn of_manifest(import: &Import, manifest: &Descriptor) -> Vec<(String, Labels)> {
    let mut names = Vec::new();
    for rule in import.references.iter().filter(|r| r.is_prefix) {
        let name = annotated_name(manifest, rule);
        if rule.add_digest && (name.is_none() || !rule.skip_named_digest) {
            names.push((format!("{}@{}", rule.name, manifest.digest), extra_labels(import)));
        }
        names.extend(name.map(|name| (name, extra_labels(import))));
    }
    names
}

/// Where the import has a name of its own, further names live and die with it.
fn extra_labels(import: &Import) -> Labels {
    let mut labels = import.labels.clone();
    if !import.name.is_empty() {
        labels.insert(BACK_REFERENCE.to_owned(), import.name.clone());
        labels.insert(GC_EXPIRE.to_owned(), rfc3339(SystemTime::now()));
    }
    labels
}

fn annotated_name(manifest: &Descriptor, rule: &ImageReference) -> Option<String> {
    let annotation = |key: &str| manifest.annotations.get(key).filter(|v| !v.is_empty());
    // A full name is taken as it stands or not at all.
    if let Some(full) = annotation(IMAGE_NAME) {
        return by_rule(full, rule).filter(|name| name == full);
    }
    by_rule(annotation(REF_NAME)?, rule)
}

fn by_rule(name: &str, rule: &ImageReference) -> Option<String> {
    if rule.name.is_empty() || !name.contains(['/', ':', '@']) {
        return Some(if rule.name.is_empty() { name.to_owned() } else { format!("{}:{name}", rule.name) });
    }
    (rule.allow_overwrite || has_prefix(name, &rule.name)).then(|| name.to_owned())
}

/// Whether `name` is the repository `prefix` or lies in it.
fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// A Docker name in full: `alpine` → `docker.io/library/alpine:latest`.
pub(crate) fn docker_name(short: &str) -> String {
    let first = short.split('/').next().unwrap_or(short);
    let has_host = short.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = match (has_host, short.contains('/')) {
        (true, _) => short.to_owned(),
        (false, true) => format!("docker.io/{short}"),
        (false, false) => format!("docker.io/library/{short}"),
    };
    let last = full.rsplit('/').next().unwrap_or(&full);
    if last.contains([':', '@']) { full } else { format!("{full}:latest") }
}

/// The tag in a full name, as the OCI layout's annotation carries it; the name itself where it has none.
pub(crate) fn tag_of(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once('@').map_or(last, |(l, _)| l).split_once(':') {
        Some((_, tag)) => tag.to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_types::Digest;

    fn manifest(annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Descriptor { annotations, ..Descriptor::new("x", Digest::of(b"m"), 1) }
    }

    fn import(rule: ImageReference) -> Import {
        Import { references: vec![rule], ..Import::default() }
    }

    fn prefix(name: &str, allow_overwrite: bool) -> ImageReference {
        ImageReference { name: name.into(), is_prefix: true, allow_overwrite, ..ImageReference::default() }
    }

    fn named(import: &Import, manifest: &Descriptor) -> Vec<String> {
        of_manifest(import, manifest).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_full_name_in_the_archive_is_kept_and_a_tag_is_put_behind_the_prefix() {
        let rule = import(prefix("example.com/app", true));
        assert_eq!(named(&rule, &manifest(&[(IMAGE_NAME, "docker.io/library/a:1")])), ["docker.io/library/a:1"]);
        assert_eq!(named(&rule, &manifest(&[(REF_NAME, "v1")])), ["example.com/app:v1"]);
        assert!(named(&rule, &manifest(&[])).is_empty());
    }

    #[test]
    fn names_outside_the_prefix_are_left_out_unless_they_may_overwrite() {
        let other = manifest(&[(REF_NAME, "example.com/application:1")]);
        assert!(named(&import(prefix("example.com/app", false)), &other).is_empty());
        assert_eq!(named(&import(prefix("example.com/app", true)), &other), ["example.com/application:1"]);
    }

    #[test]
    fn what_has_no_name_gets_one_by_digest_where_asked() {
        let rule = import(ImageReference { add_digest: true, skip_named_digest: true, ..prefix("x.y/z", true) });
        let digest = Digest::of(b"m");
        assert_eq!(named(&rule, &manifest(&[])), [format!("x.y/z@{digest}")]);
        assert_eq!(named(&rule, &manifest(&[(REF_NAME, "1")])), ["x.y/z:1"]);
    }

    #[test]
    fn docker_names_are_written_in_full() {
        assert_eq!(docker_name("alpine"), "docker.io/library/alpine:latest");
        assert_eq!(docker_name("me/app:2"), "docker.io/me/app:2");
        assert_eq!(docker_name("localhost/app"), "localhost/app:latest");
        assert_eq!(docker_name("127.0.0.1:5000/app"), "127.0.0.1:5000/app:latest");
        assert_eq!(tag_of("127.0.0.1:5000/app:v2"), "v2");
    }
}
