//! `gctr run` and `gctr exec`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use gantry_client::spec::oci_spec::runtime::{Process, Spec, UserBuilder};
use gantry_client::spec::{Network, SpecBuilder};
use gantry_client::types::{Mount, Platform};
use gantry_client::{Client, Exit, Fifos, Image, NewContainer, Paths, Task};

use crate::args;
use crate::attach::{self, Output};
use crate::error::Error;
use crate::user;

/// Makes a container and runs it; the exit code is the container's.
pub async fn run(client: &Client, args: &args::Run) -> Result<ExitCode, Error> {
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let image = client.image(&args.image, &platform).await?;
    let spec = spec(client, args, &image)?.build().map_err(gantry_client::Error::from)?;
    let labels = args.label.iter().map(|pair| pair_of(pair)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let new = NewContainer {
        id: &args.id,
        image: &image,
        spec: &spec,
        snapshotter: &args.snapshotter,
        runtime: &args.runtime,
        labels,
    };
    client.create_container(&new).await?;
    let result = match with_user(client, args, &image, spec).await {
        Ok(()) => start(client, args).await,
        Err(error) => Err(error),
    };
    if args.rm || result.is_err() {
        let _ = client.task(&args.id).delete().await;
        client.remove_container(&args.id).await?;
    }
    Ok(exit_code(result?))
}

fn spec(client: &Client, args: &args::Run, image: &Image) -> Result<SpecBuilder, Error> {
    let config = image.config.config().clone().unwrap_or_default();
    build(client, args, &config).map_err(|error| match error {
        Built::Spec(error) => Error::Client(error.into()),
        Built::Usage(error) => error,
    })
}

enum Built {
    Spec(gantry_client::spec::SpecError),
    Usage(Error),
}

impl From<gantry_client::spec::SpecError> for Built {
    fn from(error: gantry_client::spec::SpecError) -> Built {
        Built::Spec(error)
    }
}

fn build(
    client: &Client,
    args: &args::Run,
    config: &gantry_client::spec::oci_spec::image::Config,
) -> Result<SpecBuilder, Built> {
    let mut spec = SpecBuilder::new(client.namespace(), &args.id)?.image(config, &args.args).terminal(args.tty);
    if args.privileged {
        spec = spec.privileged();
    }
    if args.read_only {
        spec = spec.readonly_root();
    }
    for pair in &args.env {
        spec = spec.env(pair);
    }
    if let Some(cwd) = &args.cwd {
        spec = spec.cwd(cwd);
    }
    if let Some(hostname) = &args.hostname {
        spec = spec.hostname(hostname);
    }
    if let Some(bytes) = args.memory_limit {
        spec = spec.memory_limit(bytes)?;
    }
    if let Some(cpus) = args.cpus {
        spec = spec.cpu_quota((cpus * 100_000.0) as i64, 100_000)?;
    }
    if let Some(count) = args.pids_limit {
        spec = spec.pids_limit(count)?;
    }
    if args.net == "host" {
        spec = spec.network(&Network::Host)?;
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            spec = spec.mount(&bind(file, file, &["rbind", "ro"]))?;
        }
    }
    for text in &args.mount {
        spec = spec.mount(&parse_mount(text).map_err(Built::Usage)?)?;
    }
    Ok(spec)
}

/// A user by name can only be looked up once the container's file system is there.
async fn with_user(client: &Client, args: &args::Run, image: &Image, spec: Spec) -> Result<(), Error> {
    let from_image = image.config.config().as_ref().and_then(|c| c.user().clone()).filter(|u| !u.is_empty());
    let Some(text) = args.user.clone().or(from_image) else { return Ok(()) };
    let mounts = client.rootfs(&args.snapshotter, &args.id).await?;
    let (uid, gid) = user::resolve(&text, &mounts)?;
    let mut spec = spec;
    if let Some(process) = spec.process_mut() {
        let user = UserBuilder::default().uid(uid).gid(gid).build();
        process.set_user(user.map_err(|e| Error::Usage(e.to_string()))?);
    }
    client.update_spec(&args.id, &spec).await?;
    Ok(())
}

