//! From a snapshot's mounts to a directory that a layer can be written into, without mounting anything where that is
//! possible.

use std::path::{Path, PathBuf};

use gantry_layer::{Options, Whiteouts};
use gantry_mount::Tree;
use gantry_types::Mount;

use crate::Result;

/// A directory to unpack into.
pub(crate) struct Place {
    directory: PathBuf,
    whiteouts: Whiteouts,
    parents: Vec<PathBuf>,
    /// Where it took a mount; nothing shows it elsewhere, and it goes with this.
    _tree: Option<Tree>,
}

impl Place {
    /// The directory behind `mounts`: the upper directory of an overlay, the source of a bind mount, else a detached
    /// mount. May block.
    pub(crate) fn of(mounts: &[Mount]) -> Result<Place> {
        match mounts {
            [mount] if mount.kind == "overlay" && option(mount, "upperdir=").is_some() => Ok(Place::of_overlay(mount)),
            [mount] if is_writable_bind(mount) => Ok(Place::plain(PathBuf::from(&mount.source), None)),
            _ => {
                let tree = Tree::new(mounts)?;
                Ok(Place::plain(tree.path(), Some(tree)))
            }
        }
    }

    fn of_overlay(mount: &Mount) -> Place {
        let lower = option(mount, "lowerdir=").unwrap_or_default();
        let upper = option(mount, "upperdir=").unwrap_or_default();
        Place {
            directory: PathBuf::from(upper),
            whiteouts: Whiteouts::Overlay,
            parents: split_lower(lower),
            _tree: None,
        }
    }

    fn plain(directory: PathBuf, tree: Option<Tree>) -> Place {
        Place { directory, whiteouts: Whiteouts::Remove, parents: Vec::new(), _tree: tree }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// `options` as this directory needs them.
    pub(crate) fn options(&self, options: Options) -> Options {
        Options { whiteouts: self.whiteouts, parents: self.parents.clone(), ..options }
    }
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name))
}

fn is_writable_bind(mount: &Mount) -> bool {
    let has = |name: &str| mount.options.iter().any(|option| option == name);
    (mount.kind == "bind" || has("bind") || has("rbind")) && !has("ro") && mount.target.is_empty()
}

/// Lower directories, topmost first; `\:` and `\\` stand for themselves (overlayfs.rst, "lowerdir").
fn split_lower(lower: &str) -> Vec<PathBuf> {
    let mut directories = vec![String::new()];
    let mut escaped = false;
    for c in lower.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ':' if !escaped => directories.push(String::new()),
            c => directories.last_mut().into_iter().for_each(|directory| directory.push(c)),
        }
        escaped = false;
    }
    directories.into_iter().filter(|directory| !directory.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { kind: kind.into(), source: source.into(), target: String::new(), options }
    }

    #[test]
    fn an_overlay_is_written_in_its_upper_directory() {
        let place =
            Place::of(&[mount("overlay", "overlay", &["lowerdir=/a\\:b:/c", "upperdir=/u", "workdir=/w"])]).unwrap();
        assert_eq!(place.directory(), Path::new("/u"));
        assert_eq!(place.parents, [PathBuf::from("/a:b"), PathBuf::from("/c")]);
        assert_eq!(place.whiteouts, Whiteouts::Overlay);
    }

    #[test]
    fn a_writable_bind_is_written_in_its_source() {
        let place = Place::of(&[mount("bind", "/s", &["rw", "rbind"])]).unwrap();
        assert_eq!((place.directory(), place.whiteouts), (Path::new("/s"), Whiteouts::Remove));
    }
}
