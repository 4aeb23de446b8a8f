//! Opening the store, whatever state it is in.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use crate::Error;
use crate::db::Config;
use crate::edges::seconds;
use crate::export::{self, Export};
use crate::journal;
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
    /// Why the store or its copy, or a part of them, could not be used. The newest changes may be lost then.
    pub damage: Vec<String>,
    /// Records that were taken from the copy (export and journal), by name.
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
    let reading = Reading::start(config);
    let copy = export::read_with_journal(directory);
    let copied = export::commit(&copy.records);
    let mut report = Report::default();
    let (mut store, records) = match reading.and_then(Reading::end) {
        Ok((store, contents)) if is_whole(&contents, &copy) => mend(store, contents, copy, &mut report),
        Ok((store, contents)) => {
            drop(store);
            rebuild(config, contents, copy, &mut report)?
        }
        Err(reason) => {
            let contents = Contents { stopped: Some(reason), ..Contents::default() };
            rebuild(config, contents, copy, &mut report)?
        }
    };
    store.hold(lock);
    // A crash between a commit and its copy, or damage, leaves copies that can no longer be gone on with.
    let copies_fit = report.is_clean() && export::commit(&records) == copied;
    report.records = records.keys().filter(|key| key.is_named()).count();
    memory.publish(records);
    if !copies_fit {
        start_copies_anew(directory, memory);
    }
    Ok((store, report))
}

/// Replaces the export and the journal by an export of what is there.
fn start_copies_anew(directory: &Path, memory: &Memory) {
    match export::write(directory, &memory.snapshot()) {
        Ok(_) => journal::clear(directory),
        Err(error) => tracing::warn!(%error, "cannot write the export of the mended metadata store"),
    }
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

/// The store, being opened and read on a thread that can be left behind.
struct Reading {
    read: mpsc::Receiver<Result<(Store, Contents), String>>,
    until: Instant,
}

impl Reading {
    fn start(config: &Config) -> Result<Reading, String> {
        let (sender, read) = mpsc::channel();
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
        Ok(Reading { read, until: Instant::now() + PATIENCE })
    }

    fn end(self) -> Result<(Store, Contents), String> {
        let left = self.until.saturating_duration_since(Instant::now());
        self.read.recv_timeout(left).unwrap_or_else(|_| Err("the store does not open in time".into()))
    }
}

/// Whether the store was read to its end and is not older than its own copy.
fn is_whole(contents: &Contents, copy: &Export) -> bool {
    contents.stopped.is_none() && export::commit(&contents.records) >= export::commit(&copy.records)
}

/// Takes single records that cannot be read from the copy.
fn mend(mut store: Store, contents: Contents, mut copy: Export, report: &mut Report) -> (Store, Changes) {
    report.damage.append(&mut copy.damage);
    let mut records = contents.records;
    let mut mended = Changes::new();
    for unread in contents.unread {
        let key = Key::decode(&unread.key);
        let name = key.as_ref().map_or_else(|| format!("{:?}", unread.key.escape_ascii().to_string()), Key::to_string);
        report.damage.push(format!("{name}: {}", unread.reason));
        let Some(key) = key else { continue };
        let copied = copy.records.remove(&key).flatten();
        match copied.is_some() {
            true => report.restored.push(name),
            false => report.lost.push(name),
        }
        mended.insert(key, copied);
    }
    records.extend(mended.iter().filter(|(_, value)| value.is_some()).map(|(k, v)| (k.clone(), v.clone())));
    if !mended.is_empty() && store.apply(&mended, &Memory::default()).is_err() {
        report.damage.push("the mended records could not be written; they will be tried again".into());
    }
    (store, records)
}

/// Makes a new store from the copy and from what could be read of the old one.
fn rebuild(config: &Config, contents: Contents, copy: Export, report: &mut Report) -> Result<(Store, Changes), Error> {
    let (store_commit, copy_commit) = (export::commit(&contents.records), export::commit(&copy.records));
    report.damage.push(match &contents.stopped {
        Some(reason) => reason.clone(),
        None => format!("the store has lost its tail: it ends with commit {store_commit} of {copy_commit}"),
    });
    report.kept = set_aside(config)?;
    report.restored =
        named(&copy.records).filter(|key| !contents.records.contains_key(key)).map(Key::to_string).collect();
    let unread: Vec<Key> = contents.unread.iter().filter_map(|unread| Key::decode(&unread.key)).collect();
    let records = join(contents.records, copy, report);
    report.lost = unread.iter().filter(|key| !records.contains_key(key)).map(Key::to_string).collect();
    let files = files(config);
    let failed = |reason: String| Error::io("make a new store in", &files)(std::io::Error::other(reason));
    let mut store = Store::open(&files, config.cache).map_err(failed)?;
    if !records.is_empty() {
        store.apply(&records, &Memory::default())?;
    }
    Ok((store, records))
}

/// A whole copy that is not older than the store is the truth; else what either has.
fn join(stored: Changes, copy: Export, report: &mut Report) -> Changes {
    let copy_is_newer = export::commit(&copy.records) >= export::commit(&stored);
    let copy_is_whole = copy.damage.is_empty();
    report.damage.extend(copy.damage);
    let (mut older, newer) = if copy_is_newer { (stored, copy.records) } else { (copy.records, stored) };
    if copy_is_newer && copy_is_whole {
        return newer;
    }
    older.extend(newer);
    older
}

fn named(records: &Changes) -> impl Iterator<Item = &Key> {
    records.keys().filter(|key| key.is_named())
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
