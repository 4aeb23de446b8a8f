//! Field masks: which fields of a record an update changes. Everything behind `labels.` is one key, dots and slashes included.

use std::collections::BTreeMap;

use gantry_types::{Any, Labels};

use crate::{Container, Error, Image, NamespaceRecord, Object, Sandbox};

/// Sets or, where `new` has none, removes the entry of `key`.
fn set<V: Clone>(map: &mut BTreeMap<String, V>, key: &str, new: &BTreeMap<String, V>) {
    match new.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

/// Applies `path` to labels. False where it is no path of labels.
fn label(labels: &mut Labels, new: &Labels, path: &str) -> bool {
    match path.strip_prefix("labels.") {
        Some(key) => set(labels, key, new),
        None if path == "labels" => new.clone_into(labels),
        None => return false,
    }
    true
}

/// Applies `path` to extensions. False where it is no path of extensions.
fn extension(extensions: &mut BTreeMap<String, Any>, new: &BTreeMap<String, Any>, path: &str) -> bool {
    match path.strip_prefix("extensions.") {
        Some(key) => set(extensions, key, new),
        None if path == "extensions" => new.clone_into(extensions),
        None => return false,
    }
    true
}

fn unknown(kind: &'static str, name: &str, path: &str) -> Error {
    Error::UnknownField { object: Object::new(kind, name), field: path.to_owned() }
}

/// Labels of records where nothing else can be updated; an empty mask replaces all.
pub(crate) fn labels(
    kind: &'static str,
    name: &str,
    labels: &mut Labels,
    new: &Labels,
    mask: &[String],
) -> Result<(), Error> {
    if mask.is_empty() {
        new.clone_into(labels);
    }
    match mask.iter().find(|path| !label(labels, new, path)) {
        Some(path) => Err(unknown(kind, name, path)),
        None => Ok(()),
    }
}

/// A namespace; its labels can be replaced by an empty mask or one by one, not by the path `labels`.
pub(crate) fn namespace(old: &mut NamespaceRecord, new: &Labels, mask: &[String]) -> Result<(), Error> {
    match mask.iter().find(|path| *path == "labels") {
        Some(path) => Err(unknown("namespace", &old.name, path)),
        None => labels("namespace", &old.name, &mut old.labels, new, mask),
    }
}

/// An image; an empty mask replaces all of it.
pub(crate) fn image(old: Image, new: Image, mask: &[String]) -> Result<Image, Error> {
    if mask.is_empty() {
        return Ok(Image { created: old.created, ..new });
    }
    let mut image = old;
    for path in mask {
        match path.as_str() {
            "target" => image.target = new.target.clone(),
            "annotations" => image.target.annotations.clone_from(&new.target.annotations),
            path => match path.strip_prefix("annotations.") {
                Some(key) => set(&mut image.target.annotations, key, &new.target.annotations),
                None if label(&mut image.labels, &new.labels, path) => {}
                None => return Err(unknown("image", &image.name, path)),
            },
        }
    }
    Ok(image)
}

/// A container; an empty mask replaces what can change, and refuses a change of what cannot.
pub(crate) fn container(old: Container, new: &Container, mask: &[String]) -> Result<Container, Error> {
    if mask.is_empty() {
        let immutable = |field| Err(Error::Immutable { object: Object::new("container", old.id.as_str()), field });
        if old.snapshotter != new.snapshotter {
            return immutable("snapshotter");
        }
        if old.runtime.name != new.runtime.name {
            return immutable("runtime.name");
        }
        return container(old, new, &all(&["labels", "spec", "extensions", "image", "snapshotkey"]));
    }
    let mut changed = old;
    for path in mask {
        match path.as_str() {
            "spec" => changed.spec.clone_from(&new.spec),
            "image" => changed.image.clone_from(&new.image),
            "snapshotkey" => changed.snapshot_key.clone_from(&new.snapshot_key),
            path if label(&mut changed.labels, &new.labels, path) => {}
            path if extension(&mut changed.extensions, &new.extensions, path) => {}
            path => return Err(unknown("container", &changed.id, path)),
        }
    }
    Ok(changed)
}

/// A sandbox; an empty mask replaces what can change, and refuses a change of what cannot.
pub(crate) fn sandbox(old: Sandbox, new: &Sandbox, mask: &[String]) -> Result<Sandbox, Error> {
    if mask.is_empty() {
        if old.runtime.name != new.runtime.name {
            let object = Object::new("sandbox", old.id.as_str());
            return Err(Error::Immutable { object, field: "runtime.name" });
        }
        return sandbox(old, new, &all(&["labels", "extensions", "spec", "runtime"]));
    }
    let mut changed = old;
    for path in mask {
        match path.as_str() {
            "runtime" => changed.runtime.clone_from(&new.runtime),
            "spec" => changed.spec.clone_from(&new.spec),
            path if label(&mut changed.labels, &new.labels, path) => {}
            path if extension(&mut changed.extensions, &new.extensions, path) => {}
            path => return Err(unknown("sandbox", &changed.id, path)),
        }
    }
    Ok(changed)
}

fn all(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}
