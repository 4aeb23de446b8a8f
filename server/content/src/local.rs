//! The store in a directory: `blobs/ALGORITHM/HEX` and `ingest/HASH-OF-REF/`.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind as Io};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_types::{Algorithm, Digest};
use tokio::task::spawn_blocking;

use crate::durable::SharedSync;
use crate::ingest::{Home, Ingest};
use crate::lock::Locks;
use crate::read::LocalReader;
use crate::write::LocalWriter;
use crate::{Error, Info, ReaderAt, Status, Store, Writer, WriterOptions};

/// Longest name of an ingest, in bytes.
const MAX_REFERENCE: usize = 4096;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// A content store in a directory of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalStore(Arc<Shared>);

/// What the store, its writers and their jobs share.
#[derive(Debug)]
pub(crate) struct Shared {
    root: PathBuf,
    pub(crate) locks: Arc<Locks>,
    /// The directory of each of [`ALGORITHMS`].
    syncs: [SharedSync; 2],
}

impl LocalStore {
    /// Opens, or makes, the store in `root`. Ingests are kept, half-made ones are cleaned away. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::Io`] where directories cannot be made or read.
    pub fn open(root: impl AsRef<Path>) -> Result<LocalStore, Error> {
        let root = root.as_ref().to_owned();
        let blobs = ALGORITHMS.map(|algorithm| root.join("blobs").join(algorithm.name()));
        let ingests = root.join("ingest");
        for directory in blobs.iter().chain([&ingests]) {
            fs::create_dir_all(directory).map_err(Error::io("make", directory))?;
        }
        clean(&ingests)?;
        let [sha256, sha512] = blobs.map(|path| SharedSync::open(&path).map_err(Error::io("open", &path)));
        Ok(LocalStore(Arc::new(Shared { root, locks: Arc::default(), syncs: [sha256?, sha512?] })))
    }

    /// Does what blocks on the disk where it may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.0.clone();
        spawn_blocking(move || work(&shared)).await.map_err(|e| Error::task(&e))?
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn info(&self, digest: &Digest) -> Result<Info, Error> {
        let digest = digest.clone();
        self.blocking(move |shared| shared.info(digest)).await
    }

    async fn walk(&self) -> Result<Vec<Info>, Error> {
        self.blocking(|shared| shared.walk()).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), Error> {
        let digest = digest.clone();
        self.blocking(move |shared| {
            let path = shared.blob(&digest);
            fs::remove_file(&path).map_err(|error| missing(error, digest, "remove", &path))
        })
        .await
    }

    async fn reader(&self, digest: &Digest) -> Result<Arc<dyn ReaderAt>, Error> {
        let digest = digest.clone();
        self.blocking(move |shared| {
            let path = shared.blob(&digest);
            let opened = File::open(&path).and_then(|file| file.metadata().map(|data| (file, data.len())));
            let (file, size) = opened.map_err(|error| missing(error, digest, "open", &path))?;
            Ok(Arc::new(LocalReader::new(file, path, size)) as Arc<dyn ReaderAt>)
        })
        .await
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>, Error> {
        check(&options.reference)?;
        self.blocking(move |shared| Ok(Box::new(shared.writer(&options)?) as Box<dyn Writer>)).await
    }

    async fn status(&self, reference: &str) -> Result<Status, Error> {
        let reference = reference.to_owned();
        self.blocking(move |shared| shared.status(&Home::of(&shared.ingests(), &reference), &reference)).await
    }

    async fn statuses(&self) -> Result<Vec<Status>, Error> {
        self.blocking(|shared| shared.statuses()).await
    }

    async fn abort(&self, reference: &str) -> Result<(), Error> {
        let reference = reference.to_owned();
        self.blocking(move |shared| {
            let home = Home::of(&shared.ingests(), &reference);
            home.remove().map_err(|error| match error.kind() {
                Io::NotFound => Error::IngestNotFound { reference },
                _ => Error::io("remove", &home.data())(error),
            })
        })
        .await
    }
}

impl Shared {
    /// The file of a blob.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Returns when the names of blobs that are there now are on the disk.
    pub(crate) fn sync_blobs(&self, algorithm: Algorithm) -> Result<(), Error> {
        let sync = match algorithm {
            Algorithm::Sha256 => &self.syncs[0],
            Algorithm::Sha512 => &self.syncs[1],
        };
        sync.sync().map_err(Error::io("sync", &self.root.join("blobs").join(algorithm.name())))
    }

