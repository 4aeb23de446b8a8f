//! Where checkpoints are written. Each such directory is known below the daemon's root until it is done with, so that what
//! a killed daemon leaves in it goes at the next start.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::creations::new_id;
use crate::pods::{CONTAINERS, LIST, POD};
use crate::{Cri, Error, Result};

/// The directory of directories: of archives' parts as they are, of pods' checkpoints links to where callers have them.
fn known(root: &Path) -> PathBuf {
    root.join("checkpoints")
}

/// A new name in it, durable before anything is written.
fn enter(root: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf> {
    let (all, id) = (known(root), new_id()?);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&all).and_then(|()| {
        make(&all.join(&id))?;
        fs::File::open(&all)?.sync_all()
    });
    made.map_err(Error::io("enter a checkpoint into", &all)).map(|()| all.join(id))
}

/// The parts of an archive, in a directory that goes when it is dropped.
pub(crate) struct Parts(PathBuf);

impl Parts {
    pub(crate) fn new(root: &Path) -> Result<Parts> {
        enter(root, |path| fs::DirBuilder::new().mode(0o700).create(path)).map(Parts)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "parts of a checkpoint stay");
        }
    }
}

/// The caller's directory for a pod's checkpoint: empty again when this is dropped, unless it was finished.
pub(crate) struct Output {
    path: PathBuf,
    /// A link to it, which says that it is not finished.
    mark: PathBuf,
    finished: bool,
}

impl Output {
    /// # Errors
    /// [`Error::Invalid`] for what is no empty directory.
    pub(crate) fn of(root: &Path, path: &str) -> Result<Output> {
        let bad = |reason: &str| Err(Error::invalid("output_path", format!("{path:?} {reason}")));
        if !path.starts_with('/') || path.contains('\0') {
            return bad("is not an absolute path");
        }
        let there = fs::symlink_metadata(path);
        if !there.is_ok_and(|there| there.is_dir()) {
            return bad("is not a directory that is there");
        }
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return bad("is not empty"),
            Err(error) => return bad(&format!("cannot be read: {error}")),
        }
        let mark = enter(root, |mark| symlink(path, mark))?;
        Ok(Output { path: path.into(), mark, finished: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All that was written stays, and is on the disk.
    pub(crate) fn finish(mut self) -> Result<()> {
        sync(&self.path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            empty(&self.path);
        }
        if let Err(error) = fs::remove_file(&self.mark) {
            tracing::warn!(path = %self.mark.display(), %error, "the mark of a checkpoint stays");
        }
    }
}

/// Takes out of a caller's directory what checkpoints write there, and nothing else.
fn empty(path: &Path) {
    let gone =
        |result: io::Result<()>| result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
    // The list first: without it there is no checkpoint.
    let files = [LIST, POD].map(|name| gone(fs::remove_file(path.join(name))));
    let parts = gone(fs::remove_dir_all(path.join(CONTAINERS)));
    for error in files.into_iter().chain([parts]).filter_map(io::Result::err) {
        tracing::warn!(path = %path.display(), %error, "parts of a checkpoint that failed stay");
    }
}

/// Writes a directory and all below it to the disk.
fn sync(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let path = entry.map_err(Error::io("read", directory))?.path();
        let kind = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?.file_type();
        if kind.is_dir() {
            sync(&path)?;
        } else if kind.is_file() {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
        }
    }
    fs::File::open(directory).and_then(|file| file.sync_all()).map_err(Error::io("sync", directory))
}

/// Takes back what was not finished.
fn clear(root: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(known(root)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        match fs::read_link(&path) {
            Ok(output) => {
                tracing::warn!(path = %output.display(), "a checkpoint that was not finished is removed");
                empty(&output);
                fs::remove_file(&path)?;
            }
            Err(_) => fs::remove_dir_all(&path)?,
        }
    }
    Ok(())
}

impl Cri {
    /// After a start: takes back checkpoints that were being written when the daemon ended.
    pub(crate) async fn clear_checkpoints(&self) {
        let root = self.root.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || clear(&root)).await {
            tracing::warn!(%error, "what is left of checkpoints stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    /// A root, and an empty directory.
    fn directories() -> (tempfile::TempDir, tempfile::TempDir) {
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
    }

    fn output(root: &Path, path: &Path) -> Result<Output> {
        Output::of(root, &path.to_string_lossy())
    }

    fn write_some(into: &Path) {
        fs::create_dir_all(into.join(CONTAINERS).join("3")).unwrap();
        fs::write(into.join(CONTAINERS).join("3").join("x"), b"x").unwrap();
        fs::write(into.join(POD), b"").unwrap();
        fs::write(into.join(LIST), b"{}").unwrap();
    }

    #[test]
    fn a_checkpoint_goes_into_an_empty_directory_which_is_empty_again_when_it_failed() {
        let (root, dir) = directories();
        let refused = |path: &Path| matches!(output(root.path(), path), Err(Error::Invalid { field, .. }) if field == "output_path");
        let failing = output(root.path(), dir.path()).unwrap();
        write_some(dir.path());
        assert!(refused(dir.path()), "it is not empty");
        drop(failing);
        assert_eq!((count(dir.path()), count(&known(root.path()))), (0, 0));
        let good = output(root.path(), dir.path()).unwrap();
        write_some(dir.path());
        good.finish().unwrap();
        assert_eq!((count(dir.path()), count(&known(root.path()))), (3, 0));
        for bad in [Path::new("relative"), Path::new(""), &dir.path().join("none"), &dir.path().join(POD)] {
            assert!(refused(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_a_killed_daemon_left_goes_at_the_next_start_and_nothing_of_others() {
        let (root, dir) = directories();
        clear(root.path()).unwrap();
        let parts = Parts::new(root.path()).unwrap();
        fs::write(parts.path().join("x"), b"x").unwrap();
        let cut = output(root.path(), dir.path()).unwrap();
        write_some(dir.path());
        fs::write(dir.path().join("another's"), b"x").unwrap();
        // Neither gets to clear up.
        std::mem::forget((parts, cut));
        clear(root.path()).unwrap();
        assert_eq!(count(&known(root.path())), 0);
        assert_eq!(count(dir.path()), 1);
        assert!(dir.path().join("another's").exists());
    }
}
