//! One entry after another becomes a file.

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fd::OwnedFd;
use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, Timestamps, chownat, fadvise, fchmod, fchown, ftruncate, futimens, linkat,
    makedev, mkdirat, mknodat, openat, symlinkat, unlinkat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::{Errno, pwrite, write};

use super::error::{Fault, Reason, call, shown};
use super::fill::{Filling, SMALL};
use super::lower::LowerFile;
use super::metadata::{self, Made, Process};
use super::own::Own;
use super::path::{Wish, clean, wish};
use super::places::{Place, Places};
use super::{Limit, Options, Whiteouts};
use crate::archive::{Entry, EntryType, Reader};
use crate::dirs::{self, joined};
use crate::sums::{Meta, Note};

/// Puts entries below a root.
pub(super) struct Extractor<'a> {
    options: &'a Options,
    process: Process,
    places: Places,
    /// Times of directories, set at the end because each file made in one changes them.
    times: BTreeMap<Box<[u8]>, Timestamps>,
    /// What this layer brought, where whiteouts must tell it from what was there.
    own: Option<Own>,
    /// Small files on their way to be filled.
    filling: Filling,
}

/// Where an entry goes: a name in an open directory.
struct Spot<'a> {
    place: Rc<Place>,
    name: &'a [u8],
}

impl Spot<'_> {
    fn path(&self) -> Box<[u8]> {
        joined(&self.place.path, self.name)
    }

    fn made(&self) -> Made {
        if self.place.passes_group { Made::Otherwise } else { Made::Plainly }
    }
}

