//! The owner of all attachments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bridge::{Bridge, INTERFACE};
use super::cni::{self, Cni, Network, is_valid_name};
use super::keyed::Keyed;
use super::namespace::{in_thread, open};
use super::record::{By, Record, Records};
use super::{Attached, Config, Error, IpPreference, PodNetwork, Result};

/// Name of a configuration that was made from a template, as containerd has it.
const FILLED: &str = "10-containerd-net.conflist";

/// All networks of all pods. Clones are the same.
#[derive(Clone, Debug)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cni: Cni,
    bridge: Option<Bridge>,
    records: Records,
    known: Mutex<BTreeMap<String, Record>>,
    turns: Keyed,
}

/// An attachment that is recorded.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its name: the sandbox's id.
    pub id: String,
    /// What the pod asked for.
    pub pod: PodNetwork,
    /// How far it is.
    pub stage: Stage,
}

/// How far an attachment is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    /// It was begun. After a start this means that it must be undone.
    Adding,
    /// It is done.
    Attached(Attached),
    /// Undoing it was begun.
    Removing,
}

/// The condition `NetworkReady` of the CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whether pods can be attached.
    pub ready: bool,
    /// One word for why not.
    pub reason: String,
    /// A sentence for why not.
    pub message: String,
}

impl Networks {
    /// Opens the records. Plug-ins that an earlier daemon left running in the midst of an attachment are killed, and
    /// links that no record speaks of are removed; the attachments themselves are the caller's to judge.
    ///
    /// # Errors
    /// The directory of records cannot be read.
    pub async fn open(config: Config) -> Result<Networks> {
        let (records, found) = Records::open(&config.root.join("attachments"))?;
        let bridge = config.bridge.map(Bridge::new);
        let mut known = BTreeMap::new();
        for record in found {
            if let (By::Bridge(holding), Some(bridge)) = (&record.by, &bridge) {
                bridge.restore(&record.pod.id, holding.clone());
            }
            known.insert(record.pod.id.clone(), record);
        }
        let cni = Cni { config: config.cni, root: config.root, deadline: config.deadline };
        let inner = Inner { cni, bridge, records, known: Mutex::new(known), turns: Keyed::default() };
        inner.tidy().await;
        Ok(Networks(Arc::new(inner)))
    }

    /// All attachments.
    pub fn attachments(&self) -> Vec<Attachment> {
        let known = self.0.known();
        let attachments =
            known.iter().map(|(id, r)| Attachment { id: id.clone(), pod: r.pod.clone(), stage: r.stage.clone() });
        attachments.collect()
    }

    /// What a pod got, where it is attached.
    pub fn attached(&self, id: &str) -> Option<Attached> {
        match self.0.known().get(id)?.stage {
            Stage::Attached(ref attached) => Some(attached.clone()),
            _ => None,
        }
    }

    /// Attaches a pod. It goes on when the caller stops waiting; asked again for the same pod, it waits for that and
    /// gives the same result. What fails is undone.
    ///
    /// # Errors
    /// What the pod asks for makes no sense, no network is configured, or one of them fails.
    pub async fn attach(&self, pod: PodNetwork) -> Result<Attached> {
        let inner = self.0.clone();
        let id = pod.id.clone();
        let done = tokio::spawn(async move { inner.attach(pod).await });
        done.await.unwrap_or(Err(Error::BrokeOff { id }))
    }

    /// Undoes an attachment, whatever is there of it. None of this name is no error. It goes on when the caller stops
    /// waiting.
    ///
    /// # Errors
    /// A network fails to let go; the attachment stays recorded, to be tried again.
    pub async fn detach(&self, id: &str) -> Result<()> {
        let (inner, id) = (self.0.clone(), id.to_owned());
        let name = id.clone();
        let done = tokio::spawn(async move {
            let _turn = inner.turns.lock(&id).await;
            inner.undo(&id).await
        });
        done.await.unwrap_or(Err(Error::BrokeOff { id: name }))
    }

    /// Asks the networks whether an attachment is still as it should be.
    ///
    /// # Errors
    /// It is not, or there is none.
    pub async fn check(&self, id: &str) -> Result<()> {
        let _turn = self.0.turns.lock(id).await;
        let record = self.0.record(id).ok_or_else(|| Error::NotFound { id: id.into() })?;
        open(&record.pod.netns)?;
        let By::Cni(networks) = &record.by else { return Ok(()) };
        for network in networks {
            self.0.cni.check(&record.pod, network).await?;
        }
        Ok(())
    }