    fn ingests(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn info(&self, digest: Digest) -> Result<Info, Error> {
        let path = self.blob(&digest);
        match fs::metadata(&path) {
            Ok(data) => info(digest, &data).map_err(Error::io("stat", &path)),
            Err(error) => Err(missing(error, digest, "stat", &path)),
        }
    }

    fn walk(&self) -> Result<Vec<Info>, Error> {
        let mut infos = Vec::new();
        for algorithm in ALGORITHMS {
            let directory = self.root.join("blobs").join(algorithm.name());
            for name in names(&directory).map_err(Error::io("read", &directory))? {
                // A file with another name is none of ours.
                let Ok(digest) = format!("{}:{name}", algorithm.name()).parse::<Digest>() else { continue };
                match self.info(digest) {
                    Err(Error::NotFound { .. }) => {}
                    info => infos.push(info?),
                }
            }
        }
        Ok(infos)
    }

    fn writer(self: &Arc<Shared>, options: &WriterOptions) -> Result<LocalWriter, Error> {
        let guard = self.locks.lock(&options.reference)?;
        if let Some(digest) = options.expected.as_ref().filter(|digest| self.blob(digest).exists()) {
            return Err(Error::AlreadyExists { digest: digest.clone() });
        }
        let home = Home::of(&self.ingests(), &options.reference);
        let (record, file) = home.open(options)?;
        let updated = file.metadata().and_then(|data| data.modified()).map_err(Error::io("stat", &home.data()))?;
        let algorithm = record.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let ingest = Ingest::new(home, file, record.total, algorithm, guard)?;
        Ok(LocalWriter::new(self.clone(), record, ingest, updated))
    }

    fn status(&self, home: &Home, reference: &str) -> Result<Status, Error> {
        let status = home.status().map_err(|error| match error.kind() {
            Io::NotFound => Error::IngestNotFound { reference: reference.to_owned() },
            _ => Error::io("read", &home.data())(error),
        })?;
        Ok(match self.locks.progress(&status.reference) {
            Some((offset, updated)) => Status { offset, updated, ..status },
            None => status,
        })
    }

    fn statuses(&self) -> Result<Vec<Status>, Error> {
        let directory = self.ingests();
        let mut statuses = Vec::new();
        for name in names(&directory).map_err(Error::io("read", &directory))? {
            match self.status(&Home::at(directory.join(&name)), &name) {
                // Gone meanwhile, or just being made.
                Err(Error::IngestNotFound { .. }) => {}
                status => statuses.push(status?),
            }
        }
        Ok(statuses)
    }
}

/// Removes what a crash left of ingests that nobody can go on with.
fn clean(ingests: &Path) -> Result<(), Error> {
    for name in names(ingests).map_err(Error::io("read", ingests))? {
        let path = ingests.join(name);
        if path.is_dir() && Home::at(path.clone()).is_whole() {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// The names in a directory; such as are no text are none of ours.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    entries.filter_map(Result::transpose).collect()
}

fn info(digest: Digest, data: &Metadata) -> io::Result<Info> {
    let modified = data.modified()?;
    Ok(Info { digest, size: data.len(), created: modified, updated: modified })
}

fn missing(error: io::Error, digest: Digest, operation: &'static str, path: &Path) -> Error {
    match error.kind() {
        Io::NotFound => Error::NotFound { digest },
        _ => Error::io(operation, path)(error),
    }
}

fn check(reference: &str) -> Result<(), Error> {
    let invalid = |reason| Err(Error::InvalidReference { reference: reference.chars().take(160).collect(), reason });
    match reference {
        "" => invalid("must not be empty"),
        _ if reference.len() > MAX_REFERENCE => invalid("longer than 4096 bytes"),
        _ => Ok(()),
    }
}
