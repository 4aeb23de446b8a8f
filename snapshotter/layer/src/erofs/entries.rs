//! The entries of a layer, one after another, into an image: the same rules as in a directory that is an overlay's upper
//! one, but without the layers below.

use std::fs::File;
use std::io::BufRead;

use super::format::{Attributes, device};
use super::image::{Image, InodeId};
use super::names::{DirId, Item, Names, ROOT};
use crate::apply::{Limit, Options, Reason, Wish, admit_xattrs, clean, mtime, shown, wish};
use crate::archive::{Entry, EntryType, Reader};
use crate::dirs;

/// What has come of a layer.
pub(super) struct Entries<'a> {
    options: &'a Options,
    image: Image<'a>,
    names: Names,
}

/// What no entry describes: as the root of a layer, or a directory that only its files name.
fn plain_directory() -> Attributes {
    Attributes { mode: 0o040_755, ..Attributes::default() }
}

impl<'a> Entries<'a> {
    pub(super) fn new(image: &'a File, options: &'a Options) -> Result<Entries<'a>, Reason> {
        Ok(Entries { options, image: Image::new(image), names: Names::new(plain_directory()) })
    }

    /// Takes in `entry`, whose content `reader` has.
    pub(super) fn entry<R: BufRead>(&mut self, mut entry: Entry, reader: &mut Reader<R>) -> Result<(), Reason> {
        let path = clean(&entry.path, self.options)?;
        match wish(&path)? {
            Wish::Nothing => Ok(()),
            Wish::Opaque(dir) => {
                let dir = self.place(dir)?;
                self.names.set_opaque(dir);
                Ok(())
            }
            Wish::Whiteout(dir, hidden) => {
                let dir = self.place(dir)?;
                self.whiteout(dir, hidden, &entry)
            }
            Wish::File(path) => {
                admit_xattrs(&mut entry, self.options.limits.xattr)?;
                let (dir, name) = dirs::split(path);
                let dir = self.place(dir)?;
                self.file(dir, name, &entry, reader)
            }
        }
    }

    /// Writes the directories.
    pub(super) fn finish(mut self) -> Result<(), (Vec<u8>, Reason)> {
        if self.options.standalone
            && let Some(path) = self.names.undescribed()
        {
            return Err((path, Reason::NeedsLower));
        }
        let written = self.names.write(&mut self.image).and_then(|()| self.image.finish());
        written.map_err(|reason| (Vec::new(), reason))
    }

    /// The directory at `path`; made where it is missing.
    fn place(&mut self, path: &[u8]) -> Result<DirId, Reason> {
        Ok(self.names.walk(path, Some(&plain_directory()))?.unwrap_or(ROOT))
    }

    fn file<R: BufRead>(
        &mut self,
        dir: DirId,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), Reason> {
        let item = match entry.kind {
            EntryType::Directory => {
                self.directory(dir, name, entry);
                return Ok(());
            }
            EntryType::HardLink => return self.hard_link(dir, name, entry),
            EntryType::Regular => Item::File(self.regular(entry, reader)?),
            EntryType::Symlink => self.symlink(entry)?,
            EntryType::CharDevice | EntryType::BlockDevice if self.options.unprivileged => return Ok(()),
            EntryType::CharDevice | EntryType::BlockDevice | EntryType::Fifo => {
                let number = device(entry.device.0, entry.device.1);
                let inode = self.image.special(&attributes(entry), number)?;
                // A device 0:0 that an archive holds hides what is below, as it does in a directory.
                let hides = entry.kind == EntryType::CharDevice && number == 0;
                if hides { Item::Whiteout(inode) } else { Item::File(inode) }
            }
        };
        self.clear(dir, name);
        self.names.put(dir, name, item);
        Ok(())
    }

    fn directory(&mut self, dir: DirId, name: &[u8], entry: &Entry) {
        let new = attributes(entry);
        match self.names.get(dir, name) {
            Some(Item::Directory(id)) => {
                let directory = self.names.directory(*id);
                let mut xattrs = std::mem::take(&mut directory.attributes.xattrs);
                xattrs.retain(|(name, _)| !new.xattrs.iter().any(|(other, _)| other == name));
                xattrs.extend(new.xattrs);
                directory.attributes = Attributes { xattrs, ..new };
                directory.described = true;
            }
            there => {
                let hides = matches!(there, Some(Item::Whiteout(_)));
                self.clear(dir, name);
                let made = self.names.make(dir, name, new, true);
                if hides {
                    self.names.set_opaque(made);
                }
            }
        }
    }

    fn regular<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<InodeId, Reason> {
        let mut body = self.image.begin(&attributes(entry), entry.size)?;
        let whole = [crate::archive::Segment { offset: 0, length: entry.size }];
        for segment in entry.segments.as_deref().unwrap_or(&whole) {
            let (mut offset, mut left) = (segment.offset, segment.length);
            while left > 0 {
                let piece = reader.content()?;
                if piece.is_empty() {
                    return Err(Reason::Malformed("inconsistent sparse map"));
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                self.image.put(&mut body, offset, &piece[..length])?;
                reader.consume(length);
                offset += length as u64;
                left -= length as u64;
            }
        }
        self.image.end(body)
    }

    fn symlink(&mut self, entry: &Entry) -> Result<Item, Reason> {
        // PATH_MAX, with its NUL (linux/limits.h).
        if entry.link.is_empty() || entry.link.len() > 4095 {
            return Err(Reason::Limit { limit: Limit::Path, max: 4095 });
        }
        let inode = self.image.symlink(&attributes(entry), &entry.link)?;
        Ok(Item::Symlink(inode, entry.link.clone().into()))
    }

    fn hard_link(&mut self, dir: DirId, name: &[u8], entry: &Entry) -> Result<(), Reason> {
        let target = clean(&entry.link, self.options)?;
        let missing = || Reason::LinkTarget { target: shown(&entry.link) };
        let (target_dir, target_name) = dirs::split(&target);
        let place = self.names.walk(target_dir, None)?;
        let found = place.and_then(|place| self.names.get(place, target_name)).cloned();
        let item = match found {
            // A link to itself only changes what it is.
            Some(Item::Directory(id)) if self.names.get(dir, name) == Some(&Item::Directory(id)) => {
                let new = attributes(entry);
                let old = &mut self.names.directory(id).attributes;
                let mode = (old.mode & 0o170_000) | (new.mode & 0o7777);
                (old.mode, old.uid, old.gid, old.mtime) = (mode, new.uid, new.gid, new.mtime);
                return Ok(());
            }
            Some(Item::Directory(_) | Item::Whiteout(_)) => return Err(missing()),
            Some(item) => item,
            // Layers below may have it.
            None if self.options.standalone && !place.is_some_and(|place| self.names.is_hidden(place)) => {
                return Err(Reason::NeedsLower);
            }
            None => return Err(missing()),
        };
        let Some(inode) = item.inode() else { return Err(missing()) };
        // A directory that makes room for a link takes all that is in it along.
        if let (Some(Item::Directory(id)), Some(place)) = (self.names.get(dir, name), place)
            && self.names.is_within(place, *id)
        {
            return Err(missing());
        }
        if self.names.get(dir, name) != Some(&item) {
            self.image.change(inode).links += 1;
            self.clear(dir, name);
            self.names.put(dir, name, item);
        }
        let new = attributes(entry);
        let kind = self.image.look(inode).mode & 0o170_000;
        let inode = self.image.change(inode);
        (inode.uid, inode.gid, inode.mtime) = (new.uid, new.gid, new.mtime);
        if kind != 0o120_000 {
            inode.mode = kind | (new.mode & 0o7777);
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: DirId, name: &[u8], entry: &Entry) -> Result<(), Reason> {
        match self.names.get(dir, name) {
            Some(Item::Directory(id)) => {
                let id = *id;
                self.names.set_opaque(id);
            }
            Some(_) => {}
            None => {
                let (uid, gid) = if self.options.unprivileged { (0, 0) } else { (entry.uid, entry.gid) };
                let attributes = Attributes { mode: 0o020_000, uid, gid, ..Attributes::default() };
                let inode = self.image.special(&attributes, 0)?;
                self.names.put(dir, name, Item::Whiteout(inode));
            }
        }
        Ok(())
    }

    /// Makes room for something else at `name`.
    fn clear(&mut self, dir: DirId, name: &[u8]) {
        let image = &mut self.image;
        self.names.take(dir, name, &mut |inode| {
            let inode = image.change(inode);
            inode.links = inode.links.saturating_sub(1);
        });
    }
}

/// What an entry says, as a file system would take it.
fn attributes(entry: &Entry) -> Attributes {
    let kind = match entry.kind {
        EntryType::Regular | EntryType::HardLink => 0o100_000,
        EntryType::Symlink => 0o120_000,
        EntryType::CharDevice => 0o020_000,
        EntryType::BlockDevice => 0o060_000,
        EntryType::Directory => 0o040_000,
        EntryType::Fifo => 0o010_000,
    };
    let permissions = if entry.kind == EntryType::Symlink { 0o777 } else { entry.mode & 0o7777 };
    let mut xattrs: Vec<_> = entry.xattrs.iter().filter(|(name, _)| has(entry.kind, name)).cloned().collect();
    // Of one that is given twice the last counts.
    let mut seen = std::collections::HashSet::new();
    xattrs.reverse();
    xattrs.retain(|(name, _)| seen.insert(name.clone()));
    xattrs.reverse();
    Attributes { mode: kind | permissions, uid: entry.uid, gid: entry.gid, mtime: mtime(entry), xattrs }
}

/// Whether a file of this kind can have an attribute of this name (xattr(7)).
fn has(kind: EntryType, name: &[u8]) -> bool {
    match name {
        b"system.posix_acl_access" => kind != EntryType::Symlink,
        b"system.posix_acl_default" => kind == EntryType::Directory,
        _ if name.starts_with(b"user.") => matches!(kind, EntryType::Regular | EntryType::Directory),
        _ => true,
    }
}
