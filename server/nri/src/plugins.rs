//! The owner of all plug-ins: who is connected, in which order they are asked, and that none misses a pod or container.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::api::{self, Container, ContainerAdjustment, ContainerUpdate, Event, LinuxResources, PodSandbox};
use crate::plugin::Plugin;
use crate::{Error, Merge, Result, launch};

/// What a plug-in may take to look at all pods and containers at once: it comes seldom, and nothing can be made while it
/// lasts.
const SYNCHRONISE: Duration = Duration::from_secs(20);
/// Most bytes of pods and containers in one message; four mebibytes are the protocol's limit.
const MESSAGE: usize = 3 << 20;

/// What an operator sets; containerd's names and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// No plug-ins at all.
    pub disable: bool,
    /// Where plug-ins connect.
    pub socket_path: PathBuf,
    /// Where pre-installed plug-ins are.
    pub plugin_path: PathBuf,
    /// Where their configurations are.
    pub plugin_config_path: PathBuf,
    /// How long a plug-in may take to register.
    pub registration_timeout: Duration,
    /// How long a plug-in may take to answer.
    pub request_timeout: Duration,
    /// What a plug-in that does not answer, or is gone amid a request, means for the request.
    pub on_failure: OnFailure,
    /// Only pre-installed plug-ins.
    pub disable_connections: bool,
    /// The runtime's name, for plug-ins.
    pub runtime_name: String,
    /// Its version.
    pub runtime_version: String,
}

/// What a plug-in that does not answer means for the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The plug-in is cut off, and the request goes on without it, as in containerd.
    #[default]
    Ignore,
    /// The plug-in is cut off, and the request fails; its retry goes without the plug-in.
    Fail,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            disable: false,
            socket_path: "/var/run/nri/nri.sock".into(),
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            on_failure: OnFailure::Ignore,
            disable_connections: false,
            runtime_name: String::new(),
            runtime_version: String::new(),
        }
    }
}

/// All pods and containers at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Pods.
    pub pods: Vec<PodSandbox>,
    /// Containers.
    pub containers: Vec<Container>,
}

/// Who has the pods and containers.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// All there are.
    async fn snapshot(&self) -> Snapshot;
    /// Changes limits of containers; those that could not be changed.
    async fn update(&self, updates: Vec<ContainerUpdate>) -> Vec<ContainerUpdate>;
}

/// What plug-ins want of a creation.
#[derive(Clone, Debug, Default)]
pub struct Created {
    /// For the new container.
    pub adjust: ContainerAdjustment,
    /// For others.
    pub updates: Vec<ContainerUpdate>,
}

/// The plug-ins. Clones are the same.
#[derive(Clone)]
pub struct Nri(Arc<Inner>);

struct Inner {
    config: Config,
    plugins: Mutex<Vec<Arc<Plugin>>>,
    /// One request at a time: plug-ins see a single order of events.
    turn: tokio::sync::Mutex<()>,
    /// Read while a pod or container changes, written while a plug-in is told of all there are.
    changes: Arc<RwLock<()>>,
}

impl Nri {
    /// No plug-ins yet.
    pub fn new(config: Config) -> Nri {
        let (plugins, turn, changes) = (Mutex::default(), tokio::sync::Mutex::default(), Arc::default());
        Nri(Arc::new(Inner { config, plugins, turn, changes }))
    }