    /// Lets plug-ins collect what belongs to no attachment (GC of CNI 1.1). Attachments of other users of CNI, known by
    /// libcni's cache, are left alone.
    ///
    /// # Errors
    /// The first that a configuration or a plug-in gives; all networks are tried.
    pub async fn collect(&self) -> Result<()> {
        let mut outcome = Ok(());
        for network in self.0.cni.networks(None)? {
            let ours = self.0.attachments_of(&network.list.name);
            let gone = |id: &str| self.0.record(id).is_some();
            let done = self.0.cni.collect(&network.list, &ours, gone).await;
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Writes the network's configuration from a template, for pods with addresses of these ranges; the file is put in
    /// its place whole. Where there is a configuration already, nothing is written. Whether it was.
    ///
    /// # Errors
    /// The template cannot be read or is not understood, or the file cannot be written.
    pub async fn configure(&self, template: PathBuf, ranges: Vec<String>) -> Result<bool> {
        if !self.0.cni.networks(None)?.is_empty() {
            return Ok(false);
        }
        let dir = self.0.cni.config.conf_dir.clone();
        in_thread(move || {
            let text = std::fs::read_to_string(&template).map_err(Error::io("read", &template))?;
            let bad = |reason| Error::BadConfig { path: template.clone(), reason };
            let text = cni::fill(&text, &ranges).map_err(bad)?;
            std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
            let (new, path) = (dir.join(".10-containerd-net.new"), dir.join(FILLED));
            std::fs::write(&new, text).map_err(Error::io("write", &new))?;
            std::fs::rename(&new, &path).map_err(Error::io("write", &path))?;
            Ok(true)
        })
        .await
    }

    /// Whether pods can be attached, in containerd's words.
    pub async fn readiness(&self) -> Readiness {
        match self.0.usable().await {
            Ok(()) => Readiness { ready: true, ..Readiness::default() },
            Err(error) => Readiness {
                ready: false,
                reason: "NetworkPluginNotReady".into(),
                message: format!("Network plugin returns error: {error}"),
            },
        }
    }

    /// What is configured, as containerd tells it.
    pub fn describe(&self) -> Value {
        let config = &self.0.cni.config;
        match self.0.cni.networks(None) {
            Ok(networks) if networks.is_empty() => {
                let built_in: Vec<Value> = self.0.bridge.iter().map(Bridge::describe).collect();
                cni::describe(config, built_in)
            }
            Ok(networks) => cni::describe(config, networks.iter().map(Network::describe).collect()),
            Err(error) => {
                let mut told = cni::describe(config, Vec::new());
                told["Error"] = error.to_string().into();
                told
            }
        }
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, id: &str) -> Option<Record> {
        self.known().get(id).cloned()
    }

    /// Cleans up what an earlier daemon left in the midst of something.
    async fn tidy(&self) {
        let (root, ids) = (self.cni.root.clone(), self.unfinished());
        // Neither can fail the start: what stays behind is met again when its attachment is undone.
        let _ = in_thread(move || Ok(cni::kill_orphans(&root, &ids))).await;
        let holdings: Vec<_> = self
            .known()
            .values()
            .filter_map(|r| match &r.by {
                By::Bridge(holding) => Some(holding.clone()),
                By::Cni(_) => None,
            })
            .collect();
        if let Some(bridge) = &self.bridge
            && let Err(error) = bridge.sweep(holdings).await
        {
            tracing::warn!(%error, "links that no pod has may be left");
        }
    }

    fn unfinished(&self) -> Vec<String> {
        let known = self.known();
        let unfinished = known.values().filter(|r| !matches!(r.stage, Stage::Attached(_)));
        unfinished.map(|r| r.pod.id.clone()).collect()
    }

    async fn usable(&self) -> Result<()> {
        let networks = self.cni.networks(None)?;
        if networks.is_empty() && self.bridge.is_none() {
            return Err(Error::NotInitialized { dir: self.cni.config.conf_dir.clone() });
        }
        for network in networks {
            self.cni.status(&network.list).await?;
        }
        Ok(())
    }

    async fn attach(&self, pod: PodNetwork) -> Result<Attached> {
        validate(&pod)?;
        let _turn = self.turns.lock(&pod.id).await;
        match self.record(&pod.id) {
            Some(Record { stage: Stage::Attached(attached), pod: earlier, .. }) if earlier == pod => {
                return Ok(attached);
            }
            Some(Record { stage: Stage::Attached(_), .. }) => return Err(Error::Exists { id: pod.id }),
            // What an earlier try left.
            Some(_) => self.undo(&pod.id).await?,
            None => {}
        }
        let id = pod.id.clone();
        match self.try_attach(pod).await {
            Ok(attached) => Ok(attached),
            Err(first) => match self.undo(&id).await {
                Ok(()) => Err(first),
                Err(second) => Err(Error::Undo { first: Box::new(first), second: Box::new(second) }),
            },
        }
    }

    async fn try_attach(&self, pod: PodNetwork) -> Result<Attached> {
        open(&pod.netns)?;
        let by = self.choose(&pod)?;
        let mut record = Record { pod, stage: Stage::Adding, by };
        self.keep(&record)?;
        fail::fail_point!("cri::network-recorded");
        let attached = match &mut record.by {
            By::Cni(networks) => self.attach_cni(&record.pod, networks).await?,
            By::Bridge(holding) => {
                let bridge = self.bridge.as_ref().ok_or_else(|| self.none())?;
                let result = bridge.attach(&record.pod.netns, holding, record.pod.bandwidth).await?;
                Attached { ips: prefer(holding.addresses.clone(), self.cni.config.ip_pref), results: vec![result] }
            }
        };
        fail::fail_point!("cri::network-attached");
        record.stage = Stage::Attached(attached.clone());
        self.keep(&record)?;
        Ok(attached)
    }

    /// Which networks the pod gets; addresses of the built-in one are reserved.
    fn choose(&self, pod: &PodNetwork) -> Result<By> {
        let networks = self.cni.networks(pod.conf.as_ref())?;
        if !networks.is_empty() {
            return Ok(By::Cni(networks));
        }
        let bridge = self.bridge.as_ref().ok_or_else(|| self.none())?;
        Ok(By::Bridge(bridge.reserve(&pod.id, &pod.port_mappings)?))
    }

    fn none(&self) -> Error {
        Error::NotInitialized { dir: self.cni.config.conf_dir.clone() }
    }

    async fn attach_cni(&self, pod: &PodNetwork, networks: &mut [Network]) -> Result<Attached> {
        let results = if self.cni.config.setup_serially {
            let mut results = Vec::new();
            for network in networks.iter_mut() {
                results.push(self.cni.add(pod, network).await?);
            }
            results
        } else {
            // All are waited for: what one began must be over before it is undone.
            let all = futures::future::join_all(networks.iter_mut().map(|n| self.cni.add(pod, n))).await;
            all.into_iter().collect::<Result<Vec<_>>>()?
        };
        let (Some(first), Some(network)) = (results.first(), networks.first()) else { return Err(self.none()) };
        let ips = cni::addresses(&network.list.name, first, &network.interface)?;
        if ips.is_empty() {
            let reason = format!("its answer has no address for interface {INTERFACE}");
            return Err(Error::BadResult { network: network.list.name.clone(), reason });
        }
        let results = results.into_iter().map(Value::Object).collect();
        Ok(Attached { ips: prefer(ips, self.cni.config.ip_pref), results })
    }

    /// Undoes what is there of an attachment. The caller has the pod's turn.
    async fn undo(&self, id: &str) -> Result<()> {
        let Some(mut record) = self.record(id) else {
            // Reserved, but never recorded.
            if let Some(bridge) = &self.bridge {
                bridge.release(id);
            }
            return Ok(());
        };
        record.stage = Stage::Removing;
        self.keep(&record)?;
        match &record.by {
            By::Cni(networks) => {
                for network in networks.iter().rev() {
                    self.cni.delete(&record.pod, network).await?;
                }
            }
            By::Bridge(holding) => {
                // Switched off meanwhile: the link goes with its namespace.
                if let Some(bridge) = &self.bridge {
                    bridge.detach(holding).await?;
                }
            }
        }
        fail::fail_point!("cri::network-detached");
        self.records.remove(id)?;
        self.known().remove(id);
        if let Some(bridge) = &self.bridge {
            bridge.release(id);
        }
        Ok(())
    }

    fn keep(&self, record: &Record) -> Result<()> {
        self.records.write(record)?;
        self.known().insert(record.pod.id.clone(), record.clone());
        Ok(())
    }

    fn attachments_of(&self, network: &str) -> Vec<(String, String)> {
        let known = self.known();
        let networks = known.values().flat_map(|record| match &record.by {
            By::Cni(networks) => networks.iter().map(|n| (&record.pod.id, n)).collect(),
            By::Bridge(_) => Vec::new(),
        });
        networks.filter(|(_, n)| n.list.name == network).map(|(id, n)| (id.clone(), n.interface.clone())).collect()
    }
}

fn validate(pod: &PodNetwork) -> Result<()> {
    let invalid = |field, reason: String| Err(Error::Invalid { field, reason });
    if !is_valid_name(&pod.id) {
        return invalid("id", format!("{:?}: want letters, digits, '_', '.', '-', at most 128", pod.id));
    }
    for (field, value) in [("name", &pod.name), ("namespace", &pod.namespace), ("uid", &pod.uid)] {
        if value.contains([';', '=', '\0']) {
            return invalid(field, format!("{value:?} has a character that CNI_ARGS cannot carry"));
        }
    }
    if pod.netns == PathBuf::new() {
        return invalid("netns", "the pod's network namespace is missing".into());
    }
    if let Some(port) = pod.port_mappings.iter().find(|p| p.host_port != 0 && p.container_port == 0) {
        return invalid("port_mappings", format!("host port {} leads to port 0", port.host_port));
    }
    Ok(())
}

/// Puts the preferred address first and leaves the others in their order.
fn prefer(mut ips: Vec<IpAddr>, preference: IpPreference) -> Vec<IpAddr> {
    match preference {
        IpPreference::Ipv4 => ips.sort_by_key(|ip| !ip.is_ipv4()),
        IpPreference::Ipv6 => ips.sort_by_key(|ip| !ip.is_ipv6()),
        IpPreference::Cni => {}
    }
    ips
}
