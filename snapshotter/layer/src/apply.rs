//! Applying a layer: a tar stream becomes files below a directory.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

mod error;
mod extract;
mod fill;
mod lower;
mod metadata;
mod own;
mod path;
mod places;

pub(crate) use extract::remove_below;
use extract::{Extractor, within};
use fill::Filling;

use crate::Helpers;
use crate::archive::{Entry, Reader};
use crate::confine::{Reach, confine};
use crate::dirs::Root;

pub use error::{ApplyError, Limit, Reason};
pub(crate) use error::{Fault, call, shown};
pub(crate) use lower::{Lowers, all_xattrs_at, is_opaque, xattrs_at};
pub(crate) use metadata::{Process, admit_xattrs, mtime, through_descriptor};
pub(crate) use path::{Wish, clean, components, wish};

/// How the removals in a layer (`.wh.NAME` and `.wh..wh..opq`) are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Whiteouts {
    /// The root holds the lower layers' files: remove them. Files of the same layer survive, in whatever order they
    /// and the marker come.
    #[default]
    Remove,
    /// The root is the `upperdir` of an overlay: leave character devices 0:0 and `trusted.overlay.opaque=y` (Linux,
    /// Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
    Overlay,
}

/// What a layer may ask for before it is refused. All sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sum of the sizes of all files, holes included.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
    /// Uncompressed bytes for each compressed byte; looked at only after the first 256 MiB. ([`unpack`](crate::unpack))
    pub ratio: u64,
    /// Length of a path.
    pub path: usize,
    /// Number of components of a path.
    pub depth: usize,
    /// Size of the extended header of one entry: PAX records, GNU long names, sparse maps.
    pub extended_header: usize,
    /// Size of one extended attribute.
    pub xattr: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 1 << 40,
            entries: 16 << 20,
            ratio: 1000,
            path: 4095,
            depth: 1024,
            extended_header: 1 << 20,
            xattr: 64 << 10,
        }
    }
}

/// Watches and stops an [`apply`] or [`unpack`](crate::unpack) from another thread.
#[derive(Debug, Default)]
pub struct Control {
    bytes: AtomicU64,
    entries: AtomicU64,
    cancelled: AtomicBool,
}

impl Control {
    /// Bytes of tar read until now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Entries applied until now.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Notes how many bytes of tar were read or written.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Notes how many entries were read or written.
    pub(crate) fn set_entries(&self, entries: u64) {
        self.entries.store(entries, Ordering::Relaxed);
    }

    /// Asks the work to stop; it then ends with [`Reason::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`Control::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// How to apply a layer.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What removals become.
    pub whiteouts: Whiteouts,
    /// With [`Whiteouts::Overlay`]: the lower directories, topmost first. Directories that the layer uses without
    /// naming them take their owner, mode and attributes from there, and targets of hard links are copied up from there.
    pub parents: Vec<PathBuf>,
    /// With [`Whiteouts::Overlay`]: the lower directories are not there yet. What cannot be done without them ends in
    /// [`Reason::NeedsLower`]; [`unpack`](crate::unpack) only lists directories that are to be [`dress`]ed.
    pub standalone: bool,
    /// Refuse entries whose name starts with `/`. Otherwise they count from the root, as containerd has it.
    pub refuse_absolute: bool,
    /// Leave all files to the calling user, and skip device nodes, for a process without the rights to do otherwise.
    pub unprivileged: bool,
    /// Who inflates a gzip layer beside the thread that reads it.
    pub helpers: Helpers,
    /// Where to write a list of what was unpacked, for [`check`](crate::check); none: nowhere.
    pub sums: Option<PathBuf>,
    /// When to refuse.
    pub limits: Limits,
    /// Progress and cancellation.
    pub control: Arc<Control>,
}

/// What was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Sum of the sizes of all files, as containerd counts them: holes included, links not.
    pub bytes: u64,
    /// Number of entries, whiteouts included.
    pub entries: u64,
    /// Bytes of tar that were read, padding and what follows the end marker included.
    pub tar_bytes: u64,
}