    /// Starts the pre-installed plug-ins, and lets others connect until `stopping` ends. Whatever is wrong with one is
    /// told in the log and costs that one alone.
    pub async fn start(&self, host: Arc<dyn Host>, stopping: impl Future<Output = ()> + Send + 'static) {
        if self.0.config.disable {
            return;
        }
        self.launch(&host).await;
        if self.0.config.disable_connections {
            return;
        }
        let path = self.0.config.socket_path.clone();
        match listen(&path).await {
            Ok(listener) => {
                let nri = self.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = nri.accept(listener, host) => {}
                        () = stopping => {}
                    }
                    nri.plugins().clear();
                    // Gone already is as good.
                    let _ = std::fs::remove_file(path);
                });
            }
            Err(error) => tracing::warn!(%error, "NRI plugins cannot connect"),
        }
    }

    async fn launch(&self, host: &Arc<dyn Host>) {
        let config = &self.0.config;
        for installed in launch::installed(&config.plugin_path, &config.plugin_config_path) {
            let (path, given) = (installed.path.clone(), installed.given.clone());
            let started = match launch::start(&installed) {
                Ok((trunk, child)) => self.take_in(trunk, Some((given, child)), host).await,
                Err(error) => Err(error),
            };
            if let Err(error) = started {
                tracing::warn!(path = %path.display(), %error, "a pre-installed NRI plugin is left out");
            }
        }
    }

    async fn accept(&self, listener: UnixListener, host: Arc<dyn Host>) {
        loop {
            let Ok((trunk, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (nri, host) = (self.clone(), Arc::clone(&host));
            tokio::spawn(async move {
                if let Err(error) = nri.take_in(trunk, None, &host).await {
                    tracing::warn!(%error, "an NRI plugin is left out");
                }
            });
        }
    }

    async fn take_in(
        &self,
        trunk: UnixStream,
        started: Option<(crate::plugin::Given, tokio::process::Child)>,
        host: &Arc<dyn Host>,
    ) -> Result<()> {
        let (given, child) = started.map_or((None, None), |(given, child)| (Some(given), Some(child)));
        let plugin = Plugin::register(trunk, given, child, &self.0.config, Arc::clone(host)).await?;
        // From here to the end nothing comes into being that the plug-in is not told of.
        let _all = self.0.changes.write().await;
        let updates = synchronise(&plugin, host.snapshot().await).await?;
        let name = plugin.name();
        {
            let mut plugins = self.plugins();
            plugins.push(Arc::new(plugin));
            plugins.sort_by(|a, b| a.index.cmp(&b.index));
        }
        tracing::info!(plugin = name, "an NRI plugin is connected");
        let failed = host.update(updates).await;
        if !failed.is_empty() {
            tracing::warn!(plugin = name, count = failed.len(), "updates that an NRI plugin wants failed");
        }
        Ok(())
    }

    /// Keeps plug-ins that connect from looking at all there is, until the result is dropped: for what is told to the
    /// plug-ins and becomes so afterwards.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0.changes).read_owned().await
    }

    /// Whether nobody is to be asked. Holds as long as [`Nri::hold`] does.
    pub fn is_idle(&self) -> bool {
        self.plugins().is_empty()
    }

    fn plugins(&self) -> MutexGuard<'_, Vec<Arc<Plugin>>> {
        let mut plugins = self.0.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        plugins.retain(|plugin| !plugin.is_closed());
        plugins
    }

    /// Those who want to know of an event, in order.
    fn wanting(&self, event: Event) -> Vec<Arc<Plugin>> {
        self.plugins().iter().filter(|plugin| plugin.wants(event)).cloned().collect()
    }

    /// Tells all who want to know.
    ///
    /// # Errors
    /// The first that one says; those behind it are not asked any more.
    pub async fn tell<Q: Message>(&self, event: Event, method: &'static str, request: &Q) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        for plugin in self.wanting(event) {
            let _: Option<api::Empty> = plugin.ask(method, request, None).await?;
        }
        Ok(())
    }

    /// Asks what is to be different in a container that is made.
    ///
    /// # Errors
    /// One refuses, two contradict each other, or one that validates rejects it.
    pub async fn create(&self, pod: &PodSandbox, container: Container) -> Result<Created> {
        let _turn = self.0.turn.lock().await;
        let mut merge = Merge::creation(container.clone());
        for plugin in self.wanting(Event::CreateContainer) {
            let request = api::CreateContainerRequest { pod: Some(pod.clone()), container: merge.container().cloned() };
            let answer: Option<api::CreateContainerResponse> = plugin.ask("CreateContainer", &request, None).await?;
            let Some(answer) = answer else { continue };
            let name = plugin.name();
            refuse_evictions(&answer.evict, &name);
            merge.adjust(answer.adjust.unwrap_or_default(), &name)?;
            merge.change(answer.update, &name)?;
        }
        self.validate(pod, container, &merge).await?;
        let (adjust, updates) = merge.adjustment();
        Ok(Created { adjust: adjust.clone(), updates: updates.to_vec() })
    }

    async fn validate(&self, pod: &PodSandbox, container: Container, merge: &Merge) -> Result<()> {
        let validators = self.wanting(Event::ValidateContainerAdjustment);
        if validators.is_empty() {
            return Ok(());
        }
        let (adjust, update) = merge.adjustment();
        let instance = |p: &Arc<Plugin>| api::PluginInstance { name: p.base.clone(), index: p.index.clone() };
        let request = api::ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()),
            container: Some(container),
            adjust: Some(adjust.clone()),
            update: update.to_vec(),
            owners: Some(merge.owners()),
            plugins: self.wanting(Event::CreateContainer).iter().map(instance).collect(),
        };
        for plugin in validators {
            let answer: Option<api::ValidateContainerAdjustmentResponse> =
                plugin.ask("ValidateContainerAdjustment", &request, None).await?;
            if let Some(answer) = answer.filter(|answer| answer.reject) {
                return Err(Error::Rejected { plugin: plugin.name(), reason: answer.reason });
            }
        }
        Ok(())
    }

    /// Asks for the limits that a container is to have instead of those asked for; and for those of others.
    ///
    /// # Errors
    /// One refuses, or two contradict each other.
    pub async fn update(
        &self,
        pod: &PodSandbox,
        container: &Container,
        limits: LinuxResources,
    ) -> Result<(Vec<ContainerUpdate>, LinuxResources)> {
        let _turn = self.0.turn.lock().await;
        let mut merge = Merge::update(&container.id, limits);
        for plugin in self.wanting(Event::UpdateContainer) {
            let request = api::UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: merge.limits().cloned(),
            };
            let answer: Option<api::UpdateContainerResponse> = plugin.ask("UpdateContainer", &request, None).await?;
            let Some(answer) = answer else { continue };
            refuse_evictions(&answer.evict, &plugin.name());
            merge.change(answer.update, &plugin.name())?;
        }
        let (others, limits) = merge.into_updates();
        Ok((others, limits.unwrap_or_default()))
    }

    /// Tells that a container has ended; the limits that others are to have now.
    ///
    /// # Errors
    /// One fails, or two contradict each other.
    pub async fn stop(&self, pod: PodSandbox, container: Container) -> Result<Vec<ContainerUpdate>> {
        let _turn = self.0.turn.lock().await;
        let mut merge = Merge::stop();
        let request = api::StopContainerRequest { pod: Some(pod), container: Some(container) };
        for plugin in self.wanting(Event::StopContainer) {
            let answer: Option<api::StopContainerResponse> = plugin.ask("StopContainer", &request, None).await?;
            merge.change(answer.map(|answer| answer.update).unwrap_or_default(), &plugin.name())?;
        }
        Ok(merge.into_updates().0)
    }
}

