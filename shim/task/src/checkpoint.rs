//! Tasks into images and back: a checkpoint of one that runs, and one that is made from a checkpoint when it is started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_runtime::spec::NamespaceKind;
use gantry_runtime::{CgroupMode, CriuOptions, Spec};
use gantry_ttrpc::pb::containerd::events as events_pb;
use gantry_ttrpc::pb::containerd::runc::v1::{CheckpointOptions, Options};
use gantry_types::{ErrorKind, Mount};

use crate::Error;
use crate::bundle::Bundle;
use crate::io::Prepared;
use crate::logger::Owner;
use crate::making::{mount, pipe_owner};
use crate::runtime::{Created, ProcessIo, Runtime, Wanted, work_directory};
use crate::supervisor::{CreateTask, Entry, Member, Supervisor, not_found};
use crate::task::{Exit, Moment, Phase, Task};

/// What a container is to be restored from.
#[derive(Debug)]
pub(crate) struct Images {
    directory: PathBuf,
    mounts: Vec<Mount>,
    options: Options,
    prepared: Prepared,
}

impl Supervisor {
    /// Writes a container into images below `path`. Unless its options say exit, it goes on.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` for one that does not run, or the runtime's error: the container goes on then.
    pub fn checkpoint(&mut self, id: &str, path: &str, options: &CheckpointOptions) -> Result<(), Error> {
        let entry = self.entry(id)?;
        if !matches!(entry.task.process("")?.phase, Phase::Running | Phase::Paused) || entry.sandbox.is_some() {
            return Err(Error::refused(ErrorKind::FailedPrecondition, "only a running container can be checkpointed"));
        }
        let criu = criu_options(path, options, &entry.bundle)?;
        entry.runtime.checkpoint(&criu, options)?;
        let checkpoint = path.to_owned();
        let event = events_pb::TaskCheckpointed { container_id: id.to_owned(), checkpoint };
        self.publisher.publish("/tasks/checkpointed", &event);
        Ok(())
    }

    /// Opens the streams of a container that is restored when it is started.
    pub(crate) fn plan(&mut self, wanted: &CreateTask) -> Result<Entry, Error> {
        let directory = PathBuf::from(&wanted.checkpoint);
        if !directory.is_absolute() || !directory.is_dir() {
            let reason = "is not the absolute path of a directory of images";
            return Err(Error::Invalid { what: "checkpoint", value: wanted.checkpoint.clone(), reason });
        }
        let bundle = Bundle::new(&wanted.bundle);
        let spec = Spec::load(bundle.dir()).map_err(Error::runtime("create"))?;
        let owner = pipe_owner(&spec, &wanted.options);
        let prepared = Prepared::open(&wanted.streams, Owner { id: &wanted.id, namespace: &self.namespace }, owner)?;
        let mounts = wanted.rootfs.iter().map(mount).collect();
        let member = Member { streams: wanted.streams.clone(), ..Member::default() };
        Ok(Entry {
            task: Task::created(0),
            bundle,
            runtime: Runtime::Planned,
            members: BTreeMap::from([(String::new(), member)]),
            oom: None,
            owns_pid_namespace: spec.has_new(NamespaceKind::Pid),
            owner,
            sandbox: None,
            images: Some(Images { directory, mounts, options: wanted.options.clone(), prepared }),
        })
    }

    /// Restores a container that is to be; false for others.
    pub(crate) fn restore(&mut self, id: &str) -> Result<bool, Error> {
        let entry = self.entries.get_mut(id).ok_or_else(not_found)?;
        let Some(images) = &entry.images else { return Ok(false) };
        let spec = Spec::load(entry.bundle.dir()).map_err(Error::runtime("restore"))?;
        let terminal = entry.members.get("").is_some_and(|member| member.streams.terminal);
        let wanted = Wanted {
            id,
            namespace: &self.namespace,
            bundle: &entry.bundle,
            spec: &spec,
            mounts: &images.mounts,
            io: if terminal { ProcessIo::Terminal } else { ProcessIo::Fds(images.prepared.child()) },
            options: &images.options,
        };
        // A failure leaves all as it was: it may be tried again.
        let Created { runtime, pid, console } = Runtime::restore(wanted, &images.directory)?;
        entry.runtime = runtime;
        let Some(Images { prepared, .. }) = entry.images.take() else { return Ok(false) };
        entry.task = Task::created(pid);
        let bundle = entry.bundle.clone();
        let attached = prepared.attach(console, &mut self.movers).inspect_err(|_| {
            // The first error is the one to report; its end is noticed as any other's.
            let _ = entry.runtime.kill(libc::SIGKILL, false);
        });
        if let (Some(member), Ok(_)) = (entry.members.get_mut(""), &attached) {
            member.attached = attached?;
            if let Some(logger) = member.attached.logger_pid() {
                self.loggers.insert(logger, None);
            }
        }
        self.note_init(id, pid, &bundle);
        Ok(true)
    }

    /// A container that was to be restored never will be.
    pub(crate) fn give_up(&mut self, id: &str, signal: i32) -> Result<(), Error> {
        if let Some(images) = self.entry_mut(id)?.images.take() {
            self.abandon(images.prepared);
        }
        let exit = Exit { status: 128 + signal.unsigned_abs(), at: Moment::now() };
        self.exited(id, "", exit);
        Ok(())
    }
}

fn criu_options(path: &str, options: &CheckpointOptions, bundle: &Bundle) -> Result<CriuOptions, Error> {
    if !Path::new(path).is_absolute() {
        return Err(Error::Invalid { what: "path", value: path.to_owned(), reason: "is not absolute" });
    }
    let work = match options.work_path.as_str() {
        "" => work_directory(&Options::default(), bundle),
        path => PathBuf::from(path),
    };
    Ok(CriuOptions {
        work: Some(work),
        leave_running: !options.exit,
        tcp_established: options.open_tcp,
        ext_unix_sk: options.external_unix_sockets,
        shell_job: options.terminal,
        file_locks: options.file_locks,
        manage_cgroups: CgroupMode::parse(&options.cgroups_mode).map_err(Error::runtime("checkpoint"))?,
        ..CriuOptions::new(path)
    })
}
