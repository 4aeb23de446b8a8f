//! Changes become entries.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, SeekFrom, Stat, fstat, major, minor, readlinkat, seek};
use rustix::io::{Errno, pread};

use super::changes::{Change, Changes, What};
use super::{DiffError, DiffOptions, Times, Written, shown};
use crate::apply::{through_descriptor, xattrs_at};
use crate::archive::{Header, Writer};
use crate::dirs::{self, Root};

/// Writes `changes` of the tree `upper` as a layer.
pub(super) fn layer<W: Write>(
    upper: &Path,
    changes: Changes,
    out: W,
    options: &DiffOptions,
) -> Result<Written, DiffError> {
    let failed = |source| DiffError::Io { path: upper.to_owned(), call: "open", source };
    let root = Root::open(upper).map_err(failed)?;
    let mut layer = Layer {
        root,
        out: Writer::new(BufWriter::with_capacity(PIECE, out)),
        options,
        open: None,
        piece: vec![0; PIECE],
        entries: 0,
    };
    let changes = changes.complete();
    for (change, written) in &changes {
        if *written {
            let source = change.link.map(|index| &*changes[index].0.path);
            layer.entry(change, source)?;
        }
    }
    let tar_bytes = layer.out.finish().map_err(DiffError::Write)?;
    Ok(Written { entries: layer.entries, tar_bytes })
}

/// How much is read and written at once.
const PIECE: usize = 256 << 10;

struct Layer<'a, W: Write> {
    root: Root,
    out: Writer<BufWriter<W>>,
    options: &'a DiffOptions,
    /// The directory last used: most entries follow one in the same.
    open: Option<(Box<[u8]>, OwnedFd)>,
    piece: Vec<u8>,
    entries: u64,
}

impl<W: Write> Layer<'_, W> {
    fn entry(&mut self, change: &Change, source: Option<&[u8]>) -> Result<(), DiffError> {
        if self.options.control.is_cancelled() {
            return Err(DiffError::Cancelled);
        }
        let path = change.entry_path();
        match &change.what {
            What::Present(stat) => self.file(change, &path, stat, source)?,
            // containerd gives whiteouts no mode and no time.
            _ => self.header(&Header { flag: b'0', path: &path, ..Header::default() })?,
        }
        self.entries += 1;
        self.options.control.set_entries(self.entries);
        self.options.control.set_bytes(self.out.written());
        Ok(())
    }

    fn header(&mut self, header: &Header<'_>) -> Result<(), DiffError> {
        self.out.header(header).map_err(DiffError::Write)
    }

    fn file(&mut self, change: &Change, path: &[u8], stat: &Stat, source: Option<&[u8]>) -> Result<(), DiffError> {
        let (dir, name) = dirs::split(&change.path);
        let dir = self.directory(dir)?;
        let xattrs = xattrs_at(&through_descriptor(&dir, name));
        let mut xattrs = xattrs.map_err(|error| DiffError::io(&change.path, "getxattr", error))?;
        xattrs.retain(|(name, _)| !HOST.contains(&name.as_slice()));
        let header = Header { path, xattrs: &xattrs, ..self.described(stat) };
        match (source, dirs::file_type(stat)) {
            (Some(link), _) => self.header(&Header { flag: b'1', link, ..header })?,
            (None, FileType::RegularFile) => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.header(&Header { size, ..header })?;
                self.content(&dir, name, &change.path, size)?;
            }
            (None, FileType::Symlink) => {
                let target = readlinkat(&dir, name, Vec::new());
                let target = target.map_err(|error| DiffError::io(&change.path, "readlinkat", error))?;
                self.header(&Header { link: target.as_bytes(), ..header })?;
            }
            _ => self.header(&header)?,
        }
        self.open = Some((dirs::split(&change.path).0.into(), dir));
        Ok(())
    }

    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd, DiffError> {
        match self.open.take() {
            Some((open, dir)) if *open == *path => Ok(dir),
            _ => self.root.handle(path).map_err(|error| DiffError::io(path, "openat2", error)),
        }
    }

    /// Type, owner, mode, time and device of `stat`.
    fn described(&self, stat: &Stat) -> Header<'static> {
        let kind = dirs::file_type(stat);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Header {
            flag: flag(kind),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self.mtime(stat),
            device: if is_device { (major(stat.st_rdev), minor(stat.st_rdev)) } else { (0, 0) },
            ..Header::default()
        }
    }

    fn mtime(&self, stat: &Stat) -> (i64, u32) {
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        let mtime = self.options.newest.map_or(mtime, |newest| mtime.min(since_epoch(newest)));
        match self.options.times {
            Times::Seconds => (mtime.0, 0),
            Times::Nanoseconds => mtime,
        }
    }

    /// Writes `size` bytes of the regular file `name`, without reading its holes.
    fn content(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], size: u64) -> Result<(), DiffError> {
        if size == 0 {
            return Ok(());
        }
        let failed = |call| move |error: Errno| DiffError::io(path, call, error);
        let file = dirs::child(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed("open"))?;
        let stat = fstat(&file).map_err(failed("fstat"))?;
        if dirs::file_type(&stat) != FileType::RegularFile {
            return Err(DiffError::Changed { path: shown(path) });
        }
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let mut offset = 0;
        while offset < size {
            let (data, hole) = if sparse { extent(&file, offset, size).map_err(failed("lseek"))? } else { (0, size) };
            self.zeros(data.saturating_sub(offset))?;
            offset = offset.max(data);
            offset = self.copy(&file, path, offset, hole)?;
        }
        Ok(())
    }

    fn zeros(&mut self, mut length: u64) -> Result<(), DiffError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while length > 0 {
            let piece = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.out.content(&ZEROS[..piece]).map_err(DiffError::Write)?;
            length -= piece as u64;
        }
        Ok(())
    }

    fn copy(&mut self, file: &OwnedFd, path: &[u8], mut offset: u64, end: u64) -> Result<u64, DiffError> {
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(self.piece.len());
            let read = pread(file, &mut self.piece[..length], offset);
            let read = read.map_err(|error| DiffError::io(path, "pread", error))?;
            if read == 0 {
                return Err(DiffError::Changed { path: shown(path) });
            }
            self.out.content(&self.piece[..read]).map_err(DiffError::Write)?;
            offset += read as u64;
            if self.options.control.is_cancelled() {
                return Err(DiffError::Cancelled);
            }
        }
        Ok(offset)
    }
}

/// Attributes that belong to the host, not to the image.
const HOST: [&[u8]; 4] = [b"security.selinux", b"security.ima", b"security.evm", b"security.apparmor"];

/// Where the next data at or behind `offset` starts and ends, at most `size`.
fn extent(file: &OwnedFd, offset: u64, size: u64) -> Result<(u64, u64), Errno> {
    let data = match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        Err(error) => return Err(error),
    };
    Ok((data, seek(file, SeekFrom::Hole(data))?.min(size)))
}

fn since_epoch(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn flag(kind: FileType) -> u8 {
    match kind {
        FileType::Symlink => b'2',
        FileType::CharacterDevice => b'3',
        FileType::BlockDevice => b'4',
        FileType::Directory => b'5',
        FileType::Fifo => b'6',
        _ => b'0',
    }
}
