//! What a layer will say, gathered before it is written: links between files are known only once all are seen.

use std::collections::HashMap;

use rustix::fs::{FileType, Stat};

use super::{DiffError, shown};
use crate::dirs::{self, joined};

/// One path of the layer.
pub(super) struct Change {
    /// Path from the root.
    pub(super) path: Box<[u8]>,
    pub(super) what: What,
    /// The directory it is in, by its place in the list; none in the root.
    parent: Option<usize>,
    /// Whether it is written: it differs, or something that differs needs it.
    written: bool,
    /// The change whose file this is a hard link to, by its place in the list.
    pub(super) link: Option<usize>,
}

/// What became of a path.
pub(super) enum What {
    /// It exists.
    Present(Stat),
    /// It was removed.
    Removed,
    /// It is a directory that hides what was there. Follows the directory itself.
    Opaque,
}

/// The changes, sorted so that a directory comes before what is in it.
#[derive(Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// Adds a file of the upper tree, which differs or not, and gives its place.
    pub(super) fn present(
        &mut self,
        parent: Option<usize>,
        path: Box<[u8]>,
        stat: Stat,
        differs: bool,
    ) -> Result<usize, DiffError> {
        if dirs::split(&path).1.starts_with(b".wh.") {
            return Err(DiffError::ReservedName { path: shown(&path) });
        }
        Ok(self.push(parent, path, What::Present(stat), differs))
    }

    /// Adds a path that is no more.
    pub(super) fn removed(&mut self, parent: Option<usize>, path: Box<[u8]>) {
        self.push(parent, path, What::Removed, true);
    }

    /// Adds the mark that the directory at `parent` hides what was there.
    pub(super) fn opaque(&mut self, parent: usize) {
        let path = self.0[parent].path.clone();
        self.push(Some(parent), path, What::Opaque, true);
    }

    fn push(&mut self, parent: Option<usize>, path: Box<[u8]>, what: What, written: bool) -> usize {
        self.0.push(Change { path, what, parent, written, link: None });
        self.0.len() - 1
    }

    /// All changes with their hard links known, and which of them are to be written.
    pub(super) fn complete(mut self) -> Vec<(Change, bool)> {
        self.link();
        for index in (0..self.0.len()).rev() {
            if let (true, Some(parent)) = (self.0[index].written, self.0[index].parent) {
                self.0[parent].written = true;
            }
        }
        self.0.into_iter().map(|change| (change.written, change)).map(|(written, change)| (change, written)).collect()
    }

    /// Links names of one file. If one of them differs all are written, so that they stay one file.
    fn link(&mut self) {
        let mut groups: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
        for (index, change) in self.0.iter().enumerate() {
            if let What::Present(stat) = &change.what
                && stat.st_nlink > 1
                && dirs::file_type(stat) != FileType::Directory
            {
                groups.entry((stat.st_dev, stat.st_ino)).or_default().push(index);
            }
        }
        for group in groups.into_values() {
            let written = group.iter().any(|&index| self.0[index].written);
            for &index in &group {
                self.0[index].written = written;
                self.0[index].link = (index != group[0]).then_some(group[0]);
            }
        }
    }
}

impl Change {
    /// The path of the entry in the layer.
    pub(super) fn entry_path(&self) -> Box<[u8]> {
        let (dir, name) = dirs::split(&self.path);
        match &self.what {
            What::Present(stat) if dirs::file_type(stat) == FileType::Directory => {
                [&self.path, &b"/"[..]].concat().into()
            }
            What::Present(_) => self.path.clone(),
            What::Removed => joined(dir, &[b".wh.", name].concat()),
            What::Opaque => joined(&self.path, b".wh..wh..opq"),
        }
    }
}