fn refuse_evictions(evict: &[api::ContainerEviction], plugin: &str) {
    for eviction in evict {
        tracing::warn!(plugin, id = eviction.container_id, reason = eviction.reason, "an eviction is not performed");
    }
}

/// Tells a plug-in of all there is, in as few messages as hold it.
async fn synchronise(plugin: &Plugin, all: Snapshot) -> Result<Vec<ContainerUpdate>> {
    let mut rest = chunks(all).into_iter().peekable();
    loop {
        let Some(request) = rest.next() else { return Ok(Vec::new()) };
        let answer: Option<api::SynchronizeResponse> = plugin.ask("Synchronize", &request, Some(SYNCHRONISE)).await?;
        let lost = || Error::Registration { plugin: plugin.name(), reason: "did not synchronise".into() };
        let answer = answer.ok_or_else(lost)?;
        if rest.peek().is_none() {
            return Ok(answer.update);
        }
        if !answer.more || !answer.update.is_empty() {
            let reason = "does not take pods and containers in several messages".into();
            return Err(Error::Registration { plugin: plugin.name(), reason });
        }
    }
}

/// All there is, in messages of bounded size; at least one.
fn chunks(all: Snapshot) -> Vec<api::SynchronizeRequest> {
    let mut chunks = vec![api::SynchronizeRequest::default()];
    let mut size = 0;
    let mut room = |chunks: &mut Vec<api::SynchronizeRequest>, more: usize| {
        if size > 0 && size + more > MESSAGE {
            size = 0;
            if let Some(last) = chunks.last_mut() {
                last.more = true;
            }
            chunks.push(api::SynchronizeRequest::default());
        }
        size += more;
    };
    for pod in all.pods {
        room(&mut chunks, pod.encoded_len());
        if let Some(last) = chunks.last_mut() {
            last.pods.push(pod);
        }
    }
    for container in all.containers {
        room(&mut chunks, container.encoded_len());
        if let Some(last) = chunks.last_mut() {
            last.containers.push(container);
        }
    }
    chunks
}

/// Opens the socket; one that nobody serves any more is replaced.
async fn listen(path: &std::path::Path) -> Result<UnixListener> {
    let failed = |what| move |source| Error::Io { what, path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::Taken { path: path.to_owned() });
    }
    if let Some(parent) = path.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(failed("create the directory of"))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(failed("protect"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_one_message_comes_in_several() {
        let pod = PodSandbox { id: "x".repeat(1 << 20), ..Default::default() };
        let container = Container { id: "y".repeat(1 << 20), ..Default::default() };
        let all = Snapshot { pods: vec![pod; 4], containers: vec![container; 2] };
        let chunks = chunks(all);
        assert!(chunks.iter().all(|chunk| chunk.encoded_len() < 4 << 20));
        let more: Vec<bool> = chunks.iter().map(|chunk| chunk.more).collect();
        assert!(more.len() == 3 && more == [true, true, false], "{more:?}");
        assert_eq!(chunks.iter().map(|chunk| chunk.pods.len() + chunk.containers.len()).sum::<usize>(), 6);
        assert_eq!(super::chunks(Snapshot::default()).len(), 1);
    }

    #[tokio::test]
    async fn a_socket_that_another_serves_is_left_to_it_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nri/nri.sock");
        let first = listen(&path).await.unwrap();
        assert!(matches!(listen(&path).await, Err(Error::Taken { .. })));
        drop(first);
        listen(&path).await.unwrap();
    }
}