/// Applies the uncompressed `tar` to the directory `root`, which must exist. The stream is read to its end, also behind
/// the archive's end marker, so that a digest computed on the way is that of the whole.
///
/// The root's own entry (`./`) is ignored. On error the directory is left as it is at that moment: the caller
/// throws it away. Nothing is synced to the disk.
pub fn apply<R: Read>(tar: R, root: &Path, options: &Options) -> Result<Applied, ApplyError> {
    let process = Process::current(options.unprivileged);
    let (applied, undescribed) = apply_buffered(BufReader::with_capacity(256 << 10, tar), root, options, process)?;
    match undescribed.first() {
        Some(path) => Err(ApplyError::at(path.as_os_str().as_bytes(), Reason::NeedsLower)),
        None => Ok(applied),
    }
}

/// Gives the `directories` below the overlay's upper directory `root`, which a layer uses without describing them
/// ([`Unpacked::undescribed`](crate::Unpacked::undescribed)), owner, mode and attributes of the topmost directory that
/// `parents`, the lower directories, have there. Confined as [`unpack`](crate::unpack) is.
///
/// # Errors
/// When a directory is not there, or not to be changed.
pub fn dress(root: &Path, directories: &[PathBuf], parents: &[PathBuf]) -> Result<(), ApplyError> {
    let dress = || {
        confine(Reach { root: Some(root), read: parents, file: None });
        let open = |source| ApplyError::at(b"", Reason::Io { call: "open", source });
        let (root, lowers) = (Root::open(root).map_err(open)?, Lowers::open(parents).map_err(open)?);
        directories.iter().try_for_each(|directory| {
            let path = directory.as_os_str().as_bytes();
            let dressed = call("openat2", root.directory(path)).and_then(|directory| lowers.dress(&directory, path));
            dressed.map_err(|reason| ApplyError::at(path, reason))
        })
    };
    let panicked = |_| Err(ApplyError::at(b"", Reason::Read(std::io::Error::other("a thread panicked"))));
    thread::scope(|scope| scope.spawn(dress).join()).unwrap_or_else(panicked)
}

/// [`apply`] for a stream that has a buffer of its own. Gives the directories, too, that should be like those of the
/// layers below ([`Options::standalone`]), those above first.
pub(crate) fn apply_buffered<R: BufRead>(
    tar: R,
    root: &Path,
    options: &Options,
    process: Process,
) -> Result<(Applied, Vec<PathBuf>), ApplyError> {
    let outside = |reason| ApplyError::at(b"", reason);
    let mut reader = Reader::new(tar, options.limits.extended_header, Arc::clone(&options.control));
    let (mut applied, undescribed) = thread::scope(|scope| {
        let filling = Filling::start(scope, process);
        let mut extractor = Extractor::new(root, options, process, filling).map_err(outside)?;
        let applied = applying(&mut reader, options, |entry, reader| extractor.entry(entry, reader))?;
        extractor.finish().map_err(|fault| fault.during(b"")).map(|undescribed| (applied, undescribed))
    })?;
    reader.drain().map_err(outside)?;
    applied.tar_bytes = reader.position();
    Ok((applied, undescribed))
}

/// Hands one entry after another, within the limits, to `take`, which reads its content.
pub(crate) fn applying<R: BufRead, E: Into<Fault>>(
    reader: &mut Reader<R>,
    options: &Options,
    mut take: impl FnMut(Entry, &mut Reader<R>) -> Result<(), E>,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    let mut before: Vec<u8> = Vec::new();
    while let Some(entry) = reader.next().map_err(|reason| ApplyError::after(&before, reason))? {
        before.clone_from(&entry.path);
        count(&mut applied, &entry, options).map_err(|reason| ApplyError::at(&before, reason))?;
        take(entry, reader).map_err(|fault| fault.into().during(&before))?;
        options.control.set_entries(applied.entries);
    }
    Ok(applied)
}

fn count(applied: &mut Applied, entry: &Entry, options: &Options) -> Result<(), Reason> {
    applied.entries = within(applied.entries, 1, options.limits.entries, Limit::Entries)?;
    applied.bytes = within(applied.bytes, entry.size, options.limits.bytes, Limit::Bytes)?;
    Ok(())
}
