//! The part of the supervisor that makes processes: containers, their start, further processes.

use std::collections::BTreeMap;
use std::time::Instant;

use gantry_runtime::Spec;
use gantry_runtime::spec::{IdMapping, NamespaceKind};
use gantry_ttrpc::pb::containerd::events as events_pb;
use gantry_ttrpc::pb::containerd::runc::v1::Options;
use gantry_ttrpc::pb::containerd::types::Mount as MountPb;
use gantry_types::{ErrorKind, Id, Mount};

use crate::bundle::Bundle;
use crate::io::{PipeOwner, Prepared, Streams};
use crate::logger::Owner;
use crate::poll::{Interest, Token};
use crate::runtime::{Created, Document, ProcessIo, Runtime, Wanted};
use crate::supervisor::{CreateTask, Entry, Member, Supervisor, not_found, own_cgroup, signal_process};
use crate::task::{Step, Task};
use crate::{Error, log};

impl Supervisor {
    /// Makes a container; its first process waits for start. Returns its process id.
    ///
    /// # Errors
    /// `AlreadyExists`, what is wrong with the configuration or streams, or the runtime's error; nothing is left behind.
    pub fn create(&mut self, wanted: CreateTask) -> Result<i32, Error> {
        wanted.id.parse::<Id>().map_err(|error| Error::usage(error.to_string()))?;
        if self.entries.contains_key(&wanted.id) {
            return Err(Error::refused(ErrorKind::AlreadyExists, format!("task {} exists already", wanted.id)));
        }
        let (pid, entry) = if wanted.checkpoint.is_empty() { self.make(&wanted)? } else { (0, self.plan(&wanted)?) };
        if let Some(logger) = entry.members.values().find_map(|member| member.attached.logger_pid()) {
            self.loggers.insert(logger, None);
        }
        if pid > 0 {
            self.note_init(&wanted.id, pid, &entry.bundle);
        }
        self.announce_create(&wanted, pid);
        self.entries.insert(wanted.id, entry);
        Ok(pid)
    }

    /// A first process is known.
    pub(crate) fn note_init(&mut self, id: &str, pid: i32, bundle: &Bundle) {
        self.by_pid.insert(pid, (id.to_owned(), String::new()));
        if let Err(error) = bundle.write_pid(pid) {
            log::warning("init.pid cannot be written", &error);
        }
    }

    /// Starts the first process, or an execution. Returns its process id.
    ///
    /// # Errors
    /// The state machine's refusal or the runtime's error.
    pub fn start(&mut self, id: &str, exec: &str) -> Result<i32, Error> {
        self.entry(id)?.task.check(Step::Start { exec, pid: 0 })?;
        let pid = if exec.is_empty() { self.start_init(id)? } else { self.start_exec(id, exec)? };
        self.step(id, Step::Start { exec, pid })?;
        Ok(pid)
    }

    /// Opens the streams and makes the container; on error nothing is left of either.
    fn make(&mut self, wanted: &CreateTask) -> Result<(i32, Entry), Error> {
        let bundle = Bundle::new(&wanted.bundle);
        let spec = Spec::load(bundle.dir()).map_err(Error::runtime("create"))?;
        let owner = pipe_owner(&spec, &wanted.options);
        let prepared = Prepared::open(&wanted.streams, Owner { id: &wanted.id, namespace: &self.namespace }, owner)?;
        let mounts: Vec<Mount> = wanted.rootfs.iter().map(mount).collect();
        let created = Runtime::create(Wanted {
            id: &wanted.id,
            namespace: &self.namespace,
            bundle: &bundle,
            spec: &spec,
            mounts: &mounts,
            io: if wanted.streams.terminal { ProcessIo::Terminal } else { ProcessIo::Fds(prepared.child()) },
            options: &wanted.options,
        });
        let Created { mut runtime, pid, console } = match created {
            Ok(created) => created,
            Err(error) => {
                self.abandon(prepared);
                return Err(error);
            }
        };
        let attached = prepared.attach(console, &mut self.movers).inspect_err(|_| {
            // The first error is the one to report; what is left of the container is found by its bundle.
            let _ = runtime.delete(true);
        })?;
        let member = Member { streams: wanted.streams.clone(), attached, ..Member::default() };
        let members = BTreeMap::from([(String::new(), member)]);
        let owns_pid_namespace = spec.has_new(NamespaceKind::Pid);
        let task = Task::created(pid);
        Ok((
            pid,
            Entry { task, bundle, runtime, members, oom: None, owns_pid_namespace, owner, sandbox: None, images: None },
        ))
    }

