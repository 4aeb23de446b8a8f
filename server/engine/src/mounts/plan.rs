//! Which of a list of mounts the engine performs, and which the caller: a pure rule.
//!
//! A mount's type may begin with transforms, outermost first: `format/mkdir/overlay` is an overlay whose text is
//! filled in, and whose directories are made, before it is mounted.

use gantry_types::Mount;

/// What happens to a mount before it is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Templates are filled in from the mounts before.
    Format,
    /// A file is made into a file system.
    Mkfs,
    /// Directories are made.
    Mkdir,
}

impl Transform {
    fn named(word: &str) -> Option<Transform> {
        match word {
            "format" => Some(Transform::Format),
            "mkfs" => Some(Transform::Mkfs),
            "mkdir" => Some(Transform::Mkdir),
            _ => None,
        }
    }
}

/// The first transform of a type, and the type that remains. A word nobody knows is part of the type.
pub(crate) fn split(kind: &str) -> Option<(Transform, &str)> {
    let (word, rest) = kind.split_once('/')?;
    Some((Transform::named(word)?, rest))
}

/// Whether a file is made into a file system before it is mounted.
pub(crate) fn makes_file_system(mount: &Mount) -> bool {
    let mut kind = mount.kind.as_str();
    while let Some((transform, rest)) = split(kind) {
        if transform == Transform::Mkfs {
            return true;
        }
        kind = rest;
    }
    false
}

/// Types of mounts that the kernel's calls alone do not perform.
pub(crate) fn is_handled(kind: &str) -> bool {
    kind == "erofs"
}

/// What a caller performs by itself, though the engine could.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Types of mounts.
    pub types: Vec<String>,
    /// Transforms: `format`, `mkfs`, `mkdir`.
    pub transforms: Vec<String>,
}

impl Claims {
    fn has_type(&self, kind: &str) -> bool {
        self.types.iter().any(|claimed| claimed == kind)
    }

    fn has_transform(&self, word: &str) -> bool {
        self.transforms.iter().any(|claimed| claimed == word)
    }
}

/// The division of a list of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// So many mounts are performed here, with all their transforms.
    pub(crate) performed: usize,
    /// So many transforms of the mount after them are applied here.
    pub(crate) transforms: usize,
}

/// What is to be done here; none where the caller can perform all by itself. `temporary`: all is performed here.
///
/// A claimed transform is left to the caller only where no other follows that is not: each works on what the one
/// before has made.
pub(crate) fn plan(mounts: &[Mount], temporary: bool, claims: &Claims) -> Option<Plan> {
    let mut found: Option<Plan> = None;
    for (index, mount) in mounts.iter().enumerate() {
        let (mut kind, mut count) = (mount.kind.as_str(), 0);
        while let Some((_, rest)) = split(kind) {
            let word = kind.split('/').next().unwrap_or_default();
            count += 1;
            if !claims.has_transform(word) && !claims.has_type(&mount.kind) {
                found = Some(Plan { performed: index, transforms: count });
            }
            kind = rest;
        }
        if temporary || is_handled(kind) && !claims.has_type(kind) {
            found = Some(Plan { performed: index + 1, transforms: 0 });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(kinds: &[&str]) -> Vec<Mount> {
        kinds.iter().map(|kind| Mount { kind: (*kind).to_owned(), ..Mount::default() }).collect()
    }

    fn planned(kinds: &[&str]) -> Option<(usize, usize)> {
        plan(&mounts(kinds), false, &Claims::default()).map(|plan| (plan.performed, plan.transforms))
    }

    #[test]
    fn plain_mounts_need_nobody() {
        assert_eq!(planned(&["overlay"]), None);
        assert_eq!(planned(&["bind", "what/ever"]), None);
        assert_eq!(planned(&[]), None);
    }

    #[test]
    fn what_comes_before_a_transformed_mount_is_performed() {
        assert_eq!(planned(&["erofs", "ext4", "format/mkdir/overlay"]), Some((2, 2)));
        assert_eq!(planned(&["format/bind"]), Some((0, 1)));
        assert_eq!(planned(&["erofs", "overlay"]), Some((1, 0)));
        assert_eq!(planned(&["mkfs/ext4", "erofs", "overlay"]), Some((2, 0)));
    }

    #[test]
    fn a_temporary_activation_performs_all() {
        let all = plan(&mounts(&["bind", "format/overlay"]), true, &Claims::default());
        assert_eq!(all, Some(Plan { performed: 2, transforms: 0 }));
    }

    #[test]
    fn a_claim_is_kept_only_at_the_end_of_a_chain() {
        let claim = |word: &str| Claims { transforms: vec![word.into()], ..Claims::default() };
        let of = |claims: &Claims| plan(&mounts(&["erofs", "format/mkdir/overlay"]), false, claims);
        assert_eq!(of(&claim("mkdir")), Some(Plan { performed: 1, transforms: 1 }));
        assert_eq!(of(&claim("format")), Some(Plan { performed: 1, transforms: 2 }));
        let both = Claims { transforms: vec!["format".into(), "mkdir".into()], types: vec!["erofs".into()] };
        assert_eq!(of(&both), None);
    }
}
