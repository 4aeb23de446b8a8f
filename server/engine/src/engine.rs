//! The engine itself: opening, its parts, closing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_content::LocalStore;
use gantry_metadata::Db;
use gantry_registry::Registry;
use gantry_shims::{Forwarded, Shims};
use gantry_snapshots::{Btrfs, Erofs, ErofsConfig, Native, Overlay, OverlayConfig, Snapshotter};
use gantry_types::Any;
use tokio::sync::{RwLock, mpsc};
use tokio_util::sync::CancellationToken;

use crate::check::Check;
use crate::containers::Containers;
use crate::content::Content;
use crate::core::{Core, Workers};
use crate::diff::Diff;
use crate::events::Events;
use crate::gc::{Garbage, Gc};
use crate::images::Images;
use crate::keyed::Keyed;
use crate::leases::Leases;
use crate::live::Live;
use crate::monitor::Monitor;
use crate::mounts::Mounts;
use crate::namespaces::Namespaces;
use crate::ops::Ops;
use crate::restore::{Repairs, reconcile, restore_tasks};
use crate::sandboxes::{PODSANDBOX, SHIM, Sandboxes, ShimController};
use crate::snapshots::Snapshots;
use crate::tasks::Tasks;
use crate::transfer::Transfer;
use crate::{Config, Error, Result, plugins};

/// The name by which the restart monitor is left out.
const RESTART_MONITOR: &str = "io.containerd.monitor.container.v1.restart";

/// A running engine. Cheap to clone; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    /// Whose objects are whose.
    pub namespaces: Namespaces,
    /// Blobs.
    pub content: Content,
    /// Snapshots.
    pub snapshots: Snapshots,
    /// Names of images.
    pub images: Images,
    /// What is to run.
    pub containers: Containers,
    /// What groups containers.
    pub sandboxes: Sandboxes,
    /// What runs.
    pub tasks: Tasks,
    /// What keeps objects alive.
    pub leases: Leases,
    /// Mounts by name.
    pub mounts: Mounts,
    /// What happened.
    pub events: Events,
    /// Layers from and to mounts.
    pub diff: Diff,
    /// Pull, push, import, export, tag.
    pub transfer: Transfer,
    /// The collector.
    pub gc: Gc,
    /// Comparing what is stored with what it should be.
    pub check: Check,
    /// What is under way.
    pub ops: Ops,
    pub(crate) core: Arc<Core>,
}

/// What opening found and did.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// What was finished or undone, and what was given up.
    pub repairs: Vec<Repair>,
    /// Tasks found again, as `NAMESPACE/ID`.
    pub tasks: Vec<String>,
}

/// One thing that was not as it should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The object: `bundle default/web`, `snapshot …`, `record …`.
    pub object: String,
    /// What was done about it.
    pub action: String,
}

