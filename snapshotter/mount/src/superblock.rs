//! A new superblock as a detached mount: `fsopen`, `fsconfig`, `fsmount`, and `mount(2)` where a kernel has not these.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Step, c_str};
use crate::options::Options;
use crate::sys;

/// The kernel's limit for a value of `fsconfig(2)`, without the NUL.
pub(crate) const MAX_VALUE: usize = 255;

/// A configuration under way; failures carry what the kernel logged.
pub(crate) struct Context {
    fs: OwnedFd,
}

impl Context {
    /// Starts one for file system type `kind`, with the generic options set.
    pub(crate) fn open(kind: &str, source: &str, options: &Options) -> Result<Context, Error> {
        let fs = sys::fsopen(&c_str(kind)?).map_err(|error| Error::call(Step::Open, error))?;
        let context = Context { fs };
        if !source.is_empty() {
            context.string("source", source)?;
        }
        if options.read_only() {
            context.flag("ro")?;
        }
        options.superblock.iter().try_for_each(|flag| context.flag(flag))?;
        Ok(context)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<(), Error> {
        let key = c_str(key)?;
        sys::fsconfig_flag(self.fs.as_fd(), &key).map_err(|error| self.failed(Step::Configure, error))
    }

    pub(crate) fn string(&self, key: &str, value: &str) -> Result<(), Error> {
        let (key, value) = (c_str(key)?, c_str(value)?);
        sys::fsconfig_string(self.fs.as_fd(), &key, &value).map_err(|error| self.failed(Step::Configure, error))
    }

    pub(crate) fn fd(&self, key: &str, value: BorrowedFd<'_>) -> Result<(), Error> {
        let key = c_str(key)?;
        sys::fsconfig_fd(self.fs.as_fd(), &key, value).map_err(|error| self.failed(Step::Configure, error))
    }

    /// One option of the file system's own.
    pub(crate) fn data(&self, key: &str, value: Option<&str>) -> Result<(), Error> {
        match value {
            Some(value) => self.string(key, value),
            None => self.flag(key),
        }
    }

    /// Makes the superblock and mounts it, detached.
    pub(crate) fn mount(self, options: &Options) -> Result<OwnedFd, Error> {
        sys::fsconfig_create(self.fs.as_fd()).map_err(|error| self.failed(Step::Create, error))?;
        sys::fsmount(self.fs.as_fd(), options.attributes.set).map_err(|error| self.failed(Step::Mount, error))
    }

    /// Changes the superblock that was picked.
    pub(crate) fn reconfigure(path: BorrowedFd<'_>, options: &Options) -> Result<(), Error> {
        let fs = sys::fspick(path.as_raw_fd(), c"").map_err(|error| Error::call(Step::Open, error))?;
        let context = Context { fs };
        context.flag(if options.read_only() { "ro" } else { "rw" })?;
        options.superblock.iter().try_for_each(|flag| context.flag(flag))?;
        options.data.iter().try_for_each(|(key, value)| context.data(key, value.as_deref()))?;
        sys::fsconfig_reconfigure(context.fs.as_fd()).map_err(|error| context.failed(Step::Create, error))
    }

    fn failed(&self, step: Step, error: io::Error) -> Error {
        Error::call(step, error).with_log(self.log())
    }

    /// The messages so far, each without its `e `, `w ` or `i ` prefix.
    fn log(&self) -> String {
        let mut messages: Vec<String> = Vec::new();
        let mut buffer = [0u8; 512];
        while messages.len() < 16 {
            match sys::read_log(self.fs.as_fd(), &mut buffer) {
                Ok(length @ 1..) => messages.push(message(&buffer[..length])),
                _ => break,
            }
        }
        messages.join("; ")
    }
}

fn message(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    text.get(2..).filter(|_| text.as_bytes().get(1) == Some(&b' ')).unwrap_or(text).to_owned()
}

/// A new superblock of any type but overlay.
pub(crate) fn mount(kind: &str, source: &str, options: &Options) -> Result<OwnedFd, Error> {
    let long = |value: &String| value.len() > MAX_VALUE;
    if source.len() > MAX_VALUE || options.data.iter().any(|(_, value)| value.as_ref().is_some_and(long)) {
        return legacy(kind, source, options, None, Vec::new());
    }
    let context = Context::open(kind, source, options)?;
    options.data.iter().try_for_each(|(key, value)| context.data(key, value.as_deref()))?;
    context.mount(options)
}

/// A detached mount that stands for a directory in a namespace that nobody else sees.
#[derive(Debug)]
pub(crate) struct Cover {
    pub(crate) tree: OwnedFd,
    pub(crate) directory: CString,
}

impl Cover {
    fn put(&self) -> io::Result<()> {
        sys::move_mount(self.tree.as_raw_fd(), c"", sys::CWD, &self.directory, sys::MOVE_MOUNT_F_EMPTY_PATH)
    }
}

/// The same through `mount(2)`, whose options are one string of up to a page: in a thread with a mount namespace of its
/// own, from which the mount is taken out detached. With `directory` the options' relative paths are below it; `covers`
/// are there while it is mounted.
pub(crate) fn legacy(
    kind: &str,
    source: &str,
    options: &Options,
    directory: Option<&str>,
    covers: Vec<Cover>,
) -> Result<OwnedFd, Error> {
    let (kind, source, data) = (c_str(kind)?, c_str(source)?, c_str(&data_string(options))?);
    let directory = c_str(directory.unwrap_or("/"))?;
    let flags = legacy_flags(options);
    let work = move || -> io::Result<OwnedFd> {
        sys::unshare_mounts()?;
        covers.iter().try_for_each(Cover::put)?;
        legacy_mount(&source, &directory, &kind, flags, &data)
    };
    let thread = std::thread::Builder::new().name("mount".into()).spawn(work);
    let result = thread
        .and_then(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked"))));
    result.map_err(|error| Error::call(Step::Legacy, error))
}

fn legacy_mount(
    source: &CString,
    directory: &CString,
    kind: &CString,
    flags: u64,
    data: &CString,
) -> io::Result<OwnedFd> {
    nix::unistd::chdir(directory.as_c_str())?;
    // Nobody else sees this namespace, so any directory will do to mount on.
    sys::mount(source, directory, kind, flags, data)?;
    sys::open_tree(sys::CWD, directory, sys::OPEN_TREE_CLONE)
}

fn data_string(options: &Options) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,");
    let words = options.data.iter().map(|(key, value)| match value {
        // lowerdir has escapes of its own already.
        Some(value) if key == "lowerdir" => format!("{key}={}", value.replace(',', "\\,")),
        Some(value) => format!("{key}={}", escape(value)),
        None => key.clone(),
    });
    words.collect::<Vec<_>>().join(",")
}

fn legacy_flags(options: &Options) -> u64 {
    let attributes = [
        (sys::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (sys::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (sys::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (sys::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
        (sys::MOUNT_ATTR_STRICTATIME, libc::MS_STRICTATIME),
        (sys::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
    ];
    let superblock = [("sync", libc::MS_SYNCHRONOUS), ("dirsync", libc::MS_DIRSYNC), ("lazytime", libc::MS_LAZYTIME)];
    let set = attributes.iter().filter(|(bit, _)| options.attributes.set & bit != 0).map(|(_, flag)| flag);
    let named = superblock.iter().filter(|(name, _)| options.superblock.contains(name)).map(|(_, flag)| flag);
    let read_only = if options.read_only() { libc::MS_RDONLY } else { 0 };
    set.chain(named).fold(read_only, |flags, flag| flags | flag)
}
