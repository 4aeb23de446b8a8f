//! Opening the store, whatever state it is in.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use crate::Error;
use crate::db::Config;
use crate::edges::seconds;
use crate::export::{self, Export};
use crate::keys::Key;
use crate::memory::{Changes, Memory};
use crate::store::{Contents, Store};

/// A store that is not open and read by then is taken for damaged: damage can make the engine run in circles.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found at opening. All is well where [`Report::is_clean`] says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records that are there.
    pub records: usize,
    /// Why the store, or a part of it, could not be used. Changes since the last export may be lost then.
    pub damage: Vec<String>,
    /// Records that were taken from the last export, by name; they may be older than what was acknowledged.
    pub restored: Vec<String>,
    /// Records that are lost, by name.
    pub lost: Vec<String>,
    /// Where the damaged files are kept for a closer look.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// Whether nothing was damaged.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.restored.is_empty() && self.lost.is_empty()
    }
}

/// Opens the store and fills `memory`.
pub(crate) fn open(config: &Config, memory: &Memory) -> Result<(Store, Report), Error> {
    let directory = &config.directory;
    fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
    let lock = lock(directory)?;
    let export = export::read(directory);
    let mut report = Report::default();
    let (mut store, records) = match read(config) {
        Ok((store, contents)) if is_whole(&contents, &export) => mend(store, contents, export, &mut report),
        Ok((store, contents)) => {
            drop(store);
            rebuild(config, contents, export, &mut report)?
        }
        Err(reason) => {
            let contents = Contents { stopped: Some(reason), ..Contents::default() };
            rebuild(config, contents, export, &mut report)?
        }
    };
    store.hold(lock);
    report.records = records.len();
    memory.publish(records);
    Ok((store, report))
}

/// The lock file of the store, locked.
fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: directory.to_owned() }),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
    }
}

fn files(config: &Config) -> PathBuf {
    config.directory.join("sled")
}

/// Opens and reads the store on a thread that can be left behind.
fn read(config: &Config) -> Result<(Store, Contents), String> {
    let (sender, receiver) = mpsc::channel();
    let (files, cache) = (files(config), config.cache);
    let run = move || {
        let opened = Store::open(&files, cache).map(|store| {
            let contents = store.contents();
            (store, contents)
        });
        // Nobody listens any more after the patience is over.
        let _ = sender.send(opened);
    };
    std::thread::Builder::new().name("metadata-open".into()).spawn(run).map_err(|e| e.to_string())?;
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err("the store does not open in time".into()))
}

/// Whether the store was read to its end and is not older than its own export.
fn is_whole(contents: &Contents, export: &Export) -> bool {
    contents.stopped.is_none() && export::commit(&contents.records) >= export.commit()
}

/// Takes single records that cannot be read from the export.
fn mend(mut store: Store, contents: Contents, mut export: Export, report: &mut Report) -> (Store, Changes) {
    let mut records = contents.records;
    let mut mended = Changes::new();
    for unread in contents.unread {
        let key = Key::decode(&unread.key);
        let name = key.as_ref().map_or_else(|| format!("{:?}", unread.key.escape_ascii().to_string()), Key::to_string);
        report.damage.push(format!("{name}: {}", unread.reason));
        let Some(key) = key else { continue };
        let exported = export.records.remove(&key).flatten();
        match exported.is_some() {
            true => report.restored.push(name),
            false => report.lost.push(name),
        }
        mended.insert(key, exported);
    }
    records.extend(mended.iter().filter(|(_, value)| value.is_some()).map(|(k, v)| (k.clone(), v.clone())));
    if !mended.is_empty() && store.apply(&mended, &Memory::default()).is_err() {
        report.damage.push("the mended records could not be written; they will be tried again".into());
    }
    (store, records)
}

/// Makes a new store from what could be read of the old one and from the export.
fn rebuild(
    config: &Config,
    contents: Contents,
    export: Export,
    report: &mut Report,
) -> Result<(Store, Changes), Error> {
    let older = contents.stopped.is_none();
    report.damage.extend(contents.stopped);
    if older {
        report.damage.push("the store is older than its own export".into());
    }
    report.damage.extend(export.damage);
    report.kept = set_aside(config)?;
    let mut records = export.records;
    let salvaged = if older { Changes::new() } else { contents.records };
    let names = records.keys().filter(|key| key.is_named() && !salvaged.contains_key(key)).map(Key::to_string);
    report.restored.extend(names);
    let unread = contents.unread.iter().filter_map(|unread| Key::decode(&unread.key));
    report.lost.extend(unread.filter(|key| !records.contains_key(key)).map(|key| key.to_string()));
    records.extend(salvaged);
    let files = files(config);
    let failed = |reason: String| Error::io("make a new store in", &files)(std::io::Error::other(reason));
    let mut store = Store::open(&files, config.cache).map_err(failed)?;
    if !records.is_empty() {
        store.apply(&records, &Memory::default())?;
    }
    Ok((store, records))
}

/// Keeps the damaged files under another name; older ones of that sort go.
fn set_aside(config: &Config) -> Result<Option<PathBuf>, Error> {
    let files = files(config);
    if !files.exists() {
        return Ok(None);
    }
    for old in aside(&config.directory) {
        fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    }
    let kept = config.directory.join(format!("damaged-{}", seconds(SystemTime::now())));
    fs::rename(&files, &kept).map_err(Error::io("rename", &files))?;
    Ok(Some(kept))
}

fn aside(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-"))
        .map(|entry| entry.path())
        .collect()
}