impl Engine {
    /// Opens the engine's directories, mends what an unclean stop left, and finds running tasks again. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// Only when the directories themselves cannot be made or are in use by another engine.
    pub async fn open(config: Config) -> Result<(Engine, OpenReport)> {
        for directory in [&config.root, &config.state] {
            std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        let mut repairs = Repairs::default();
        let (shims, directories) = config.shims();
        let core = Arc::new(open_core(config, &mut repairs).await?);
        reconcile(&core, &mut repairs).await;
        crate::mounts::reconcile(&core, &mut repairs).await;
        plugins::reconcile_when_reached(&core).await?;
        let (shims, reports) = Shims::open(shims, directories)?;
        let engine = Engine::assemble(&core, shims);
        for (name, remote) in &core.sandboxers {
            engine.sandboxes.register(name, Arc::new(remote.clone()));
        }
        if core.config.check_at_start {
            match engine.check.at_start().await {
                Ok(Some(check)) => drop(tokio::spawn(check.run())),
                Ok(None) => {}
                Err(error) => repairs.note("check of what the last run has committed", format!("not begun: {error}")),
            }
        }
        // Events that waited in the shims come while the tasks are found again.
        tokio::spawn(take_in(engine.tasks.clone(), reports, core.stop.clone()));
        crate::tasks::pipes::clear(&engine.core.config.state);
        // Silent shims of both kinds are waited for at once.
        let mut others = Repairs(Vec::new());
        let (tasks, ()) = tokio::join!(
            restore_tasks(&engine.tasks, &mut repairs),
            crate::sandboxes::restore(&engine.tasks, &mut others)
        );
        repairs.0.extend(others.0);
        for (name, visible) in [(SHIM, false), (PODSANDBOX, true)] {
            engine.sandboxes.register(name, Arc::new(ShimController::new(&engine.tasks, visible)));
        }
        tokio::spawn(engine.gc.clone().serve());
        if !core.config.disabled.iter().any(|part| part == RESTART_MONITOR) {
            tokio::spawn(Monitor::new(&core, engine.containers.clone(), engine.tasks.clone()).serve());
        }
        engine.gc.schedule();
        Ok((engine, OpenReport { repairs: repairs.0, tasks }))
    }

    fn assemble(core: &Arc<Core>, shims: Shims) -> Engine {
        let shared = || Arc::clone(core);
        let gc = Gc::new(core);
        let content = Content { core: shared() };
        let snapshots = Snapshots { core: shared() };
        let images = Images { core: shared(), gc: gc.clone() };
        let leases = Leases { core: shared(), gc: gc.clone() };
        let transfer = Transfer::new(core, content.clone(), snapshots.clone(), images.clone(), leases.clone());
        Engine {
            namespaces: Namespaces { core: shared() },
            containers: Containers { core: shared() },
            sandboxes: Sandboxes::new(core),
            tasks: Tasks::new(core, shims, snapshots.clone()),
            events: core.events.clone(),
            mounts: Mounts::new(core),
            diff: Diff { core: shared(), content: content.clone() },
            check: Check { core: shared(), transfer: transfer.clone() },
            transfer,
            ops: core.ops.clone(),
            core: shared(),
            content,
            snapshots,
            images,
            leases,
            gc,
        }
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Takes over other settings of registries, other shim binaries by runtime name, and how many layers are unpacked at
    /// once. What runs goes on as it began; [`Engine::config`] still gives the settings of the start.
    pub fn reload(&self, registry: gantry_registry::Config, runtimes: BTreeMap<String, PathBuf>, unpacks: usize) {
        if self.core.unpacking.get().most != unpacks.max(1) {
            self.core.unpacking.set(Workers::new(unpacks));
        }
        self.core.registry.set(Registry::new(registry));
        self.tasks.shims.set_runtimes(runtimes);
    }

    /// What a shim says about itself and its runtime (`-info`): a `containerd.types.RuntimeInfo`.
    ///
    /// # Errors
    /// `NotFound` for a runtime without a binary.
    pub async fn runtime_info(
        &self,
        runtime: &str,
        options: Option<&Any>,
    ) -> Result<gantry_ttrpc::pb::containerd::types::RuntimeInfo> {
        let runtime = if runtime.is_empty() { &self.core.config.default_runtime } else { runtime };
        Ok(self.tasks.shims.info(runtime, options).await?)
    }

    /// Stops what the engine does in the background and makes its records durable. Containers run on.
    pub async fn close(&self) {
        self.core.stop.cancel();
        if let Err(error) = self.check.stop_clean().await {
            tracing::warn!(%error, "the next start checks what was committed");
        }
        if let Err(error) = self.core.db.export().await {
            tracing::warn!(%error, "records not exported");
        }
    }
}

async fn open_core(config: Config, repairs: &mut Repairs) -> Result<Core> {
    let db_config = gantry_metadata::Config::new(config.root.join("metadata"));
    let opened = tokio::task::spawn_blocking(move || Db::open(db_config)).await;
    let (db, report) = opened.map_err(Error::task("opening the records"))??;
    report.damage.iter().for_each(|damage| repairs.note("records", damage));
    report.restored.iter().for_each(|name| repairs.note(format!("record {name}"), "restored from the last export"));
    report.lost.iter().for_each(|name| repairs.note(format!("record {name}"), "lost"));
    let plugins = plugins::open(&config)?;
    let store = match plugins.store {
        Some(remote) => remote,
        None => Arc::new(LocalStore::open(config.root.join("content"))?),
    };
    let mut snapshotters = open_snapshotters(&config, repairs);
    for (name, remote) in plugins.snapshotters {
        if snapshotters.insert(name.clone(), remote).is_some() {
            return Err(Error::invalid("proxy_plugins", format!("{name:?} is the name of a built-in snapshotter")));
        }
    }
    check_differs(&config, &plugins.differs)?;
    Ok(Core {
        db,
        store,
        snapshotters,
        differs: plugins.differs,
        sandboxers: plugins.sandboxers,
        registry: Live::new(Registry::new(config.registry.clone())),
        events: Events::new(config.event_log),
        ops: Ops::default(),
        joint: RwLock::new(()),
        joining: Keyed::default(),
        activating: Keyed::default(),
        garbage: Garbage::default(),
        doubt: crate::check::Doubt::default(),
        unpacking: Live::new(Workers::new(config.concurrent_unpacks)),
        stop: CancellationToken::new(),
        config,
    })
}

/// Refuses an order of differs that names one nobody is.
fn check_differs(config: &Config, remote: &BTreeMap<String, gantry_plugins::RemoteDiffer>) -> Result<()> {
    let unknown = |name: &&String| !crate::diff::BUILT_IN.contains(&name.as_str()) && !remote.contains_key(*name);
    match config.differs.iter().find(unknown) {
        Some(name) => Err(Error::invalid("differs", format!("needed differ not loaded: {name}"))),
        None => Ok(()),
    }
}

/// Snapshotters that want more of a host than directories.
const OPTIONAL: [&str; 2] = ["btrfs", "erofs"];

/// A snapshotter that this kernel or disk cannot carry is left out and named.
fn open_snapshotters(config: &Config, repairs: &mut Repairs) -> BTreeMap<String, Arc<dyn Snapshotter>> {
    let settings = &config.snapshotters;
    let root =
        |name: &str, own: &Option<PathBuf>| own.clone().unwrap_or_else(|| config.root.join("snapshots").join(name));
    let mut all: BTreeMap<String, Arc<dyn Snapshotter>> = BTreeMap::new();
    let mut add =
        |name: &str, open: &dyn Fn() -> std::result::Result<Arc<dyn Snapshotter>, gantry_snapshots::Error>| {
            if settings.disabled.iter().any(|disabled| disabled == name) {
                return;
            }
            match open() {
                Ok(snapshotter) => drop(all.insert(name.into(), snapshotter)),
                // Few hosts can carry these: nothing is amiss.
                Err(error @ gantry_snapshots::Error::Unusable { .. }) if OPTIONAL.contains(&name) => {
                    tracing::info!(snapshotter = name, %error, "left out");
                }
                Err(error) => repairs.note(format!("snapshotter {name}"), format!("left out: {error}")),
            }
        };
    let overlay = OverlayConfig {
        upperdir_label: settings.overlay.upperdir_label,
        mount_options: settings.overlay.mount_options.clone(),
        ..OverlayConfig::default()
    };
    add("overlayfs", &|| Ok(Arc::new(Overlay::open(&root("overlayfs", &settings.overlay.root), overlay.clone())?)));
    add("native", &|| Ok(Arc::new(Native::open(&root("native", &settings.native_root))?)));
    let erofs = ErofsConfig {
        overlay_options: settings.erofs.overlay_options.clone(),
        verity: settings.erofs.enable_fsverity,
        immutable: settings.erofs.set_immutable,
        default_size: settings.erofs.default_size,
    };
    add("btrfs", &|| Ok(Arc::new(Btrfs::open(&root("btrfs", &settings.btrfs_root))?)));
    add("erofs", &|| Ok(Arc::new(Erofs::open(&root("erofs", &settings.erofs.root), erofs.clone())?)));
    all
}

/// Takes in what shims report, in their order, until the engine closes.
async fn take_in(tasks: Tasks, mut reports: mpsc::Receiver<Forwarded>, stop: CancellationToken) {
    while let Some(Some(forwarded)) = stop.run_until_cancelled(reports.recv()).await {
        tasks.take_in(forwarded);
    }
}
