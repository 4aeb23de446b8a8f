//! The names of a layer, in memory until all have come.

use std::collections::{BTreeMap, VecDeque};

use super::format::{Attributes, Dirent, directory_size};
use super::image::{Body, Image, InodeId};
use crate::apply::{Reason, components, shown};
use crate::dirs::joined;

/// Number of a directory of a [`Names`].
pub(super) type DirId = usize;

/// The root.
pub(super) const ROOT: DirId = 0;

/// How many symlinks a path may lead through, as in the kernel (path_resolution(7)).
const SYMLINKS: usize = 40;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Directory(DirId),
    Symlink(InodeId, Box<[u8]>),
    /// Hides what is below.
    Whiteout(InodeId),
    File(InodeId),
}

impl Item {
    /// The inode, but for directories, which get theirs at the end.
    pub(super) fn inode(&self) -> Option<InodeId> {
        match self {
            Item::Directory(_) => None,
            Item::Symlink(inode, _) | Item::Whiteout(inode) | Item::File(inode) => Some(*inode),
        }
    }
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) attributes: Attributes,
    /// Whether an entry described it.
    pub(super) described: bool,
    parent: DirId,
    items: BTreeMap<Box<[u8]>, Item>,
}

/// The directories of a layer.
#[derive(Debug)]
pub(super) struct Names {
    directories: Vec<Directory>,
}

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

impl Names {
    pub(super) fn new(root: Attributes) -> Names {
        let root = Directory { attributes: root, described: true, parent: ROOT, items: BTreeMap::new() };
        Names { directories: vec![root] }
    }

    pub(super) fn get(&self, dir: DirId, name: &[u8]) -> Option<&Item> {
        self.directories[dir].items.get(name)
    }

    pub(super) fn directory(&mut self, dir: DirId) -> &mut Directory {
        &mut self.directories[dir]
    }

    /// Adds a directory in place of whatever has the name.
    pub(super) fn make(&mut self, dir: DirId, name: &[u8], attributes: Attributes, described: bool) -> DirId {
        let id = self.directories.len();
        self.directories.push(Directory { attributes, described, parent: dir, items: BTreeMap::new() });
        self.directories[dir].items.insert(name.into(), Item::Directory(id));
        id
    }

    /// Adds anything but a directory.
    pub(super) fn put(&mut self, dir: DirId, name: &[u8], item: Item) {
        self.directories[dir].items.insert(name.into(), item);
    }

    /// Takes a name away; calls `gone` for each inode that loses a name.
    pub(super) fn take(&mut self, dir: DirId, name: &[u8], gone: &mut impl FnMut(InodeId)) {
        let mut open: Vec<Item> = self.directories[dir].items.remove(name).into_iter().collect();
        while let Some(item) = open.pop() {
            match item {
                Item::Directory(id) => open.extend(std::mem::take(&mut self.directories[id].items).into_values()),
                item => item.inode().into_iter().for_each(&mut *gone),
            }
        }
    }

    /// Makes a directory hide what is below it.
    pub(super) fn set_opaque(&mut self, dir: DirId) {
        let xattrs = &mut self.directories[dir].attributes.xattrs;
        if !xattrs.iter().any(|(name, _)| name == OPAQUE) {
            xattrs.push((OPAQUE.to_vec(), b"y".to_vec()));
        }
    }

    /// Whether a directory, or one above it, hides what is below.
    pub(super) fn is_hidden(&self, mut dir: DirId) -> bool {
        loop {
            let directory = &self.directories[dir];
            if directory.attributes.xattrs.iter().any(|(name, _)| name == OPAQUE) {
                return true;
            }
            if dir == ROOT {
                return false;
            }
            dir = directory.parent;
        }
    }

    /// Whether a directory is `above`, or lies in it.
    pub(super) fn is_within(&self, mut dir: DirId, above: DirId) -> bool {
        while dir != above && dir != ROOT {
            dir = self.directories[dir].parent;
        }
        dir == above
    }

