//! A container's log file: appended to, opened anew on request, and never waited for. What cannot be written is dropped
//! by whole records, and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, log};

/// A log.
#[derive(Debug)]
pub struct LogFile {
    /// None keeps nothing.
    path: Option<PathBuf>,
    file: Option<File>,
    dropped: u64,
    failing: bool,
    watching: bool,
}

impl LogFile {
    /// Opens the file at `path`, made if missing.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(path: Option<PathBuf>) -> Result<LogFile, Error> {
        let file = path.as_deref().map(append_to).transpose()?;
        Ok(LogFile { path, file, dropped: 0, failing: false, watching: false })
    }

    /// Looks before each write whether the file was renamed, for a log that nobody can ask to be opened anew.
    pub fn watching(mut self) -> LogFile {
        self.watching = true;
        self
    }

    /// Records that could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Opens the file of that name anew. The old one is kept where that fails.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn reopen(&mut self) -> Result<(), Error> {
        if let Some(path) = &self.path {
            self.file = Some(append_to(path)?);
        }
        Ok(())
    }

    /// Appends whole records.
    pub fn append(&mut self, records: &[u8]) {
        if self.watching && self.was_renamed() {
            // The next write tries again.
            let _ = self.reopen();
        }
        let Some(file) = &mut self.file else { return };
        match append(file, records) {
            Ok(()) => self.failing = false,
            Err((lost, error)) => {
                self.dropped += lost;
                if !std::mem::replace(&mut self.failing, true) {
                    log::warning("a container's log cannot be written: lines are dropped", &error);
                }
            }
        }
    }

    fn was_renamed(&self) -> bool {
        let (Some(path), Some(file)) = (&self.path, &self.file) else { return false };
        let Ok(ours) = file.metadata() else { return false };
        std::fs::metadata(path).map_or(true, |theirs| (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()))
    }
}

fn append_to(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|error| Error::file("open log", path, error))
}

/// Gives the number of records that are not in the file, which ends with a whole one.
fn append(file: &mut File, records: &[u8]) -> Result<(), (u64, io::Error)> {
    let mut written = 0;
    while written < records.len() {
        match file.write(&records[written..]) {
            Ok(count) if count > 0 => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => {
                let whole = records[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                take_back(file, written - whole);
                let lost = records[whole..].iter().filter(|&&byte| byte == b'\n').count();
                let error = other.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                return Err((lost as u64, error));
            }
        }
    }
    Ok(())
}

/// Takes a torn record's beginning away again.
fn take_back(file: &File, count: usize) {
    if count == 0 {
        return;
    }
    let length = file.metadata().map(|metadata| metadata.len().saturating_sub(count as u64));
    if let Err(error) = length.and_then(|length| file.set_len(length)) {
        log::warning("a torn line stays in a container's log", &error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rename_records_go_to_the_old_file_until_it_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = LogFile::open(Some(path.clone())).unwrap();
        log.append(b"one\n");
        std::fs::rename(&path, &old).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(std::fs::read(&old).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn a_watching_log_follows_a_rename_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(Some(path.clone())).unwrap().watching();
        log.append(b"one\n");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.append(b"two\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
    }

    #[test]
    fn a_device_without_space_costs_records_and_nothing_else() {
        let mut log = LogFile::open(Some("/dev/full".into())).unwrap();
        log.append(b"one\ntwo\n");
        log.append(b"three\n");
        assert_eq!(log.dropped(), 3);
    }
}
