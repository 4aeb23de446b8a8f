//! From a snapshot's mounts to where a layer can be written, without mounting anything where that is possible: a
//! directory, or the file that is to hold the layer as an EROFS image.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use gantry_layer::{Compression, Decompressor, Options, Reason, Unpacked, Whiteouts};
use gantry_mount::Tree;
use gantry_snapshots::{EROFS_LAYER, EROFS_MARK};
use gantry_types::{Algorithm, Hasher, Mount};

use crate::{Error, Result};

/// What a layer is written upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// What the mounts show. A layer that becomes an image may still need more of it: then [`needs_lower`].
    Shown,
    /// As before, after a layer needed more.
    Needed,
    /// Nothing is there yet: the layers below are being unpacked too. What cannot be done so ends in [`needs_lower`].
    Absent,
}

/// Whether a layer can only be unpacked with those below it at hand.
pub(crate) fn needs_lower(error: &Error) -> bool {
    matches!(error, Error::Layer { source, .. } if matches!(source.reason, Reason::NeedsLower))
}

/// Where to unpack.
pub(crate) struct Place {
    target: Target,
    whiteouts: Whiteouts,
    parents: Vec<PathBuf>,
    standalone: bool,
    /// Where it took a mount; nothing shows it elsewhere, and it goes with this.
    _tree: Option<Tree>,
}

enum Target {
    Directory(PathBuf),
    /// The directory in which an image is to be.
    Image(PathBuf),
}

impl Place {
    /// The place behind `mounts`: the upper directory of an overlay, the source of a bind mount, the image of an EROFS
    /// snapshot, else a detached mount. May block.
    pub(crate) fn of(mounts: &[Mount], below: Below) -> Result<Place> {
        if let Some(layer) = erofs_layer(mounts) {
            return Place::of_erofs(layer, mounts, below);
        }
        match mounts {
            [mount] if mount.kind == "overlay" && option(mount, "upperdir=").is_some() => Ok(Place::of_overlay(mount)),
            [mount] if is_writable_bind(mount) => Ok(Place::plain(PathBuf::from(&mount.source), below, None)),
            _ => {
                let tree = Tree::new(mounts)?;
                Ok(Place::plain(tree.path(), below, Some(tree)))
            }
        }
    }

    fn of_overlay(mount: &Mount) -> Place {
        let lower = option(mount, "lowerdir=").unwrap_or_default();
        let upper = option(mount, "upperdir=").unwrap_or_default();
        Place {
            target: Target::Directory(PathBuf::from(upper)),
            whiteouts: Whiteouts::Overlay,
            parents: split_lower(lower),
            standalone: false,
            _tree: None,
        }
    }

    fn plain(directory: PathBuf, below: Below, tree: Option<Tree>) -> Place {
        let standalone = below == Below::Absent;
        let whiteouts = if standalone { Whiteouts::Overlay } else { Whiteouts::Remove };
        Place { target: Target::Directory(directory), whiteouts, parents: Vec::new(), standalone, _tree: tree }
    }

    fn of_erofs(layer: PathBuf, mounts: &[Mount], below: Below) -> Result<Place> {
        let lowers: Vec<Mount> = mounts.iter().filter(|mount| mount.kind == "erofs").cloned().collect();
        let (mut tree, mut target) = (None, Target::Image(layer.clone()));
        if below == Below::Needed && !lowers.is_empty() {
            // The snapshotter makes an image of the directory.
            target = Target::Directory(layer.join("fs"));
            tree = Some(Tree::new(&merged(lowers.clone()))?);
        }
        let parents = tree.iter().map(Tree::path).collect();
        let standalone = below == Below::Absent || tree.is_none() && !lowers.is_empty();
        Ok(Place { target, whiteouts: Whiteouts::Overlay, parents, standalone, _tree: tree })
    }

    /// A directory on the file system that is written to.
    pub(crate) fn directory(&self) -> &Path {
        match &self.target {
            Target::Directory(path) | Target::Image(path) => path,
        }
    }

    /// Unpacks a layer's tar here.
    ///
    /// # Errors
    /// What is wrong with the layer, or with the place.
    pub(crate) fn unpack(
        &self,
        layer: impl Read + Send,
        compression: Compression,
        options: Options,
    ) -> std::result::Result<Unpacked, gantry_layer::ApplyError> {
        let (whiteouts, parents, standalone) = (self.whiteouts, self.parents.clone(), self.standalone);
        let options = Options { whiteouts, parents, standalone, ..options };
        match &self.target {
            Target::Directory(directory) => gantry_layer::unpack(layer, Some(compression), directory, &options),
            Target::Image(directory) => {
                let half = Half::new(directory).map_err(failed)?;
                let unpacked = gantry_layer::unpack_to_image(layer, Some(compression), &half.file, &options)?;
                half.keep().map_err(failed)?;
                Ok(unpacked)
            }
        }
    }

