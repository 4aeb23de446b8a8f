//! All shims of a daemon: launching them, asking their binaries, taking their events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gantry_ttrpc::pb::containerd::types::RuntimeInfo;
use gantry_ttrpc::{Address, Client};
use gantry_types::{Any, Namespace};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::OURS;
use crate::bundle::Purpose;
use crate::command::Run;
use crate::intake::{Intake, listen};
use crate::log::LogReader;
use crate::params::{Form, stdin_of};
use crate::resolve::Resolver;
use crate::shim::{Parts, remove, run_delete};
use crate::stay::{self, Starting, Version};
use crate::{Answer, Bundle, BundleSpec, Calls, Config, Deadlines, Error, Forwarded, Result, Shim};

/// The shims. Clones are the same.
#[derive(Clone, Debug)]
pub struct Shims {
    pub(crate) config: Arc<Config>,
    resolver: Arc<RwLock<Resolver>>,
    /// Binaries that took the bootstrap parameters for their options: they get the older form at once.
    old_form: Arc<Mutex<HashSet<PathBuf>>>,
    /// Binaries that said that they can be started without another process, with what they were then.
    can_stay: Arc<Mutex<HashMap<PathBuf, Version>>>,
    /// Whether a binary is our shim.
    ours: Arc<Mutex<HashMap<PathBuf, bool>>>,
    _intake: Arc<Intake>,
}

/// A shim to be started.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Namespace of the task.
    pub namespace: &'a Namespace,
    /// Id of the task.
    pub id: &'a str,
    /// Runtime name, or a binary's absolute path.
    pub runtime: &'a str,
    /// The runtime's options.
    pub options: Option<&'a Any>,
    /// What goes into the bundle.
    pub bundle: BundleSpec<'a>,
}

