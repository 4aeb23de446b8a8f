//! Names in archives: made clean, or refused.

use super::error::{Limit, Reason, shown};
use super::{Limits, Options};
use crate::dirs::split;

/// What a clean path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish<'a> {
    /// The root itself, or metadata of AUFS: nothing to do.
    Nothing,
    /// A file at this path.
    File(&'a [u8]),
    /// Hide this path of the lower layers.
    Whiteout(&'a [u8], &'a [u8]),
    /// Hide what lower layers have in this directory.
    Opaque(&'a [u8]),
}

/// `path` without empty and `.` components, `..` resolved, counted from the root.
pub(crate) fn clean(path: &[u8], options: &Options) -> Result<Vec<u8>, Reason> {
    if options.refuse_absolute && path.starts_with(b"/") {
        return Err(Reason::Escapes { path: shown(path) });
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in components(path) {
        if component == b".." {
            if clean.is_empty() {
                return Err(Reason::Escapes { path: shown(path) });
            }
            clean.truncate(split(&clean).0.len());
            continue;
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    bounded(&clean, &options.limits)?;
    Ok(clean)
}

/// The components of `path` that mean something.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

fn bounded(path: &[u8], limits: &Limits) -> Result<(), Reason> {
    if path.len() > limits.path {
        return Err(Reason::Limit { limit: Limit::Path, max: limits.path as u64 });
    }
    let mut depth = 0;
    for component in components(path) {
        depth += 1;
        if component.len() > 255 {
            return Err(Reason::Name("a component is longer than 255 bytes"));
        }
        if component.contains(&0) {
            return Err(Reason::Name("it contains a NUL"));
        }
    }
    if depth > limits.depth {
        return Err(Reason::Limit { limit: Limit::Depth, max: limits.depth as u64 });
    }
    Ok(())
}

/// What the clean `path` asks for (OCI image-spec, layer.md, "Whiteouts").
pub(crate) fn wish(path: &[u8]) -> Result<Wish<'_>, Reason> {
    let (dir, name) = split(path);
    for component in components(dir) {
        if component.starts_with(b".wh..wh.") {
            return Ok(Wish::Nothing);
        }
        if component.starts_with(b".wh.") {
            return Err(Reason::Name("directories cannot be named .wh.*"));
        }
    }
    match name {
        b"" => Ok(Wish::Nothing),
        b".wh..wh..opq" => Ok(Wish::Opaque(dir)),
        _ if name.starts_with(b".wh..wh.") => Ok(Wish::Nothing),
        b".wh." | b".wh.." | b".wh..." => Err(Reason::Name("a whiteout of nothing")),
        _ => Ok(name.strip_prefix(b".wh.").map_or(Wish::File(path), |hidden| Wish::Whiteout(dir, hidden))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    /// The same by the standard library's path components.
    fn naive(path: &str) -> Option<Vec<String>> {
        let mut stack = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => stack.push(name.to_str().unwrap().to_owned()),
                Component::ParentDir => drop(stack.pop()?),
                _ => {}
            }
        }
        Some(stack)
    }

    proptest! {
        #[test]
        fn cleaning_agrees_with_a_stack_of_components(path in "[a./]{0,24}") {
            let cleaned = clean(path.as_bytes(), &Options::default()).ok();
            let expected = naive(&path).map(|stack| stack.join("/").into_bytes());
            prop_assert_eq!(cleaned, expected);
        }
    }

    #[test]
    fn whiteouts_are_told_from_files_and_from_each_other() {
        assert_eq!(wish(b"a/b").unwrap(), Wish::File(b"a/b"));
        assert_eq!(wish(b"a/.wh.b").unwrap(), Wish::Whiteout(b"a", b"b"));
        assert_eq!(wish(b".wh.b").unwrap(), Wish::Whiteout(b"", b"b"));
        assert_eq!(wish(b"a/.wh..wh..opq").unwrap(), Wish::Opaque(b"a"));
        assert_eq!(wish(b"a/.wh..wh.aufs").unwrap(), Wish::Nothing);
        assert_eq!(wish(b".wh..wh.plnk/12.3").unwrap(), Wish::Nothing);
        assert_eq!(wish(b"").unwrap(), Wish::Nothing);
        for bad in [&b"a/.wh."[..], b".wh..", b"a/.wh...", b".wh.a/b"] {
            assert!(matches!(wish(bad), Err(Reason::Name(_))));
        }
    }
}
