//! Names of pods and containers, and creations that can be joined: a client that gave up and asks again waits for the
//! creation that still runs, and gets its result; so does one whose first call was answered after it had gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::{Error, Result};

type Outcome = std::result::Result<String, Arc<Error>>;

/// The names of one kind of object.
pub(crate) struct Creations {
    what: &'static str,
    names: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Clone)]
struct Entry {
    id: String,
    /// What was asked for: only the same can be joined.
    request: Arc<Vec<u8>>,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Whether somebody has learnt of the success.
    told: Arc<AtomicBool>,
}

impl Creations {
    /// No names. `what` is `sandbox` or `container`.
    pub(crate) fn new(what: &'static str) -> Creations {
        Creations { what, names: Arc::default() }
    }

    /// Takes a name for something that exists already.
    pub(crate) fn occupy(&self, name: &str, id: &str) {
        let (_, outcome) = watch::channel(Some(Ok(id.to_owned())));
        let told = Arc::new(AtomicBool::new(true));
        let entry = Entry { id: id.to_owned(), request: Arc::default(), outcome, told };
        self.lock().insert(name.to_owned(), entry);
    }

    /// Frees a name, if that object has it.
    pub(crate) fn free(&self, name: &str, id: &str) {
        let mut names = self.lock();
        if names.get(name).is_some_and(|entry| entry.id == id) {
            names.remove(name);
        }
    }

    /// Makes the object of that name by `make`, which runs to its end when the caller goes away; or joins who makes it.
    ///
    /// # Errors
    /// What `make` says; [`Error::Reserved`] where the name is another's.
    pub(crate) async fn join<F>(&self, name: &str, id: String, request: Vec<u8>, make: F) -> Result<String>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let entry = match self.enter(name, &id, request)? {
            Found::Running(entry) => entry,
            Found::Vacant(entry, sender) => {
                let (names, name) = (Arc::clone(&self.names), name.to_owned());
                tokio::spawn(async move {
                    let made = make.await;
                    if made.is_err() {
                        names.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                    }
                    sender.send_replace(Some(made.map(|()| id).map_err(Arc::new)));
                });
                entry
            }
        };
        let mut outcome = entry.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        match ended {
            Some(Ok(id)) => {
                entry.told.store(true, Ordering::SeqCst);
                // From here on nobody can join: there is nothing left to compare with.
                if let Some(entry) = self.lock().get_mut(name).filter(|entry| entry.id == id) {
                    entry.request = Arc::default();
                }
                Ok(id)
            }
            Some(Err(error)) => Err(Error::Joined(error)),
            None => Err(Error::Stopped { what: self.what }),
        }
    }

    fn enter(&self, name: &str, id: &str, request: Vec<u8>) -> Result<Found> {
        let mut names = self.lock();
        if let Some(entry) = names.get(name) {
            let over = entry.outcome.borrow().is_some();
            let heard = entry.told.load(Ordering::SeqCst);
            if *entry.request != request || (over && heard) {
                return Err(Error::Reserved { what: self.what, name: name.to_owned(), id: entry.id.clone() });
            }
            return Ok(Found::Running(entry.clone()));
        }
        let (sender, outcome) = watch::channel(None);
        let entry = Entry { id: id.to_owned(), request: Arc::new(request), outcome, told: Arc::default() };
        names.insert(name.to_owned(), entry.clone());
        Ok(Found::Vacant(entry, sender))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Found {
    Running(Entry),
    Vacant(Entry, watch::Sender<Option<Outcome>>),
}

/// A new id: 64 hexadecimal digits from the kernel's random source.
///
/// # Errors
/// When there is no such source.
pub(crate) fn new_id() -> Result<String> {
    use std::io::Read as _;
    let path = std::path::Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(Error::io("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn creations() -> Arc<Creations> {
        Arc::new(Creations::new("sandbox"))
    }

    async fn slow() -> Result<()> {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Ok(())
    }

    #[tokio::test]
    async fn a_retry_of_a_running_creation_gets_its_result() {
        let names = creations();
        let first = names.join("n", "a".into(), vec![1], slow());
        let second = names.join("n", "b".into(), vec![1], async { unreachable!("it is being made") });
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.unwrap(), second.unwrap()), ("a".into(), "a".into()));
    }

    #[tokio::test]
    async fn a_result_nobody_heard_of_goes_to_the_retry_and_then_the_name_is_taken() {
        let names = creations();
        let gave_up =
            tokio::time::timeout(Duration::from_millis(1), names.join("n", "a".into(), vec![1], slow())).await;
        assert!(gave_up.is_err());
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(names.join("n", "b".into(), vec![1], slow()).await.unwrap(), "a");
        let third = names.join("n", "c".into(), vec![1], slow()).await;
        assert!(matches!(third, Err(Error::Reserved { id, .. }) if id == "a"));
    }

    #[tokio::test]
    async fn another_request_for_the_same_name_cannot_join() {
        let names = creations();
        let first = names.join("n", "a".into(), vec![1], slow());
        let second = names.join("n", "b".into(), vec![2], slow());
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_ok() && matches!(second, Err(Error::Reserved { .. })));
    }

    #[tokio::test]
    async fn a_failure_frees_the_name() {
        let names = creations();
        let failing = async { Err(Error::State("no".into())) };
        assert!(names.join("n", "a".into(), vec![1], failing).await.is_err());
        assert_eq!(names.join("n", "b".into(), vec![1], slow()).await.unwrap(), "b");
    }

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(a.len() == 64 && a != b && a.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
