//! Finds out, by trying, what the kernel's overlay can do on a file system. Nothing is mounted in any namespace.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use gantry_mount::Tree;
use gantry_types::Mount;
use rustix::fs::{Dir, FileType};

use crate::error::Error;
use crate::tree;

/// What the kernel offers on the snapshotter's file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Overlays need the option `userxattr` (the daemon runs in a user namespace).
    pub userxattr: bool,
    /// The option `index=` is known.
    pub index: bool,
    /// The option `volatile` is known: no syncing of the upper layer.
    pub volatile: bool,
    /// Lower layers may have their ids mapped.
    pub id_maps: bool,
}

/// Tries overlays below `root`, which must exist.
///
/// # Errors
/// [`Error::Unusable`] when none can be made there, or deletions in them would not be recorded.
pub(crate) fn probe(root: &Path) -> Result<Features, Error> {
    let dir = root.join("probe");
    tree::delete(&dir, &|| true).map_err(Error::io("remove", &dir))?;
    let features = Layers::make(dir.clone()).map_err(Error::io("make", &dir)).and_then(|layers| layers.features(root));
    tree::delete(&dir, &|| true).map_err(Error::io("remove", &dir))?;
    features
}

struct Layers {
    dir: PathBuf,
}

impl Layers {
    fn make(dir: PathBuf) -> io::Result<Layers> {
        for name in ["lower/one", "lower/two", "upper", "work"] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::write(dir.join("lower/one/file"), "")?;
        Ok(Layers { dir })
    }

    fn features(&self, root: &Path) -> Result<Features, Error> {
        let unusable = |reason: String| Error::Unusable { root: root.to_owned(), reason };
        if !self.has_types().map_err(Error::io("list", &self.dir))? {
            return Err(unusable("its file system does not tell the types of directory entries (d_type)".into()));
        }
        let userxattr = match (self.mount(&[]), self.mount(&["userxattr"])) {
            (Ok(_), _) => false,
            (Err(_), Ok(_)) => true,
            (Err(error), Err(_)) => return Err(unusable(error.to_string())),
        };
        let base: &[&str] = if userxattr { &["userxattr"] } else { &[] };
        if !self.records_deletions(base).map_err(Error::io("try an overlay in", &self.dir))? {
            return Err(unusable("deletions in an overlay there leave no whiteout".into()));
        }
        let takes = |more: &[&str]| self.mount(&[base, more].concat()).is_ok();
        Ok(Features {
            userxattr,
            index: takes(&["index=off"]),
            id_maps: takes(&["uidmap=0:100000:65536", "gidmap=0:100000:65536"]),
            // Last, because it marks the work directory.
            volatile: takes(&["volatile"]),
        })
    }

    fn has_types(&self) -> io::Result<bool> {
        let dir = fs::File::open(&self.dir)?;
        for entry in Dir::read_from(&dir)? {
            if entry?.file_type() == FileType::Unknown {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn records_deletions(&self, options: &[&str]) -> io::Result<bool> {
        let tree = self.mount(options).map_err(io::Error::other)?;
        fs::remove_file(tree.path().join("file"))?;
        let left = fs::symlink_metadata(self.dir.join("upper/file"))?;
        Ok(left.file_type().is_char_device() && left.rdev() == 0)
    }

    fn mount(&self, more: &[&str]) -> Result<Tree, gantry_mount::Error> {
        let dir = self.dir.display();
        let mut options = vec![
            format!("lowerdir={dir}/lower/one:{dir}/lower/two"),
            format!("upperdir={dir}/upper"),
            format!("workdir={dir}/work"),
        ];
        options.extend(more.iter().map(|option| (*option).to_owned()));
        Tree::new(&[Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }])
    }
}