    /// The directory at the clean `path`, through symlinks; missing ones are made where `make` gives their attributes.
    pub(super) fn walk(&mut self, path: &[u8], make: Option<&Attributes>) -> Result<Option<DirId>, Reason> {
        let mut steps: VecDeque<Box<[u8]>> = components(path).map(Box::from).collect();
        let (mut here, mut symlinks) = (ROOT, 0);
        while let Some(step) = steps.pop_front() {
            if &*step == b".." {
                if here == ROOT {
                    return Err(Reason::Escapes { path: shown(path) });
                }
                here = self.directories[here].parent;
                continue;
            }
            here = match (self.get(here, &step), make) {
                (Some(Item::Directory(id)), _) => *id,
                (Some(Item::Symlink(_, target)), _) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS {
                        return Err(Reason::Name("too many symlinks on the way"));
                    }
                    let from_root = target.starts_with(b"/");
                    let target: Vec<Box<[u8]>> = components(target).map(Box::from).collect();
                    target.into_iter().rev().for_each(|step| steps.push_front(step));
                    if from_root { ROOT } else { here }
                }
                (Some(Item::File(_)), _) => {
                    return Err(Reason::NotADirectory { path: shown(&joined(&self.path(here), &step)) });
                }
                (None | Some(Item::Whiteout(_)), None) => return Ok(None),
                (None, Some(attributes)) => self.make(here, &step, attributes.clone(), false),
                (Some(Item::Whiteout(_)), Some(attributes)) => {
                    // The directory must not show what the whiteout hid.
                    let made = self.make(here, &step, attributes.clone(), false);
                    self.set_opaque(made);
                    made
                }
            };
        }
        Ok(Some(here))
    }

    /// A directory that no entry described, if there is one.
    pub(super) fn undescribed(&self) -> Option<Vec<u8>> {
        self.reachable().into_iter().find(|dir| !self.directories[*dir].described).map(|dir| self.path(dir))
    }

    fn path(&self, mut dir: DirId) -> Vec<u8> {
        let mut path: Vec<u8> = Vec::new();
        while dir != ROOT {
            let parent = &self.directories[self.directories[dir].parent];
            let is_this = |item: &&Item| **item == Item::Directory(dir);
            let name = parent.items.iter().find(|(_, item)| is_this(item)).map_or(&b"?"[..], |(name, _)| name);
            path = if path.is_empty() { name.to_vec() } else { [name, b"/", &path].concat() };
            dir = self.directories[dir].parent;
        }
        path
    }

    /// Directories that have a name, parents first.
    fn reachable(&self) -> Vec<DirId> {
        let mut found = vec![ROOT];
        let mut next = 0;
        while let Some(dir) = found.get(next).copied() {
            found.extend(self.directories[dir].items.values().filter_map(|item| match item {
                Item::Directory(id) => Some(*id),
                _ => None,
            }));
            next += 1;
        }
        found
    }

    /// Writes all directories.
    pub(super) fn write(self, image: &mut Image<'_>) -> Result<(), Reason> {
        let order = self.reachable();
        let mut bodies: Vec<Option<Body>> = self.directories.iter().map(|_| None).collect();
        for dir in &order {
            let directory = &self.directories[*dir];
            let size = directory_size(directory.sorted_names().into_iter());
            bodies[*dir] = Some(image.reserve(&directory.attributes, size, *dir == ROOT)?);
        }
        let slots: Vec<u64> = bodies.iter().map(|body| body.as_ref().map_or(0, Body::slot)).collect();
        for dir in order {
            let Some(body) = bodies[dir].take() else { continue };
            let (entries, links) = self.directories[dir].entries(slots[dir], &slots, image);
            image.directory(body, &entries, links)?;
        }
        Ok(())
    }
}

const DIRECTORY: u32 = 0o040_000;

impl Directory {
    /// With those of the directory itself and the one above.
    fn sorted_names(&self) -> Vec<&[u8]> {
        let mut names: Vec<&[u8]> = self.items.keys().map(|name| &**name).chain([&b"."[..], b".."]).collect();
        names.sort_unstable();
        names
    }

    /// What is in it, and how many names it has itself.
    fn entries(&self, own: u64, slots: &[u64], image: &Image<'_>) -> (Vec<Dirent<'_>>, u32) {
        let mut links = 2;
        let mut entries = vec![
            Dirent { name: b".", inode: own, mode: DIRECTORY },
            Dirent { name: b"..", inode: slots[self.parent], mode: DIRECTORY },
        ];
        for (name, item) in &self.items {
            let (inode, mode) = match item {
                Item::Directory(id) => {
                    links += 1;
                    (slots[*id], DIRECTORY)
                }
                item => item.inode().map_or((0, 0), |inode| (image.slot(inode), image.look(inode).mode)),
            };
            entries.push(Dirent { name, inode, mode });
        }
        entries.sort_unstable_by_key(|entry| entry.name);
        (entries, links)
    }
}