impl<'a> Extractor<'a> {
    pub(super) fn new(
        root: &Path,
        options: &'a Options,
        process: Process,
        filling: Filling,
    ) -> Result<Extractor<'a>, Reason> {
        Ok(Extractor {
            filling,
            options,
            process,
            places: Places::new(root, options)?,
            times: BTreeMap::new(),
            own: (options.whiteouts == Whiteouts::Remove).then(Own::default),
        })
    }

    /// Applies `entry`, whose content `reader` has.
    pub(super) fn entry<R: BufRead>(&mut self, mut entry: Entry, reader: &mut Reader<R>) -> Result<(), Fault> {
        let path = clean(&entry.path, self.options)?;
        match wish(&path)? {
            Wish::Nothing => {}
            Wish::Opaque(dir) => self.opaque(dir)?,
            Wish::Whiteout(dir, hidden) => {
                let place = self.places.place(dir, true)?;
                self.whiteout(&Spot { place, name: hidden }, &entry)?;
            }
            Wish::File(path) => {
                metadata::admit_xattrs(&mut entry, self.options.limits.xattr)?;
                let (dir, name) = dirs::split(path);
                let place = self.places.place(dir, true)?;
                self.file(&Spot { place, name }, entry, reader)?;
            }
        }
        Ok(())
    }

    /// Sets the times of directories, once nothing more is made in them. Gives the directories that should be like those
    /// of the layers below, where these are not there yet.
    pub(super) fn finish(mut self) -> Result<Vec<PathBuf>, Fault> {
        self.filling.wait()?;
        for (path, times) in std::mem::take(&mut self.times) {
            self.directory_times(&path, &times).map_err(|reason| Fault::of(&path, reason))?;
        }
        let undescribed = if self.options.standalone { self.places.undescribed() } else { Vec::new() };
        self.places.finish()?;
        Ok(undescribed)
    }

    fn directory_times(&mut self, path: &[u8], times: &Timestamps) -> Result<(), Reason> {
        let (dir, name) = dirs::split(path);
        let place = self.places.place(dir, false)?;
        metadata::set_times(place.fd(), name, times)
    }

    fn file<R: BufRead>(&mut self, spot: &Spot<'_>, entry: Entry, reader: &mut Reader<R>) -> Result<(), Fault> {
        match entry.kind {
            EntryType::Directory => self.directory(spot, &entry)?,
            EntryType::Regular if entry.segments.is_none() && entry.size <= SMALL => self.small(spot, entry, reader)?,
            EntryType::Regular => self.regular(spot, &entry, reader)?,
            EntryType::HardLink => {
                // It may name a file that is being filled, and change what is said of it.
                self.filling.wait()?;
                self.hard_link(spot, &entry)?;
            }
            EntryType::Symlink => {
                self.make(spot, "symlinkat", || symlinkat(entry.link.as_slice(), spot.place.fd(), spot.name))?;
                metadata::finish_special(&self.process, spot.place.fd(), spot.name, &entry, spot.made())?;
                self.note(spot, || Note::Symlink { meta: meta(&entry), target: entry.link.as_slice().into() })?;
            }
            EntryType::CharDevice | EntryType::BlockDevice if self.options.unprivileged => return Ok(()),
            EntryType::CharDevice => self.special(spot, &entry, FileType::CharacterDevice)?,
            EntryType::BlockDevice => self.special(spot, &entry, FileType::BlockDevice)?,
            EntryType::Fifo => self.special(spot, &entry, FileType::Fifo)?,
        }
        if let Some(own) = &mut self.own {
            own.add(&spot.path());
        }
        Ok(())
    }

    fn directory(&mut self, spot: &Spot<'_>, entry: &Entry) -> Result<(), Reason> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let mut made = spot.made();
        match mkdirat(spot.place.fd(), spot.name, mode) {
            Err(Errno::EXIST) => made = self.directory_over(spot, mode, made)?,
            result => call("mkdirat", result)?,
        }
        metadata::finish_directory(&self.process, spot.place.fd(), spot.name, entry, made)?;
        self.places.describe(&spot.path());
        self.times.insert(spot.path(), metadata::times(entry));
        self.note(spot, || Note::Directory(meta(entry)))
    }

    /// A directory where something is: another directory is kept with what is in it, anything else makes room.
    fn directory_over(&mut self, spot: &Spot<'_>, mode: Mode, made: Made) -> Result<Made, Reason> {
        let Some(stat) = call("fstatat", dirs::state(spot.place.fd(), spot.name))? else {
            return call("mkdirat", mkdirat(spot.place.fd(), spot.name, mode)).map(|()| made);
        };
        if dirs::file_type(&stat) == FileType::Directory {
            // Its set-group-ID bit may change, which open directories remember.
            self.places.forget();
            return Ok(Made::Otherwise);
        }
        self.clear(spot)?;
        call("mkdirat", mkdirat(spot.place.fd(), spot.name, mode))?;
        if self.options.whiteouts == Whiteouts::Overlay && dirs::is_whiteout(&stat) {
            // The directory must not show what the whiteout hid.
            self.places.set_opaque(&spot.path())?;
        }
        Ok(made)
    }

    /// A file whose content and metadata come by the way.
    fn small<R: BufRead>(&mut self, spot: &Spot<'_>, entry: Entry, reader: &mut Reader<R>) -> Result<(), Fault> {
        let file = self.create(spot, entry.mode)?;
        let content = self.filling.content();
        let begin = content.len();
        loop {
            let piece = reader.content()?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(piece);
            let length = piece.len();
            reader.consume(length);
        }
        let crc = self.places.has_sums().then(|| crc32fast::hash(&content[begin..]));
        self.note(spot, || Note::File { meta: meta(&entry), size: entry.size, crc })?;
        self.filling.add(file, entry, spot.made())
    }

    fn regular<R: BufRead>(&mut self, spot: &Spot<'_>, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Reason> {
        let file = self.create(spot, entry.mode)?;
        let crc = match &entry.segments {
            None => write_content(&file, reader, self.places.has_sums())?,
            Some(segments) => {
                for segment in segments {
                    write_segment(&file, segment.offset, segment.length, reader)?;
                }
                call("ftruncate", ftruncate(&file, entry.size))?;
                None
            }
        };
        metadata::finish_file(&self.process, &file, entry, spot.made())?;
        if entry.size >= EARLY {
            begin_to_store(&file);
        }
        self.note(spot, || Note::File { meta: meta(entry), size: entry.size, crc })
    }

    /// Creates a regular file, in place of whatever is there.
    fn create(&mut self, spot: &Spot<'_>, mode: u32) -> Result<OwnedFd, Reason> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.make(spot, "openat", || openat(spot.place.fd(), spot.name, flags, Mode::from_raw_mode(mode & 0o777)))
    }

    fn special(&mut self, spot: &Spot<'_>, entry: &Entry, kind: FileType) -> Result<(), Reason> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let device = makedev(entry.device.0, entry.device.1);
        self.make(spot, "mknodat", || mknodat(spot.place.fd(), spot.name, kind, mode, device))?;
        metadata::finish_special(&self.process, spot.place.fd(), spot.name, entry, spot.made())?;
        self.note(spot, || Note::Node { meta: Some(meta(entry)), kind: kind.as_raw_mode(), device })
    }

    fn hard_link(&mut self, spot: &Spot<'_>, entry: &Entry) -> Result<(), Reason> {
        let target = clean(&entry.link, self.options)?;
        let missing = || Reason::LinkTarget { target: shown(&entry.link) };
        if target.is_empty() {
            return Err(missing());
        }
        let (dir, name) = dirs::split(&target);
        let target = self.target(dir, name)?.ok_or_else(missing)?;
        if target.path() != spot.path() {
            let link = || linkat(target.place.fd(), target.name, spot.place.fd(), spot.name, AtFlags::empty());
            self.make(spot, "linkat", link)?;
        }
        metadata::finish_link(&self.process, spot.place.fd(), spot.name, entry)?;
        self.note(spot, || Note::Link { meta: meta(entry), target: target.path() })
    }

    /// Puts what was done at `spot` into the list of files, where one is wanted.
    fn note(&mut self, spot: &Spot<'_>, note: impl FnOnce() -> Note) -> Result<(), Reason> {
        if self.places.has_sums() { self.places.note(&spot.path(), &note()) } else { Ok(()) }
    }

    /// The file that a hard link names, copied up from a lower layer if that is where it is.
    fn target<'n>(&mut self, dir: &[u8], name: &'n [u8]) -> Result<Option<Spot<'n>>, Reason> {
        match self.places.place(dir, false) {
            Ok(place) => {
                let spot = Spot { place, name };
                match call("fstatat", dirs::state(spot.place.fd(), name))? {
                    Some(stat) if self.is_marker(&stat) => return Ok(None),
                    Some(_) => return Ok(Some(spot)),
                    None => {}
                }
            }
            Err(Reason::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(reason) => return Err(reason),
        }
        let path = joined(dir, name);
        if self.options.whiteouts != Whiteouts::Overlay || self.places.is_hidden(&path) {
            return Ok(None);
        }
        if self.options.standalone {
            return Err(Reason::NeedsLower);
        }
        let Some(lower) = self.places.lowers.find(&path)? else { return Ok(None) };
        let spot = Spot { place: self.places.place(dir, true)?, name };
        self.copy_up(&lower, &spot)?;
        Ok(Some(spot))
    }

    /// Copies a file of a lower layer to the upper directory, as an overlay does on the first change.
    fn copy_up(&mut self, lower: &LowerFile, spot: &Spot<'_>) -> Result<(), Reason> {
        let (uid, gid) = (Some(Uid::from_raw(lower.stat.st_uid)), Some(Gid::from_raw(lower.stat.st_gid)));
        let mode = Mode::from_raw_mode(lower.stat.st_mode & 0o7777);
        let (dir, name) = (spot.place.fd(), spot.name);
        match lower.file_type() {
            FileType::RegularFile => {
                let file = self.create(spot, 0o600)?;
                let (size, crc) = copy_content(lower.open()?, &file)?;
                call("fchown", fchown(&file, uid, gid))?;
                lower.copy_xattrs(dir, name)?;
                call("fchmod", fchmod(&file, mode))?;
                call("futimens", futimens(&file, &lower.times()))?;
                return self.note(spot, || Note::File { meta: Meta::of(&lower.stat), size, crc: Some(crc) });
            }
            FileType::Symlink => call("symlinkat", symlinkat(lower.target()?, dir, name))?,
            FileType::Directory => return Err(Reason::LinkTarget { target: shown(&spot.path()) }),
            kind => call("mknodat", mknodat(dir, name, kind, mode, lower.stat.st_rdev))?,
        }
        call("fchownat", chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        metadata::set_times(dir, name, &lower.times())?;
        let (meta, kind) = (Meta::of(&lower.stat), lower.file_type());
        match kind {
            FileType::Symlink => {
                let target = lower.target()?.into();
                self.note(spot, || Note::Symlink { meta, target })
            }
            kind => {
                let device = lower.stat.st_rdev;
                self.note(spot, || Note::Node { meta: Some(meta), kind: kind.as_raw_mode(), device })
            }
        }
    }

    fn is_marker(&self, stat: &rustix::fs::Stat) -> bool {
        self.options.whiteouts == Whiteouts::Overlay && dirs::is_whiteout(stat)
    }

    /// Makes something that must not exist yet; if it does, removes what is there and tries again.
    fn make<T>(
        &mut self,
        spot: &Spot<'_>,
        name: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Reason> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(spot)?;
                call(name, make())
            }
            result => call(name, result),
        }
    }

    /// Removes what is at `spot`.
    fn clear(&mut self, spot: &Spot<'_>) -> Result<(), Reason> {
        let kind = call("fstatat", dirs::state(spot.place.fd(), spot.name))?.map(|stat| dirs::file_type(&stat));
        match kind {
            None => return Ok(()),
            Some(FileType::Directory) => {
                self.places.forget();
                remove_below(&mut self.times, &spot.path());
                if let Some(own) = &mut self.own {
                    own.remove(&spot.path());
                }
            }
            Some(FileType::Symlink) => self.places.forget(),
            Some(_) => {
                call("unlinkat", unlinkat(spot.place.fd(), spot.name, AtFlags::empty()))?;
                return self.note(spot, || Note::Gone);
            }
        }
        call("unlinkat", dirs::remove_tree(spot.place.fd(), spot.name))?;
        self.note(spot, || Note::Gone)
    }

    /// Hides `spot` of the lower layers; what this layer has there stays.
    fn whiteout(&mut self, spot: &Spot<'_>, entry: &Entry) -> Result<(), Reason> {
        match self.options.whiteouts {
            Whiteouts::Remove => self.remove_lower(spot),
            Whiteouts::Overlay => self.mark_whiteout(spot, entry),
        }
    }

    fn mark_whiteout(&mut self, spot: &Spot<'_>, entry: &Entry) -> Result<(), Reason> {
        match mknodat(spot.place.fd(), spot.name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {
                let stat = call("fstatat", dirs::state(spot.place.fd(), spot.name))?;
                match stat.map(|stat| dirs::file_type(&stat)) {
                    Some(FileType::Directory) => self.places.set_opaque(&spot.path()),
                    _ => Ok(()),
                }
            }
            result => {
                call("mknodat", result)?;
                let kind = FileType::CharacterDevice.as_raw_mode();
                self.note(spot, || Note::Node { meta: None, kind, device: 0 })?;
                if self.options.unprivileged || (entry.uid, entry.gid) == (0, 0) {
                    return Ok(());
                }
                let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
                call("fchownat", chownat(spot.place.fd(), spot.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            }
        }
    }

    fn opaque(&mut self, dir: &[u8]) -> Result<(), Reason> {
        let place = self.places.place(dir, true)?;
        match &self.own {
            None => self.places.set_opaque(&place.path),
            Some(own) => {
                let directory = call("openat2", self.places.root.directory(&place.path))?;
                call("unlinkat", own.purge(&directory, &place.path))?;
                self.places.forget();
                Ok(())
            }
        }
    }

    fn remove_lower(&mut self, spot: &Spot<'_>) -> Result<(), Reason> {
        let path = spot.path();
        self.places.forget();
        let Some(own) = self.own.as_ref().filter(|own| own.has(&path)) else {
            return call("unlinkat", dirs::remove_tree(spot.place.fd(), spot.name));
        };
        match dirs::child(spot.place.fd(), spot.name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => call("unlinkat", own.purge(&directory, &path)),
            Err(_) => Ok(()),
        }
    }
}

/// Files of so many bytes begin to go to the disk at once: it has nothing to do while a layer is unpacked, and whoever
/// syncs afterwards would wait for all of it.
const EARLY: u64 = 256 << 10;

/// The advice writes what is dirty without waiting, and drops only what is on the disk already, which nothing is yet.
fn begin_to_store(file: &OwnedFd) {
    // Where it is not heeded, nothing is lost but time.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Forgets `path` and all below it.
pub(crate) fn remove_below<V>(map: &mut BTreeMap<Box<[u8]>, V>, path: &[u8]) {
    map.remove(path);
    // `0` is the character after `/`.
    let (first, behind): (Box<[u8]>, Box<[u8]>) = ([path, b"/"].concat().into(), [path, b"0"].concat().into());
    let below: Vec<Box<[u8]>> = map.range(first..behind).map(|(path, _)| path.clone()).collect();
    for path in below {
        map.remove(&path);
    }
}

/// Gives the CRC-32 of the content where it is wanted.
fn write_content<R: BufRead>(file: &OwnedFd, reader: &mut Reader<R>, sum: bool) -> Result<Option<u32>, Reason> {
    let mut hasher = sum.then(crc32fast::Hasher::new);
    loop {
        let piece = reader.content()?;
        if piece.is_empty() {
            return Ok(hasher.map(crc32fast::Hasher::finalize));
        }
        let written = call("write", uninterrupted(|| write(file, piece)))?;
        if let Some(hasher) = &mut hasher {
            hasher.update(&piece[..written]);
        }
        reader.consume(written);
    }
}

/// Writes all of `bytes` to a file that is empty.
pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Reason> {
    while !bytes.is_empty() {
        let written = call("write", uninterrupted(|| write(file, bytes)))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn write_segment<R: BufRead>(
    file: &OwnedFd,
    mut offset: u64,
    mut length: u64,
    reader: &mut Reader<R>,
) -> Result<(), Reason> {
    while length > 0 {
        let piece = reader.content()?;
        if piece.is_empty() {
            return Err(Reason::Malformed("inconsistent sparse map"));
        }
        let end = usize::try_from(length).unwrap_or(usize::MAX).min(piece.len());
        let written = call("pwrite", uninterrupted(|| pwrite(file, &piece[..end], offset)))?;
        reader.consume(written);
        offset += written as u64;
        length -= written as u64;
    }
    Ok(())
}

/// Repeats a call that a signal interrupted.
fn uninterrupted(call: impl Fn() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Gives size and CRC-32 of what was copied.
fn copy_content(from: OwnedFd, to: &OwnedFd) -> Result<(u64, u32), Reason> {
    let failed = |source| Reason::Io { call: "copy", source };
    let mut from = std::fs::File::from(from);
    let mut to = std::fs::File::from(to.try_clone().map_err(failed)?);
    let (mut buffer, mut hasher, mut size) = (vec![0; 128 << 10], crc32fast::Hasher::new(), 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((size, hasher.finalize())),
            Ok(length) => {
                to.write_all(&buffer[..length]).map_err(failed)?;
                hasher.update(&buffer[..length]);
                size += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// What the list of files says of an entry.
fn meta(entry: &Entry) -> Meta {
    Meta { mode: entry.mode & 0o7777, uid: entry.uid, gid: entry.gid, mtime: metadata::mtime(entry).0 }
}

/// Refuses an entry that would exceed a sum.
pub(super) fn within(sum: u64, more: u64, max: u64, limit: Limit) -> Result<u64, Reason> {
    match sum.checked_add(more) {
        Some(sum) if sum <= max => Ok(sum),
        _ => Err(Reason::Limit { limit, max }),
    }
}
