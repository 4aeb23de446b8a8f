//! Which command does what; the small ones are here.

use std::io::Write;
use std::process::ExitCode;

use gantry_client::pb::containerd::services as wire;
use gantry_client::pb::containerd::v1::types::Status;
use gantry_client::types::{ErrorKind, HasKind, Platform};
use gantry_client::{Client, event_json};
use serde_json::{Value, json};

use crate::args::{Args, Command, Content, Images, Namespaces, Snapshots};
use crate::error::Error;
use crate::output::{Table, size};
use crate::{admin, commit, pull, run, show};

/// Runs the command that was asked for.
pub async fn dispatch(args: Args) -> Result<ExitCode, Error> {
    let client = Client::connect(&args.address, args.namespace.clone()).await?;
    let (client, json) = (&client, args.json);
    match args.command {
        Command::Pull(pull) => return pull::pull(client, &pull, json).await,
        Command::Run(run) => return run::run(client, &run).await,
        Command::Exec(exec) => return run::exec(client, &exec).await,
        Command::Commit(wish) => println!("{}", commit::commit(client, &wish).await?),
        Command::Ps => ps(client, json).await?,
        Command::Kill { container, signal, all } => client.task(&container).kill(signal_number(&signal)?, all).await?,
        Command::Rm { containers, force } => rm(client, &containers, force).await?,
        Command::Images { command: Some(Images::Check { names, repair }) } => {
            return admin::check(client, names, repair, json).await;
        }
        Command::Fsck { repair } => return admin::check(client, Vec::new(), repair, json).await,
        Command::Images { command } => images(client, command.unwrap_or(Images::Ls), json).await?,
        Command::Content { command } => content(client, command.unwrap_or(Content::Ls), json).await?,
        Command::Snapshots { snapshotter, command } => {
            snapshots(client, &snapshotter, command.unwrap_or(Snapshots::Ls), json).await?;
        }
        Command::Events { filters } => events(client, filters, json).await?,
        Command::Namespaces { command } => namespaces(client, command.unwrap_or(Namespaces::Ls), json).await?,
        Command::Gc { dry_run, here, kept } => admin::gc(client, dry_run, here, kept, json).await?,
        Command::Ops => admin::ops(client, json).await?,
        Command::Du { all, unowned } => admin::du(client, all, unowned, json).await?,
        Command::Version => version(client, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn version(client: &Client, json: bool) -> Result<(), Error> {
    let daemon = client.version().version(()).await?.into_inner();
    let mut table = Table::new(&["program", "version", "revision"]);
    table.row(["gctr".into(), env!("CARGO_PKG_VERSION").into(), Value::Null]);
    table.row(["daemon".into(), daemon.version.into(), daemon.revision.into()]);
    table.print(json);
    Ok(())
}

async fn ps(client: &Client, json: bool) -> Result<(), Error> {
    let containers = client.containers().list(wire::containers::v1::ListContainersRequest::default()).await?;
    let tasks = client.tasks().list(wire::tasks::v1::ListTasksRequest::default()).await?.into_inner().tasks;
    let mut table = Table::new(&["id", "image", "runtime", "pid", "status", "exit"]);
    for container in containers.into_inner().containers {
        let task = tasks.iter().find(|t| t.id == container.id);
        let status = task.map_or("created", |t| status_word(t.status()));
        let stopped = task.filter(|t| t.status() == Status::Stopped);
        table.row([
            container.id.into(),
            container.image.into(),
            container.runtime.unwrap_or_default().name.into(),
            task.map_or(Value::Null, |t| t.pid.into()),
            status.into(),
            stopped.map_or(Value::Null, |t| t.exit_status.into()),
        ]);
    }
    table.print(json);
    Ok(())
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
        Status::Paused => "paused",
        Status::Pausing => "pausing",
        Status::Unknown => "unknown",
    }
}

/// A signal by number, by name, or by name without `SIG`.
fn signal_number(text: &str) -> Result<u32, Error> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal: nix::sys::signal::Signal =
        name.parse().map_err(|_| Error::Usage(format!("{text:?} is not a signal; try SIGTERM or 15")))?;
    Ok((signal as i32).unsigned_abs())
}

async fn rm(client: &Client, containers: &[String], force: bool) -> Result<(), Error> {
    for id in containers {
        let task = client.task(id);
        if force {
            let waiting = task.wait();
            match task.kill(9, true).await {
                Ok(()) => drop(waiting.await?),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match task.delete().await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => client.remove_container(id).await?,
        }
        println!("{id}");
    }
    Ok(())
}

async fn images(client: &Client, command: Images, json: bool) -> Result<(), Error> {
    use wire::images::v1::{CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest};
    match command {
        Images::Ls => {
            let mut table = Table::new(&["name", "type", "digest", "size", "labels"]);
            for image in client.images().list(ListImagesRequest::default()).await?.into_inner().images {
                let target = image.target.unwrap_or_default();
                let bytes = size(target.size.unsigned_abs(), json);
                table.row([
                    image.name.into(),
                    target.media_type.into(),
                    target.digest.into(),
                    bytes,
                    json!(image.labels),
                ]);
            }
            table.print(json);
        }
        Images::Convert { source, target, form, platform } => {
            println!("{}", admin::convert(client, source, target, &form, &platform).await?);
        }
        Images::Mount { image, target, writable, snapshotter, platform } => {
            let platform = platform.unwrap_or_else(Platform::host);
            show::mount(client, &image, &target, &show::How { writable, snapshotter, platform }).await?;
        }
        Images::Unmount { target, snapshotter } => show::unmount(client, &target, &snapshotter).await?,
        // It has an exit code of its own.
        Images::Check { names, repair } => drop(admin::check(client, names, repair, json).await?),
        Images::Tag { source, target } => {
            let found =
                client.images().get(GetImageRequest { name: source }).await?.into_inner().image.unwrap_or_default();
            let image = Image { name: target.clone(), ..found };
            let request = CreateImageRequest { image: Some(image), ..Default::default() };
            client.images().create(request).await?;
            println!("{target}");
        }
        Images::Rm { names } => {
            for name in names {
                let request = DeleteImageRequest { name: name.clone(), sync: true, ..Default::default() };
                client.images().delete(request).await?;
                println!("{name}");
            }
        }
    }
    Ok(())
}

async fn content(client: &Client, command: Content, json: bool) -> Result<(), Error> {
    use wire::content::v1::{DeleteContentRequest, ListContentRequest, ReadContentRequest};
    match command {
        Content::Ls => {
            let mut table = Table::new(&["digest", "size", "labels"]);
            let mut stream = client.content().list(ListContentRequest::default()).await?.into_inner();
            while let Some(part) = stream.message().await? {
                for info in part.info {
                    table.row([info.digest.into(), size(info.size.unsigned_abs(), json), json!(info.labels)]);
                }
            }
            table.print(json);
        }
        Content::Get { digest } => {
            let request = ReadContentRequest { digest, ..Default::default() };
            let mut stream = client.content().read(request).await?.into_inner();
            let mut out = std::io::stdout().lock();
            while let Some(part) = stream.message().await? {
                out.write_all(&part.data).map_err(Error::io("write the blob"))?;
            }
        }
        Content::Rm { digests } => {
            for digest in digests {
                client.content().delete(DeleteContentRequest { digest: digest.clone() }).await?;
                println!("{digest}");
            }
        }
    }
    Ok(())
}

async fn snapshots(client: &Client, snapshotter: &str, command: Snapshots, json: bool) -> Result<(), Error> {
    use wire::snapshots::v1::{ListSnapshotsRequest, RemoveSnapshotRequest, UsageRequest};
    let list = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..Default::default() };
    if let Snapshots::Rm { keys } = command {
        for key in keys {
            let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.clone() };
            client.snapshots().remove(request).await?;
            println!("{key}");
        }
        return Ok(());
    }
    let usage = matches!(command, Snapshots::Usage);
    let mut table = Table::new(if usage { &["key", "size", "inodes"] } else { &["key", "parent", "kind"] });
    let mut stream = client.snapshots().list(list).await?.into_inner();
    while let Some(part) = stream.message().await? {
        for info in part.info {
            if usage {
                let request = UsageRequest { snapshotter: snapshotter.to_owned(), key: info.name.clone() };
                let used = client.snapshots().usage(request).await?.into_inner();
                table.row([info.name.into(), size(used.size.unsigned_abs(), json), used.inodes.into()]);
            } else {
                let kind = info.kind().as_str_name().to_lowercase();
                table.row([info.name.into(), info.parent.into(), kind.into()]);
            }
        }
    }
    table.print(json);
    Ok(())
}