    /// Stores a layer that is an EROFS image by itself.
    ///
    /// # Errors
    /// `Unimplemented` where layers are directories.
    pub(crate) fn store(&self, layer: impl Read, compression: Compression, max: u64) -> Result<crate::diff::Applied> {
        let Target::Image(directory) = &self.target else {
            return Err(Error::Unimplemented("unpacking EROFS layers by another snapshotter than erofs"));
        };
        let io = |operation| Error::io(operation, directory);
        let half = Half::new(directory).map_err(io("write an image in"))?;
        let mut plain = Decompressor::new(layer, compression).map_err(io("decompress into"))?;
        let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0_u64);
        let mut buffer = vec![0; gantry_content::CHUNK];
        loop {
            let length = plain.read(&mut buffer).map_err(io("decompress into"))?;
            if length == 0 {
                break;
            }
            size += length as u64;
            if size > max {
                return Err(Error::invalid("layer", format!("holds more than {max} bytes")));
            }
            hasher.update(&buffer[..length]);
            (&half.file).write_all(&buffer[..length]).map_err(io("write an image in"))?;
        }
        half.keep().map_err(io("write an image in"))?;
        Ok(crate::diff::Applied { diff_id: hasher.finish(), size, undescribed: Vec::new() })
    }
}

fn failed(source: std::io::Error) -> gantry_layer::ApplyError {
    gantry_layer::ApplyError { entry: String::new(), reason: Reason::Io { call: "open", source } }
}

/// An image being written, which gets its name when it is whole.
struct Half {
    file: File,
    path: PathBuf,
}

impl Half {
    fn new(directory: &Path) -> std::io::Result<Half> {
        let path = directory.join("layer.half");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Half { file, path })
    }

    fn keep(self) -> std::io::Result<()> {
        std::fs::rename(&self.path, self.path.with_file_name(EROFS_LAYER))
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // It has another name by now, or is of no use; should it stay, the next one is written over it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The directories that `mounts`, which show a snapshot, are made of, topmost first; none where they are something else.
pub(crate) fn directories(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    match mounts {
        [mount] if mount.kind == "overlay" => Some(split_lower(option(mount, "lowerdir=")?)),
        [mount] if mount.kind == "bind" => Some(vec![PathBuf::from(&mount.source)]),
        _ => None,
    }
}

/// The directory of an active EROFS snapshot, whose layer may be written as an image.
pub(crate) fn erofs_layer(mounts: &[Mount]) -> Option<PathBuf> {
    let (first, last) = (mounts.first()?, mounts.last()?);
    let inside = match last.kind.rsplit('/').next()? {
        _ if first.kind.starts_with("mkfs/") => &first.source,
        "bind" if is_writable_bind(last) => &last.source,
        "overlay" => option(last, "upperdir=")?,
        _ => return None,
    };
    let directory = Path::new(inside).parent()?;
    directory.join(EROFS_MARK).exists().then(|| directory.to_owned())
}

/// Layers as one read-only tree.
fn merged(mut lowers: Vec<Mount>) -> Vec<Mount> {
    if lowers.len() > 1 {
        let lowerdir = format!("lowerdir={{{{ overlay 0 {} }}}}", lowers.len() - 1);
        let (kind, source) = ("format/overlay".to_owned(), "overlay".to_owned());
        lowers.push(Mount { kind, source, target: String::new(), options: vec![lowerdir] });
    }
    lowers
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
        let overlay = mount("overlay", "overlay", &["lowerdir=/a\\:b:/c", "upperdir=/u", "workdir=/w"]);
        let place = Place::of(&[overlay], Below::Shown).unwrap();
        assert_eq!(place.directory(), Path::new("/u"));
        assert_eq!(place.parents, [PathBuf::from("/a:b"), PathBuf::from("/c")]);
        assert_eq!(place.whiteouts, Whiteouts::Overlay);
    }

    #[test]
    fn a_writable_bind_is_written_in_its_source() {
        for (below, whiteouts) in [(Below::Shown, Whiteouts::Remove), (Below::Absent, Whiteouts::Overlay)] {
            let place = Place::of(&[mount("bind", "/s", &["rw", "rbind"])], below).unwrap();
            assert_eq!((place.directory(), place.whiteouts), (Path::new("/s"), whiteouts));
            assert_eq!(place.standalone, below == Below::Absent);
        }
    }

    #[test]
    fn an_erofs_snapshot_is_written_as_an_image_where_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let inside = |name: &str| dir.path().join(name).display().to_string();
        let overlay = [
            mount("erofs", "/lower/layer.erofs", &["ro", "loop"]),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &[&format!("upperdir={}", inside("fs")), "lowerdir={{ mount 0 }}"],
            ),
        ];
        let bind = [mount("bind", &inside("fs"), &["rw", "rbind"])];
        let sized = [
            mount("mkfs/ext4", &inside("rwlayer.img"), &["rw", "loop"]),
            mount("format/mkdir/bind", "{{ mount 0 }}/upper", &["rw", "rbind"]),
        ];
        let all: [&[Mount]; 3] = [&overlay, &bind, &sized];
        assert!(all.iter().all(|mounts| erofs_layer(mounts).is_none()));
        std::fs::write(dir.path().join(EROFS_MARK), "").unwrap();
        for mounts in all {
            let place = Place::of(mounts, Below::Shown).unwrap();
            assert!(matches!(&place.target, Target::Image(path) if path == dir.path()));
            assert_eq!(place.standalone, mounts[0].kind == "erofs");
        }
        let read_only = [mount("bind", &inside("fs"), &["ro", "rbind"])];
        assert!(erofs_layer(&read_only).is_none());
    }
}