    fn start_init(&mut self, id: &str) -> Result<i32, Error> {
        // What is restored runs at once.
        let restored = self.restore(id)?;
        let entry = self.entries.get_mut(id).ok_or_else(not_found)?;
        if !restored {
            entry.runtime.start()?;
        }
        // Only from here on: the set-up itself is not worth a notice.
        if let Some(watch) = entry.runtime.oom_watch() {
            let number = self.next_watch;
            self.next_watch = number.wrapping_add(1);
            if self.poller.add(&watch, Token::Oom(number), Interest::READ).is_ok() {
                entry.oom = Some((number, watch));
            }
        }
        Ok(entry.task.process("")?.pid)
    }

    fn start_exec(&mut self, id: &str, exec: &str) -> Result<i32, Error> {
        let entry = self.entries.get_mut(id).ok_or_else(not_found)?;
        let member = entry.members.get_mut(exec).ok_or_else(not_found)?;
        let prepared = Prepared::open(&member.streams, Owner { id, namespace: &self.namespace }, entry.owner)?;
        let io = if member.streams.terminal { ProcessIo::Terminal } else { ProcessIo::Fds(prepared.child()) };
        let own = member.limit.is_some().then(|| own_cgroup(exec));
        let executed = match entry.runtime.exec(exec, &member.document, io, own.as_deref()) {
            Ok(executed) => executed,
            Err(error) => {
                self.abandon(prepared);
                return Err(error);
            }
        };
        member.deadline = member.limit.filter(|limit| !limit.is_zero()).map(|limit| Instant::now() + limit);
        member.attached = match prepared.attach(executed.console, &mut self.movers) {
            Ok(attached) => attached,
            Err(error) => {
                // Reaped as a stranger; the execution is still to be started.
                let _ = signal_process(executed.pid, libc::SIGKILL);
                return Err(error);
            }
        };
        member.document = Document::default();
        self.by_pid.insert(executed.pid, (id.to_owned(), exec.to_owned()));
        if let Some(pid) = member.attached.logger_pid() {
            self.loggers.insert(pid, None);
        }
        Ok(executed.pid)
    }

    /// The streams of a process that could not be made.
    pub(crate) fn abandon(&mut self, prepared: Prepared) {
        if let Some(logger) = prepared.abandon() {
            self.end_logger(&logger);
        }
    }

    fn announce_create(&mut self, wanted: &CreateTask, pid: i32) {
        let Streams { stdin, stdout, stderr, terminal } = wanted.streams.clone();
        self.publisher.publish(
            "/tasks/create",
            &events_pb::TaskCreate {
                container_id: wanted.id.clone(),
                bundle: wanted.bundle.clone(),
                rootfs: wanted.rootfs.clone(),
                io: Some(events_pb::TaskIo { stdin, stdout, stderr, terminal }),
                checkpoint: wanted.checkpoint.clone(),
                pid: pid.cast_unsigned(),
            },
        );
    }
}

/// Who owns the pipes: whom the client names, else the process's own user as the host sees it.
pub(crate) fn pipe_owner(spec: &Spec, options: &Options) -> PipeOwner {
    if options.io_uid != 0 || options.io_gid != 0 {
        return PipeOwner { uid: options.io_uid, gid: options.io_gid };
    }
    let Some(process) = &spec.process else { return PipeOwner::default() };
    PipeOwner {
        uid: on_host(&spec.linux.uid_mappings, process.user.uid),
        gid: on_host(&spec.linux.gid_mappings, process.user.gid),
    }
}

fn on_host(mappings: &[IdMapping], id: u32) -> u32 {
    let within = |map: &&IdMapping| id.checked_sub(map.container_id).is_some_and(|offset| offset < map.size);
    let mapped = mappings.iter().find(within).and_then(|map| map.host_id.checked_add(id - map.container_id));
    mapped.unwrap_or(id)
}

pub(crate) fn mount(mount: &MountPb) -> Mount {
    Mount {
        kind: mount.r#type.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_to_the_host() {
        let map = [IdMapping { container_id: 0, host_id: 100_000, size: 10 }];
        assert_eq!((on_host(&map, 3), on_host(&map, 10), on_host(&[], 7)), (100_003, 10, 7));
    }
}
