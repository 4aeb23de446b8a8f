//! A registry inside this process, on loopback: serves what it is given, takes pushes, records what it is asked, and
//! misbehaves as told. A product for tests and first steps, beside the real thing; it keeps everything in memory.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use gantry_registry::{Access, Config, Registry, fake::Fake, image};
//!
//! let fake = Fake::start(Default::default()).await.unwrap();
//! let image = image::Builder::new().file("hello", b"Hello\n", 0o644).build();
//! let reference = fake.put_image("test/hello", "latest", &image);
//! let resolved = Registry::new(Config::default()).resolve(&reference, &Access::anonymous()).await.unwrap();
//! assert_eq!(resolved.descriptor.digest, image.descriptor().digest);
//! # });
//! ```

mod fault;
mod gate;
mod reply;
mod routes;
mod serve;
mod store;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gantry_types::{Descriptor, Digest, Reference};

pub use fault::{Fault, Rule};
pub use gate::Login;

use crate::image::Image;
use store::Store;

/// How a [`Fake`] is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// What it asks callers for.
    pub login: Login,
    /// Speak TLS, with a certificate of an authority of its own.
    pub tls: bool,
    /// With TLS: ask for a certificate of that authority.
    pub client_certificates: bool,
    /// Serve parts of blobs.
    pub ranges: bool,
    /// Have the referrers API.
    pub referrers: bool,
    /// Answer HEAD for manifests.
    pub head: bool,
    /// Names in one page of a list.
    pub page: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            login: Login::None,
            tls: false,
            client_certificates: false,
            ranges: true,
            referrers: true,
            head: true,
            page: 100,
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which connection it came by, from 1 on.
    pub connection: usize,
    /// Version of HTTP.
    pub version: http::Version,
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers in lower case, in their order.
    pub headers: Vec<(String, String)>,
    /// Status of the answer; 0 while there is none, or where the connection was cut instead.
    pub status: u16,
}

impl Recorded {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A running registry. Stops when dropped.
pub struct Fake {
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

pub(crate) struct State {
    pub(crate) options: Options,
    pub(crate) address: SocketAddr,
    pub(crate) store: Mutex<Store>,
    pub(crate) rules: Mutex<Vec<Rule>>,
    pub(crate) requests: Mutex<Vec<Recorded>>,
    pub(crate) gate: gate::Gate,
    pub(crate) tls: Option<tls::Authority>,
}

impl Fake {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(options: Options) -> std::io::Result<Fake> {
        let listener = tokio::net::TcpListener::bind(options.listen).await?;
        let tls = if options.tls { Some(tls::Authority::new(options.client_certificates)?) } else { None };
        let state = Arc::new(State {
            address: listener.local_addr()?,
            gate: gate::Gate::new(options.login.clone()),
            store: Mutex::default(),
            rules: Mutex::default(),
            requests: Mutex::default(),
            tls,
            options,
        });
        let server = tokio::spawn(serve::run(listener, state.clone()));
        Ok(Fake { state, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.state.address
    }

    /// `127.0.0.1:PORT`, as references name it.
    pub fn host(&self) -> String {
        self.state.address.to_string()
    }

    /// `http://127.0.0.1:PORT` or the same with `https`.
    pub fn url(&self) -> String {
        self.state.url()
    }

    /// `HOST/PATH[:TAG|@DIGEST]` of this registry.
    ///
    /// # Panics
    /// When that is not a reference.
    #[allow(clippy::expect_used)]
    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host()).parse().expect("a valid reference")
    }

    /// The certificate of its authority in PEM, where it speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.state.tls.as_ref().map(|tls| tls.ca_pem.as_str())
    }

    /// A client certificate and key that it accepts, in PEM, where it speaks TLS.
    pub fn client_pem(&self) -> Option<(&str, &str)> {
        self.state.tls.as_ref().map(|tls| (tls.client_pem.as_str(), tls.client_key_pem.as_str()))
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, media_type: &str, bytes: Bytes) -> Descriptor {
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        lock(&self.state.store).put_blob(repository, descriptor.digest.clone(), bytes);
        descriptor
    }

    /// Puts a manifest into a repository, under its digest and a tag.
    pub fn put_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: Bytes) -> Descriptor {
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        lock(&self.state.store).put_manifest(repository, tag, media_type, bytes);
        descriptor
    }

    /// Puts an image into a repository, under a tag.
    ///
    /// # Panics
    /// When repository and tag make no reference.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) -> Reference {
        for (descriptor, bytes) in image.blobs() {
            self.put_blob(repository, &descriptor.media_type, bytes.clone());
        }
        for (descriptor, bytes) in image.manifests() {
            let tag = if descriptor == image.descriptor() { Some(tag) } else { None };
            self.put_manifest(repository, tag, &descriptor.media_type, bytes.clone());
        }
        self.reference(&format!("{repository}:{tag}"))
    }

    /// A blob that is there, given or pushed.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        lock(&self.state.store).blob(repository, digest)
    }

    /// A manifest that is there, by tag or digest: media type and bytes.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        lock(&self.state.store).manifest(repository, name)
    }

    /// Misbehaves from now on by this rule too; the first one that fits a request counts.
    pub fn fault(&self, rule: Rule) {
        lock(&self.state.rules).push(rule);
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        lock(&self.state.rules).clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.state.requests).clone()
    }

    /// Requests so far whose `METHOD PATH` contains `text`.
    pub fn count(&self, text: &str) -> usize {
        lock(&self.state.requests).iter().filter(|r| format!("{} {}", r.method, r.path).contains(text)).count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        lock(&self.state.requests).clear();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl State {
    fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