async fn start(client: &Client, args: &args::Run) -> Result<Option<Exit>, Error> {
    let rootfs = client.rootfs(&args.snapshotter, &args.id).await?;
    if args.detach {
        let (task, pid) = client.create_task(&args.id, rootfs, &Paths::default()).await?;
        task.start().await?;
        println!("{} {pid}", args.id);
        return Ok(None);
    }
    let stdin = args.interactive || args.tty;
    let fifos = Fifos::new(args.tty)?;
    let output = Output::start(&fifos)?;
    let (task, _) = client.create_task(&args.id, rootfs, &fifos.paths(stdin)).await?;
    attended(&task, &fifos, output, stdin, args.tty).await.map(Some)
}

async fn attended(task: &Task, fifos: &Fifos, output: Output, stdin: bool, tty: bool) -> Result<Exit, Error> {
    if tty {
        // Before its first process can ask.
        attach::resize(task).await;
    }
    let started = task.start().await;
    if let Err(error) = started {
        let _ = task.delete().await;
        return Err(error.into());
    }
    let exit = attach::until_exit(task, fifos, stdin, tty).await?;
    output.finish().await;
    task.delete().await?;
    Ok(exit)
}

/// Runs one more process in a container; the exit code is the process's.
pub async fn exec(client: &Client, args: &args::Exec) -> Result<ExitCode, Error> {
    let process = process_like_init(client, args).await?;
    let stdin = args.interactive || args.tty;
    let fifos = Fifos::new(args.tty)?;
    let output = Output::start(&fifos)?;
    let id = format!("exec-{}", std::process::id());
    let task = client.task(&args.container).exec(&id, &process, &fifos.paths(stdin)).await?;
    let exit = attended(&task, &fifos, output, stdin, args.tty).await?;
    Ok(exit_code(Some(exit)))
}

/// The init process's own settings, with another command line.
async fn process_like_init(client: &Client, args: &args::Exec) -> Result<Process, Error> {
    let spec = client.spec(&args.container).await?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.args.clone())).set_terminal(Some(args.tty));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.into());
    }
    if let Some(text) = &args.user {
        let (uid, gid) = user::resolve(text, &[])?;
        let user = UserBuilder::default().uid(uid).gid(gid).build();
        process.set_user(user.map_err(|e| Error::Usage(e.to_string()))?);
    }
    Ok(process)
}

fn exit_code(exit: Option<Exit>) -> ExitCode {
    exit.map_or(ExitCode::SUCCESS, |exit| ExitCode::from(u8::try_from(exit.status).unwrap_or(255)))
}

fn pair_of(text: &str) -> Result<(String, String), Error> {
    let pair = text.split_once('=').ok_or_else(|| Error::Usage(format!("{text:?} is not NAME=VALUE")))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn bind(source: &str, target: &str, options: &[&str]) -> Mount {
    Mount {
        kind: "bind".into(),
        source: source.into(),
        target: target.into(),
        options: options.iter().map(|&o| o.into()).collect(),
    }
}

/// Reads `type=bind,src=…,dst=…,options=a:b`, as ctr writes mounts.
fn parse_mount(text: &str) -> Result<Mount, Error> {
    let mut mount = Mount { kind: "bind".into(), ..Mount::default() };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("type", value)) => value.clone_into(&mut mount.kind),
            Some(("src" | "source", value)) => value.clone_into(&mut mount.source),
            Some(("dst" | "destination" | "target", value)) => value.clone_into(&mut mount.target),
            Some(("options", value)) => mount.options = value.split(':').map(str::to_owned).collect(),
            _ => return Err(Error::Usage(format!("mount {text:?}: {part:?} is none of type=, src=, dst=, options="))),
        }
    }
    if mount.kind == "bind" && mount.options.is_empty() {
        mount.options = vec!["rbind".into(), "rw".into()];
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_ctr_writes_them() {
        let mount = parse_mount("type=bind,src=/a,dst=/b,options=rbind:ro").unwrap();
        assert_eq!((mount.source.as_str(), mount.target.as_str()), ("/a", "/b"));
        assert_eq!(mount.options, ["rbind", "ro"]);
        assert!(parse_mount("/a:/b").is_err());
    }
}
