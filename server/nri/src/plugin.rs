//! One plug-in: from its registration to the end of its connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_ttrpc::intake::{self, Call, Handler, Limits};
use gantry_ttrpc::{Client, Status};
use gantry_types::ErrorKind;
use prost::Message;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::oneshot;

use crate::api::{self, Event};
use crate::plugins::{Config, Host, OnFailure};
use crate::{Error, Result, mux, names};

const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Version of the interface that is spoken.
const VERSION: &str = "v0.12.3";
/// Bits of all events that there are.
const ALL: i32 = (1 << (Event::Last as i32 - 1)) - 1;
/// What a plug-in may ask at once.
const CALLS: usize = 8;
/// What a plug-in's request to the runtime may take.
const ASKING: Duration = Duration::from_secs(60);

/// Index and name, where the runtime gave them, with the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) index: String,
    pub(crate) name: String,
    pub(crate) config: String,
}

/// A registered and configured plug-in.
pub(crate) struct Plugin {
    pub(crate) index: String,
    pub(crate) base: String,
    events: i32,
    client: Client,
    limit: Duration,
    /// Whether a request fails with a plug-in that does not answer.
    strict: bool,
    /// The process, where it was started by us; killed when this is dropped.
    _child: Option<Child>,
}

impl Plugin {
    /// Waits until who is at the other end registers, and configures it.
    ///
    /// # Errors
    /// It does not register in time or under a wrong name, or refuses its configuration.
    pub(crate) async fn register(
        trunk: UnixStream,
        given: Option<Given>,
        child: Option<Child>,
        config: &Config,
        host: Arc<dyn Host>,
    ) -> Result<Plugin> {
        let peer = given.as_ref().map_or_else(|| "unregistered".to_owned(), |g| format!("{}-{}", g.index, g.name));
        let bad = |reason: String| Error::Registration { plugin: peer.clone(), reason };
        let uid = trunk.peer_cred().map_err(|error| bad(error.to_string()))?.uid();
        let connections = mux::split(trunk).map_err(|error| bad(error.to_string()))?;
        let (registers, registered) = oneshot::channel();
        let asked = Arc::new(Asked { registers: Mutex::new(Some(registers)), host });
        let own = connections.runtime.peer_cred().map_err(|error| bad(error.to_string()))?.uid();
        if uid != own {
            return Err(bad(format!("belongs to user {uid}")));
        }
        let limits = Limits { connections: 1, calls_per_connection: CALLS, uid: own, call_timeout: ASKING };
        tokio::spawn(intake::serve_one(connections.runtime, asked, limits));
        let client = Client::from_stream(connections.plugin);
        let told = match tokio::time::timeout(config.registration_timeout, registered).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => return Err(bad("closed its connection instead of registering".into())),
            Err(_) => return Err(bad(format!("did not register within {:?}", config.registration_timeout))),
        };
        let (index, base, text) = match given {
            Some(given) => (given.index, given.name, given.config),
            None if !names::is_index(&told.plugin_idx) => {
                return Err(bad(format!("its index {:?} is not two digits", told.plugin_idx)));
            }
            None if !names::is_name(&told.plugin_name) => {
                return Err(bad(format!("its name {:?} is not one", told.plugin_name)));
            }
            None => (told.plugin_idx, told.plugin_name, String::new()),
        };
        let limit = config.request_timeout;
        let strict = config.on_failure == OnFailure::Fail;
        let mut plugin = Plugin { index, base, events: ALL, client, limit, strict, _child: child };
        plugin.configure(text, config).await?;
        Ok(plugin)
    }

    async fn configure(&mut self, text: String, config: &Config) -> Result<()> {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = api::ConfigureRequest {
            config: text,
            runtime_name: config.runtime_name.clone(),
            runtime_version: config.runtime_version.clone(),
            registration_timeout: milliseconds(config.registration_timeout),
            request_timeout: milliseconds(config.request_timeout),
            nri_version: VERSION.to_owned(),
        };
        let answer: api::ConfigureResponse = self
            .client
            .call(PLUGIN, "Configure", &request, self.limit)
            .await
            .map_err(|status| self.failed("Configure", status))?;
        let unknown = answer.events & !ALL;
        if unknown != 0 {
            let reason = format!("asks for events that there are not: {unknown:#x}");
            return Err(Error::Registration { plugin: self.name(), reason });
        }
        if answer.events != 0 {
            self.events = answer.events;
        }
        Ok(())
    }

    /// Index and name.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    /// Whether it wants to know of such events.
    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    /// Whether its connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Ends its connection.
    pub(crate) fn close(&self) {
        self.client.close();
    }

    /// Asks it. None from one that is gone, or does not answer in time: it is cut off then, and does not count, unless
    /// [`OnFailure::Fail`] is set.
    ///
    /// # Errors
    /// What it says.
    pub(crate) async fn ask<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<Option<A>> {
        match self.client.call(PLUGIN, method, request, limit.unwrap_or(self.limit)).await {
            Ok(answer) => Ok(Some(answer)),
            Err(status) if status.kind == ErrorKind::Unimplemented => Ok(None),
            Err(status) if self.is_closed() || status.kind == ErrorKind::DeadlineExceeded => {
                tracing::warn!(plugin = self.name(), method, %status, "an NRI plugin is cut off");
                self.close();
                if self.strict { Err(self.failed(method, status)) } else { Ok(None) }
            }
            Err(status) => Err(self.failed(method, status)),
        }
    }

    fn failed(&self, method: &'static str, status: Status) -> Error {
        Error::Plugin { plugin: self.name(), method, message: status.message, kind: status.kind }
    }
}

/// What a plug-in asks of the runtime.
struct Asked {
    registers: Mutex<Option<oneshot::Sender<api::RegisterPluginRequest>>>,
    host: Arc<dyn Host>,
}

impl Handler for Asked {
    async fn call(&self, call: Call) -> Result<Vec<u8>, Status> {
        match (call.service.as_str(), call.method.as_str()) {
            (RUNTIME, "RegisterPlugin") => {
                let request = decode(&call.payload)?;
                let first = self.registers.lock().unwrap_or_else(PoisonError::into_inner).take();
                let first = first.ok_or_else(|| Status::new(ErrorKind::AlreadyExists, "registered already"))?;
                // Who waited for it may have given up.
                let _ = first.send(request);
                Ok(api::Empty {}.encode_to_vec())
            }
            (RUNTIME, "UpdateContainers") => {
                let request: api::UpdateContainersRequest = decode(&call.payload)?;
                if !request.evict.is_empty() {
                    return Err(Status::new(ErrorKind::Unimplemented, "containers are not evicted for plug-ins"));
                }
                let failed = self.host.update(request.update).await;
                Ok(api::UpdateContainersResponse { failed }.encode_to_vec())
            }
            (RUNTIME, method) => Err(Status::unimplemented(RUNTIME, method)),
            (service, _) => Err(Status::unknown_service(service)),
        }
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::new(ErrorKind::InvalidArgument, format!("undecodable request: {error}")))
}