async fn events(client: &Client, filters: Vec<String>, json: bool) -> Result<(), Error> {
    let request = wire::events::v1::SubscribeRequest { filters };
    let mut stream = client.events().subscribe(request).await?.into_inner();
    while let Some(envelope) = stream.message().await? {
        let time = envelope.timestamp.map(|t| t.to_string()).unwrap_or_default();
        let event = envelope.event.unwrap_or_default();
        let line = if json {
            json!({"time": time, "namespace": envelope.namespace, "topic": envelope.topic, "type": event.type_url,
                   "event": event_json(&event)})
            .to_string()
        } else {
            format!("{time} {} {} {}", envelope.namespace, envelope.topic, event_json(&event))
        };
        println!("{line}");
    }
    Ok(())
}

async fn namespaces(client: &Client, command: Namespaces, json: bool) -> Result<(), Error> {
    use wire::namespaces::v1::{CreateNamespaceRequest, DeleteNamespaceRequest, ListNamespacesRequest, Namespace};
    match command {
        Namespaces::Ls => {
            let mut table = Table::new(&["name", "labels"]);
            let all = client.namespaces().list(ListNamespacesRequest::default()).await?.into_inner().namespaces;
            all.into_iter().for_each(|ns| table.row([ns.name.into(), json!(ns.labels)]));
            table.print(json);
        }
        Namespaces::Create { name } => {
            let namespace = Namespace { name: name.to_string(), ..Default::default() };
            client.namespaces().create(CreateNamespaceRequest { namespace: Some(namespace) }).await?;
            println!("{name}");
        }
        Namespaces::Rm { names } => {
            for name in names {
                client.namespaces().delete(DeleteNamespaceRequest { name: name.to_string() }).await?;
                println!("{name}");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "SIGKILL", "kill", "KILL"] {
            assert_eq!(signal_number(text).unwrap(), 9);
        }
        assert!(signal_number("SIGNOTHING").is_err());
    }
}
