//! Pulls an image and runs a container from it, in one process and without a listening gRPC socket.
//!
//! ```sh
//! cargo run -p gantry-engine --example embed -- HOST/PATH:TAG [COMMAND [ARG…]]
//! ```
//!
//! The shim's binary (`cargo build -p gantry-task`) is looked for beside this program's directory and in `PATH`.

use std::path::PathBuf;
use std::time::SystemTime;

use gantry_engine::containers::{Container, Runtime};
use gantry_engine::spec::SpecBuilder;
use gantry_engine::spec::oci_spec::image::{Config as ProcessConfig, ImageConfiguration};
use gantry_engine::tasks::Create;
use gantry_engine::transfer::{ProgressSink, Pull};
use gantry_engine::{Any, Config, Descriptor, Engine, Labels, Scope};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const ID: &str = "embedded";

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let reference = args.next().ok_or("which image? HOST/PATH:TAG [COMMAND…]")?.parse()?;
    let command: Vec<String> = args.collect();
    let base = std::env::temp_dir().join(format!("gantry-embed-{}", std::process::id()));
    let (engine, _report) = Engine::open(config(&base)?).await?;
    let scope = Scope::new("default".parse()?);
    let status = run(&engine, &scope, Pull::new(reference), &command).await;
    engine.close().await;
    std::fs::remove_dir_all(&base)?;
    println!("exit status {}", status?);
    Ok(())
}

/// Directories of its own, and shims from beside this program and from `PATH`.
fn config(base: &std::path::Path) -> Outcome<Config> {
    let mut config = Config::new(base.join("root"), base.join("state"));
    config.executable = std::env::current_exe()?;
    let beside = config.executable.parent().and_then(|dir| dir.parent()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    config.search = beside.into_iter().chain(std::env::split_paths(&path)).collect();
    Ok(config)
}

async fn run(engine: &Engine, scope: &Scope, pull: Pull, command: &[String]) -> Outcome<u32> {
    let (progress, mut told) = ProgressSink::channel();
    let telling = tokio::spawn(async move {
        while let Some(progress) = told.recv().await {
            println!("{} {}", progress.event, progress.name);
        }
    });
    let image = engine.transfer.pull(scope, pull, progress).await?;
    telling.await?;
    let (config, top) = unpacked(engine, scope, &image.target).await?;
    engine.containers.create(scope, container(engine, scope, &image.name, &config, command)?).await?;
    let mounts = engine.snapshots.prepare(scope, "", ID, &top, Labels::new()).await?;
    let output = format!("file://{}", engine.config().state.join("output").display());
    let create =
        Create { container_id: ID.into(), rootfs: mounts, stdout: output.clone(), stderr: output, ..Create::default() };
    engine.tasks.create(scope, create).await?;
    engine.tasks.start(scope, ID, "").await?;
    let exit = engine.tasks.wait(scope, ID, "").await?;
    engine.tasks.delete(scope, ID).await?;
    engine.snapshots.remove(scope, "", ID).await?;
    engine.containers.delete(scope, ID).await?;
    print!("{}", std::fs::read_to_string(engine.config().state.join("output"))?);
    Ok(exit.status)
}

/// The image's configuration, and the snapshot it was unpacked to: a label of the configuration names it.
async fn unpacked(engine: &Engine, scope: &Scope, target: &Descriptor) -> Outcome<(ProcessConfig, String)> {
    let digest = engine.transfer.config_of(scope, target, &gantry_engine::Platform::host()).await?.digest;
    let bytes = engine.content.read_all(scope, &digest, 1 << 20).await?;
    let config: ImageConfiguration = serde_json::from_slice(&bytes)?;
    let label = format!("containerd.io/gc.ref.snapshot.{}", engine.snapshots.default_name());
    let labels = engine.content.info(scope, &digest).await?.labels;
    let top = labels.get(&label).ok_or("the image is not unpacked")?.clone();
    Ok((config.config().clone().unwrap_or_default(), top))
}

fn container(
    engine: &Engine,
    scope: &Scope,
    image: &str,
    config: &ProcessConfig,
    command: &[String],
) -> Outcome<Container> {
    let spec = SpecBuilder::new(&scope.namespace, ID)?.image(config, command).build()?;
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: serde_json::to_vec(&spec)?,
    };
    Ok(Container {
        id: ID.parse()?,
        labels: Labels::new(),
        image: image.to_owned(),
        runtime: Runtime { name: "io.containerd.runc.v2".into(), options: None },
        spec: Some(spec),
        snapshotter: engine.snapshots.default_name().to_owned(),
        snapshot_key: ID.into(),
        sandbox_id: String::new(),
        extensions: Default::default(),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    })
}
