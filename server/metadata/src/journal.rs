//! What was committed since the last export, appended to a file after each commit.
//!
//! The database is what makes a write durable; the journal is not synced. Together with the export it tells when the database has
//! silently lost its tail, which it does when a page of it is damaged, and gives the lost changes back.
//!
//! A file `journal-COMMIT` begins with that commit. Frames are those of the export, with a byte of what happened before the value; the frame of the
//! commit counter ends a commit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::committer::COMMIT;
use crate::db::number;
use crate::export::{Frame, frame, write_frame};
use crate::keys::{Key, Kind};
use crate::memory::Changes;

const REMOVED: u8 = 0;
const WRITTEN: u8 = 1;

/// The journal that is written. A failure costs the copy, never the write: it is reported and a new file begun.
pub(crate) struct Journal {
    directory: PathBuf,
    current: Option<File>,
    /// First commits of the files that are there.
    starts: Vec<u64>,
}

impl Journal {
    /// Goes on beside the files that are there.
    pub(crate) fn new(directory: &Path) -> Journal {
        Journal { directory: directory.to_owned(), current: None, starts: starts(directory) }
    }

    /// Appends one commit, and says whether that succeeded. What an export of the commit `exported` holds, is dropped.
    pub(crate) fn append(&mut self, commit: u64, changes: &Changes, exported: u64) -> bool {
        if self.starts.last().is_some_and(|start| exported >= *start) {
            self.current = None;
        }
        let result = self.try_append(commit, changes);
        if let Err(error) = &result {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot write the journal of the metadata store");
            self.current = None;
        }
        while let [first, second, ..] = self.starts[..]
            && second <= exported + 1
        {
            let _ = fs::remove_file(path(&self.directory, first));
            self.starts.remove(0);
        }
        result.is_ok()
    }

    fn try_append(&mut self, commit: u64, changes: &Changes) -> std::io::Result<()> {
        let file = match &mut self.current {
            Some(file) => file,
            None => {
                let file = File::create(path(&self.directory, commit))?;
                self.starts.retain(|start| *start != commit);
                self.starts.push(commit);
                self.current.insert(file)
            }
        };
        let counter = Key::new(Kind::Meta, "", COMMIT);
        let mut bytes = Vec::new();
        let others = changes.iter().filter(|(key, _)| **key != counter);
        for (key, value) in others.chain(changes.get_key_value(&counter)) {
            let value = match value {
                Some(value) => [&[WRITTEN], &value[..]].concat(),
                None => vec![REMOVED],
            };
            write_frame(&mut bytes, &key.encode(), &value)?;
        }
        file.write_all(&bytes)
    }
}

fn path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("journal-{start:020}"))
}

fn starts(directory: &Path) -> Vec<u64> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut starts: Vec<u64> = names.filter_map(|name| name.to_str()?.strip_prefix("journal-")?.parse().ok()).collect();
    starts.sort_unstable();
    starts
}

/// Drops all files, after an export that holds everything.
pub(crate) fn clear(directory: &Path) {
    for start in starts(directory) {
        let _ = fs::remove_file(path(directory, start));
    }
}

/// The commits behind `after`, by number. Commits that were not written to their end are left out.
pub(crate) fn read(directory: &Path, after: u64) -> BTreeMap<u64, Changes> {
    let mut commits = BTreeMap::new();
    for start in starts(directory) {
        let bytes = fs::read(path(directory, start)).unwrap_or_default();
        parse(&bytes, after, &mut commits);
    }
    commits
}

fn parse(mut rest: &[u8], after: u64, commits: &mut BTreeMap<u64, Changes>) {
    let mut changes = Changes::new();
    while let Ok((Frame::Record(key, value), behind)) = frame(rest) {
        rest = behind;
        let value = match value.split_first() {
            Some((&WRITTEN, value)) => Some(value.into()),
            _ => None,
        };
        let ends = key.kind == Kind::Meta && *key.name == *COMMIT;
        let commit = value.as_deref().map_or(0, number);
        changes.insert(key, value);
        if ends && commit > after {
            commits.insert(commit, std::mem::take(&mut changes));
        } else if ends {
            changes.clear();
        }
    }
}