impl Shims {
    /// Listens for events; starts nothing yet. The receiver gives events in the order in which each shim sent them.
    /// `search` are the directories to look for binaries in, in order.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(config: Config, search: Vec<PathBuf>) -> Result<(Shims, mpsc::Receiver<Forwarded>)> {
        let (intake, events) = listen(&config.ttrpc_address)?;
        let resolver = Resolver { runtimes: config.runtimes.clone(), search };
        let shims = Shims {
            config: Arc::new(config),
            resolver: Arc::new(RwLock::new(resolver)),
            old_form: Arc::default(),
            can_stay: Arc::default(),
            ours: Arc::default(),
            _intake: Arc::new(intake),
        };
        Ok((shims, events))
    }

    /// The binary of a runtime.
    ///
    /// # Errors
    /// [`Error::RuntimeName`], [`Error::NoBinary`].
    pub fn binary(&self, runtime: &str) -> Result<PathBuf> {
        self.resolver.read().unwrap_or_else(PoisonError::into_inner).resolve(runtime)
    }

    /// Other binaries by runtime name, for shims that are started from now on.
    pub fn set_runtimes(&self, runtimes: BTreeMap<String, PathBuf>) {
        self.resolver.write().unwrap_or_else(PoisonError::into_inner).runtimes = runtimes;
    }

    /// Makes the bundle, starts the shim and connects to it. Nothing is left behind after a failure.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub async fn launch(&self, launch: Launch<'_>) -> Result<Shim> {
        self.launch_for(Purpose::Task, launch).await
    }

    /// The same for a sandbox.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub async fn launch_sandbox(&self, launch: Launch<'_>) -> Result<Shim> {
        self.launch_for(Purpose::Sandbox, launch).await
    }

    /// Makes the bundle of a task in the shim of a sandbox, and connects to that. Nothing is left behind after a failure.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub async fn join(&self, launch: Launch<'_>, sandbox: &str, answer: &Answer) -> Result<Shim> {
        let binary = self.binary(launch.runtime)?;
        let bundle = Bundle::at(&self.config, Purpose::Task, launch.namespace, launch.id);
        bundle.create(launch.bundle)?;
        let joined = async {
            bundle.note_sandbox(sandbox)?;
            bundle.note_start(&binary, answer)?;
            connect(launch.id, answer, self.config.deadlines).await
        };
        match joined.await {
            Ok(calls) => {
                let parts = Parts { binary, bundle, answer: answer.clone(), calls, log: None };
                Ok(Shim::new(&self.config, (launch.namespace, launch.id), parts))
            }
            Err(error) => {
                remove(bundle).await.unwrap_or_else(|error| tracing::warn!(%error, "bundle of a failed start stays"));
                Err(error)
            }
        }
    }

    async fn launch_for(&self, purpose: Purpose, launch: Launch<'_>) -> Result<Shim> {
        let binary = self.binary(launch.runtime)?;
        let bundle = Bundle::at(&self.config, purpose, launch.namespace, launch.id);
        bundle.create(launch.bundle)?;
        let mut guard = Abandoned { shims: self, launch, binary: &binary, bundle: &bundle, armed: true };
        let started = self.start(launch, &binary, &bundle).await;
        guard.armed = false;
        if started.is_err() {
            run_delete(&self.config, launch.namespace, launch.id, &binary, &bundle).await;
            if let Err(error) = remove(bundle.clone()).await {
                tracing::warn!(id = launch.id, %error, "bundle of a failed start stays");
            }
        }
        started
    }

    async fn start(&self, launch: Launch<'_>, binary: &Path, bundle: &Bundle) -> Result<Shim> {
        let log = LogReader::open(bundle, launch.namespace, launch.id);
        let (answer, starting) = self.run_start(launch, binary, bundle).await?;
        bundle.note_start(binary, &answer)?;
        let calls = connect(launch.id, &answer, self.config.deadlines).await?;
        if let Some(starting) = starting {
            starting.settle(calls.client().closed());
        }
        let parts = Parts { binary: binary.to_owned(), bundle: bundle.clone(), answer, calls, log };
        Ok(Shim::new(&self.config, (launch.namespace, launch.id), parts))
    }

    async fn run_start(
        &self,
        launch: Launch<'_>,
        binary: &Path,
        bundle: &Bundle,
    ) -> Result<(Answer, Option<Starting>)> {
        let version = stay::version(binary);
        let known = lock(&self.can_stay).get(binary).copied();
        if known.is_some() && known == version {
            let run = self.run_of(stay::VERB, Form::Bootstrap, launch, binary, bundle);
            if stay::fits(&run.stdin) {
                return stay::run(run, &self.config, launch.namespace).await;
            }
        }
        let answer = self.run_apart(launch, binary, bundle).await?;
        if let (true, Some(version)) = (answer.can_stay(), version) {
            lock(&self.can_stay).insert(binary.to_owned(), version);
        }
        Ok((answer, None))
    }

    /// The verb `start`, as all shims know it.
    async fn run_apart(&self, launch: Launch<'_>, binary: &Path, bundle: &Bundle) -> Result<Answer> {
        let start = async |form| {
            let run = self.run_of("start", form, launch, binary, bundle);
            run.combined(&self.config, launch.namespace).await
        };
        let known = lock(&self.old_form).contains(binary);
        let form = if known { Form::Options } else { Form::of(binary) };
        let output = match start(form).await {
            Err(Error::Verb { output, .. }) if form == Form::Bootstrap && Form::was_misread(&output) => {
                let output = start(Form::Options).await?;
                lock(&self.old_form).insert(binary.to_owned());
                output
            }
            output => output?,
        };
        Answer::parse(&output).map_err(|reason| Error::Answer { binary: binary.to_owned(), reason })
    }

    fn run_of<'a>(
        &self,
        verb: &'static str,
        form: Form,
        launch: Launch<'_>,
        binary: &'a Path,
        bundle: &'a Bundle,
    ) -> Run<'a> {
        let config = &*self.config;
        let mut args = Run::common_args(config, launch.namespace, launch.id, verb);
        args.push(verb.into());
        let stdin = stdin_of(form, config, launch.namespace, launch.id, launch.options);
        Run { binary, verb, args, directory: Some(bundle.path()), stdin, limit: config.deadlines.start }
    }

    /// Whether a runtime's shim is ours, which keeps logs by itself. One that does not say what it is is not.
    ///
    /// # Errors
    /// [`Error::RuntimeName`], [`Error::NoBinary`].
    pub async fn is_ours(&self, runtime: &str, options: Option<&Any>) -> Result<bool> {
        let binary = self.binary(runtime)?;
        if let Some(known) = lock(&self.ours).get(&binary) {
            return Ok(*known);
        }
        let info = self.info(runtime, options).await;
        let ours = info.is_ok_and(|info| info.annotations.contains_key(OURS));
        lock(&self.ours).insert(binary, ours);
        Ok(ours)
    }

    /// What a runtime says about itself, given options.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub async fn info(&self, runtime: &str, options: Option<&Any>) -> Result<RuntimeInfo> {
        let binary = self.binary(runtime)?;
        let any = options.map(|any| prost_types::Any { type_url: any.type_url.clone(), value: any.value.clone() });
        let stdin = any.map(|any| any.encode_to_vec()).unwrap_or_default();
        let limit = self.config.deadlines.verb;
        let run = Run { binary: &binary, verb: "-info", args: vec!["-info".into()], directory: None, stdin, limit };
        let output = run.separate(&self.config, "").await?;
        RuntimeInfo::decode(output.as_slice())
            .map_err(|error| Error::Answer { binary: binary.clone(), reason: format!("-info: {error}") })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to a started shim.
pub(crate) async fn connect(id: &str, answer: &Answer, deadlines: Deadlines) -> Result<Calls> {
    let address = Address::of_shim(&answer.address);
    let client = Client::connect(&address, Instant::now() + deadlines.connect).await;
    let client = client.map_err(|status| Error::Call { id: id.into(), method: "connect", status })?;
    Ok(Calls::new(id, client, answer.version, deadlines))
}

/// Cleans up when the caller of a launch stops waiting in the middle of it.
struct Abandoned<'a> {
    shims: &'a Shims,
    launch: Launch<'a>,
    binary: &'a Path,
    bundle: &'a Bundle,
    armed: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (config, namespace) = (Arc::clone(&self.shims.config), self.launch.namespace.clone());
        let (id, binary, bundle) = (self.launch.id.to_owned(), self.binary.to_owned(), self.bundle.clone());
        tokio::spawn(async move {
            run_delete(&config, &namespace, &id, &binary, &bundle).await;
            // Start-up looks for bundles that stayed.
            let _ = remove(bundle).await;
        });
    }
}
