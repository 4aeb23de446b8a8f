//! The only owner of the shim's tasks: decides by the state machine, acts through the runtime, announces what happened.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gantry_runtime::OomWatch;
use gantry_ttrpc::pb::containerd::events as events_pb;
use gantry_ttrpc::pb::containerd::runc::v1::Options;
use gantry_ttrpc::pb::containerd::types::Mount as MountPb;
use gantry_types::{ErrorKind, HasKind, Id};
use nix::sys::signal::Signal;

use crate::bundle::Bundle;
use crate::checkpoint::Images;
use crate::copy::Copiers;
use crate::events::Publisher;
use crate::io::{Attached, Movers, PipeOwner, Streams};
use crate::logger::Logger;
use crate::poll::Poller;
use crate::reaper::{self, Dead};
use crate::runtime::{Document, Runtime};
use crate::task::{Exit, Moment, Notice, Phase, Process, Step, Task};
use crate::tee::{End, Tees};
use crate::{Error, log};

/// Processes of one task that may be executed at once, dead but undeleted ones included.
const MAX_EXECS: usize = 16 << 10;
/// Status told to those who wait for a process that never ran.
const NEVER_RAN: u32 = 255;
/// How long a created first process may take to die when its task is deleted.
const DYING: Duration = Duration::from_secs(5);
/// How long a logger may go on after the end of its input.
const LOGGER_GRACE: Duration = Duration::from_secs(10);

/// Who waits for an answer: a connection and a stream on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Number of the connection.
    pub connection: u32,
    /// Stream of the call.
    pub stream: u32,
}

/// An answer to somebody who waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Who.
    pub caller: Caller,
    /// What for.
    pub answer: Answer,
}

/// What somebody waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The end of a process.
    Exit(Exit),
    /// The same, without a word about it.
    Stopped,
    /// The end of an attachment.
    Detached(End),
}

/// A container that is wanted.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// Its id.
    pub id: String,
    /// Its bundle's directory.
    pub bundle: String,
    /// Mounts that make its root file system.
    pub rootfs: Vec<MountPb>,
    /// Streams of its first process.
    pub streams: Streams,
    /// Options of the runtime.
    pub options: Options,
    /// Directory of the images it is restored from, if it is not new.
    pub checkpoint: String,
}

/// What is known of a process, for State.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Its life.
    pub process: Process,
    /// Its streams.
    pub streams: &'a Streams,
    /// Its container's bundle.
    pub bundle: &'a Bundle,
}

#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) streams: Streams,
    pub(crate) attached: Attached,
    /// The process document of an execution that was not started yet.
    pub(crate) document: Document,
    pub(crate) waiting: Vec<Caller>,
    /// Who asked to be told of its end and nothing else.
    pub(crate) stopping: Vec<Caller>,
    /// How long it may run in a cgroup of its own.
    pub(crate) limit: Option<Duration>,
    /// When everything in that cgroup is killed.
    pub(crate) deadline: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) task: Task,
    pub(crate) bundle: Bundle,
    pub(crate) runtime: Runtime,
    /// Members by execution; the first process is the empty name.
    pub(crate) members: BTreeMap<String, Member>,
    pub(crate) oom: Option<(u32, OomWatch)>,
    pub(crate) owns_pid_namespace: bool,
    pub(crate) owner: PipeOwner,
    /// When it was made, for a sandbox. Its steps are not announced: it is no task.
    pub(crate) sandbox: Option<Moment>,
    /// What it is to be restored from when it is started.
    pub(crate) images: Option<Images>,
}

/// The tasks of this shim.
#[derive(Debug)]
pub struct Supervisor {
    pub(crate) poller: Rc<Poller>,
    pub(crate) namespace: String,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) by_pid: BTreeMap<i32, (String, String)>,
    pub(crate) loggers: BTreeMap<i32, Option<Instant>>,
    pub(crate) next_watch: u32,
    pub(crate) shutting_down: bool,
    /// Attached inputs whose end is the process's: container, execution, copier.
    pub(crate) once: Vec<(String, String, u32)>,
    /// What moves all streams.
    pub movers: Movers,
    /// Where events go.
    pub publisher: Publisher,
    /// Answers for those who waited; the loop delivers them.
    pub waited: Vec<Waited>,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(poller: Rc<Poller>, namespace: String, publisher: Publisher) -> Supervisor {
        Supervisor {
            movers: Movers { copiers: Copiers::new(Rc::clone(&poller)), tees: Tees::new(Rc::clone(&poller)) },
            once: Vec::new(),
            poller,
            namespace,
            entries: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            loggers: BTreeMap::new(),
            next_watch: 0,
            shutting_down: false,
            publisher,
            waited: Vec::new(),
        }
    }

    /// Notes that a further process is wanted; `document` is its OCI process.
    ///
    /// # Errors
    /// The state machine's refusal, or what is wrong with the document.
    pub fn exec(&mut self, id: &str, exec: &str, streams: Streams, document: Vec<u8>) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        if entry.sandbox.is_some() {
            return Err(Error::refused(ErrorKind::FailedPrecondition, "nothing is executed in a sandbox itself"));
        }
        if !exec.is_empty() {
            exec.parse::<Id>().map_err(|error| Error::usage(error.to_string()))?;
        }
        if entry.members.len() > MAX_EXECS {
            return Err(Error::refused(ErrorKind::ResourceExhausted, "too many executions that were not deleted"));
        }
        entry.task.check(Step::Exec { exec })?;
        let document = entry.runtime.document(document)?;
        entry.members.insert(exec.to_owned(), Member { streams, document, ..Member::default() });
        self.step(id, Step::Exec { exec })
    }

    /// Signals a process; with `all`, every process of the container.
    ///
    /// # Errors
    /// `NotFound` when it has ended, or the runtime's error.
    pub fn kill(&mut self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        entry.task.check_kill(exec)?;
        let signal = i32::try_from(signal).unwrap_or(-1);
        if !exec.is_empty() {
            return signal_process(entry.task.process(exec)?.pid, signal);
        }
        if entry.images.is_some() {
            return self.give_up(id, signal);
        }
        entry.runtime.kill(signal, all)?;
        if signal == libc::SIGKILL && entry.task.process("")?.phase == Phase::Paused {
            // Version 1 control groups let a frozen process die only once it is thawed.
            let _ = entry.runtime.resume();
        }
        Ok(())
    }

    /// Forgets an ended process; for the first one clears the container away. A first process that was never started
    /// is killed.
    ///
    /// # Errors
    /// The state machine's refusal, or the runtime's error: then the task is still there, and delete may be repeated.
    pub fn delete(&mut self, id: &str, exec: &str) -> Result<Process, Error> {
        // Ends that happened before are announced before.
        self.reap();
        if self.entry(id)?.sandbox.is_some() {
            return Err(Error::refused(ErrorKind::FailedPrecondition, "a sandbox is shut down, not deleted"));
        }
        if exec.is_empty() && self.entry(id)?.task.process("")?.phase == Phase::Created {
            self.end_init(id)?;
        }
        let entry = self.entry_mut(id)?;
        entry.task.check(Step::Delete { exec })?;
        let process = *entry.task.process(exec)?;
        if exec.is_empty() {
            entry.runtime.delete(false)?;
            let members: Vec<String> = entry.members.keys().cloned().collect();
            members.iter().for_each(|member| self.forget(id, member));
            self.step(id, Step::Delete { exec })?;
            self.entries.remove(id);
        } else {
            self.forget(id, exec);
            self.step(id, Step::Delete { exec })?;
        }
        Ok(process)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// The state machine's refusal or the runtime's error.
    pub fn pause(&mut self, id: &str) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        entry.task.check(Step::Pause)?;
        entry.runtime.pause()?;
        self.step(id, Step::Pause)
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// The state machine's refusal or the runtime's error.
    pub fn resume(&mut self, id: &str) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        entry.task.check(Step::Resume)?;
        entry.runtime.resume()?;
        self.step(id, Step::Resume)
    }

    /// Changes a container's limits; `resources` is an OCI resources document.
    ///
    /// # Errors
    /// `NotFound` or the runtime's error.
    pub fn update(&mut self, id: &str, resources: &[u8]) -> Result<(), Error> {
        self.entry_mut(id)?.runtime.update(resources)
    }

    /// What a container has used.
    ///
    /// # Errors
    /// `NotFound` or the runtime's error.
    pub fn stats(&self, id: &str) -> Result<gantry_runtime::Stats, Error> {
        let entry = self.entry(id)?;
        entry.runtime.stats(entry.task.process("")?.pid)
    }

    /// A container's processes, each with the execution it is, if any.
    ///
    /// # Errors
    /// `NotFound` or the runtime's error.
    pub fn pids(&self, id: &str) -> Result<Vec<(i32, Option<&str>)>, Error> {
        let entry = self.entry(id)?;
        let exec = |pid: i32| entry.task.execs().find(|(_, process)| process.pid == pid).map(|(name, _)| name);
        if entry.task.process("")?.exit().is_some() {
            return Ok(Vec::new());
        }
        Ok(entry.runtime.pids()?.into_iter().map(|pid| (pid, exec(pid))).collect())
    }

    /// Resizes a process's terminal.
    ///
    /// # Errors
    /// `NotFound`. One without a terminal, or that does not run yet or any more, is left alone.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<(), Error> {
        let entry = self.entry(id)?;
        let process = entry.task.process(exec)?;
        match entry.members.get(exec) {
            Some(member) if process.pid != 0 && process.exit().is_none() => member.attached.resize(width, height),
            _ => Ok(()),
        }
    }

    /// Ends a process's stdin, after what was sent already.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn close_stdin(&mut self, id: &str, exec: &str) -> Result<(), Error> {
        let entry = self.entries.get_mut(id).ok_or_else(not_found)?;
        entry.task.process(exec)?;
        if let Some(member) = entry.members.get_mut(exec) {
            member.attached.close_stdin(&mut self.movers.copiers);
        }
        Ok(())
    }

    /// What is known of a process.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn view(&self, id: &str, exec: &str) -> Result<View<'_>, Error> {
        let entry = self.entry(id)?;
        let process = *entry.task.process(exec)?;
        let member = entry.members.get(exec).ok_or_else(not_found)?;
        Ok(View { process, streams: &member.streams, bundle: &entry.bundle })
    }

    /// How a process ended; none means that the caller is told when it does.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(&mut self, id: &str, exec: &str, caller: Caller) -> Result<Option<Exit>, Error> {
        let entry = self.entry_mut(id)?;
        let exit = entry.task.process(exec)?.exit();
        if exit.is_none()
            && let Some(member) = entry.members.get_mut(exec)
        {
            member.waiting.push(caller);
        }
        Ok(exit)
    }

    /// A connection is gone: nobody waits there any more.
    pub fn disconnected(&mut self, connection: u32) {
        for member in self.entries.values_mut().flat_map(|entry| entry.members.values_mut()) {
            member.waiting.retain(|caller| caller.connection != connection);
            member.stopping.retain(|caller| caller.connection != connection);
        }
        self.movers.tees.disconnected(connection);
    }

    /// Asks the shim to end. Refused silently while there are tasks, as callers expect.
    pub fn shutdown(&mut self) {
        self.shutting_down = self.entries.is_empty();
    }

    /// Whether there is neither task nor sandbox.
    pub fn holds_nothing(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the shim may end now.
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    /// Harvests all children that have ended.
    pub fn reap(&mut self) {
        while let Some(dead) = reaper::reap() {
            self.died(dead);
        }
    }

    /// A watch for out-of-memory kills became readable.
    pub fn oom(&mut self, watch: u32) {
        let id = self.entries.iter().find(|(_, entry)| entry.oom.as_ref().is_some_and(|(number, _)| *number == watch));
        if let Some(id) = id.map(|(id, _)| id.clone()) {
            self.check_oom(&id);
        }
    }

    /// When to call [`Supervisor::tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let others = [self.publisher.deadline(), self.movers.copiers.deadline()];
        let members = self.entries.values().flat_map(|entry| entry.members.values());
        let limits = members.map(|member| member.deadline);
        self.loggers.values().copied().chain(others).chain(limits).flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.publisher.tick(now);
        self.movers.copiers.tick(now);
        self.movers.tees.tick(&self.movers.copiers);
        self.end_inputs();
        self.end_limited(now);
        let detached = self.movers.tees.ended.drain(..);
        self.waited.extend(detached.map(|(caller, end)| Waited { caller, answer: Answer::Detached(end) }));
        for (&pid, deadline) in &mut self.loggers {
            if deadline.is_some_and(|deadline| deadline <= now) {
                Logger { pid }.signal(Signal::SIGKILL);
                *deadline = None;
            }
        }
    }

    fn died(&mut self, dead: Dead) {
        self.loggers.remove(&dead.pid);
        let Some((id, exec)) = self.by_pid.remove(&dead.pid) else { return };
        let exit = Exit { status: dead.status, at: Moment::now() };
        if exec.is_empty() {
            self.init_died(&id, exit);
        }
        self.exited(&id, &exec, exit);
    }

    /// A process has ended: that is noted, announced, and told to those who wait for it.
    pub(crate) fn exited(&mut self, id: &str, exec: &str, exit: Exit) {
        if let Err(error) = self.step(id, Step::Exit { exec, exit }) {
            log::warning("an exit came in no order", &error);
        }
        let Some(member) = self.entries.get_mut(id).and_then(|entry| entry.members.get_mut(exec)) else { return };
        member.attached.process_ended(&mut self.movers.copiers);
        member.deadline = None;
        let exit = Answer::Exit(exit);
        self.waited.extend(member.waiting.drain(..).map(|caller| Waited { caller, answer: exit }));
        self.waited.extend(member.stopping.drain(..).map(|caller| Waited { caller, answer: Answer::Stopped }));
    }

    /// Everything that must be so before the end of a first process is announced.
    fn init_died(&mut self, id: &str, exit: Exit) {
        self.check_oom(id);
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Err(error) = entry.bundle.write_exit(exit) {
            log::warning("the exit status cannot be stored", &error);
        }
        if !entry.owns_pid_namespace {
            // Nothing else ends what it left behind.
            let _ = entry.runtime.kill(libc::SIGKILL, true);
        }
        if let Some((_, watch)) = entry.oom.take() {
            self.poller.remove(std::os::fd::AsFd::as_fd(&watch));
        }
    }

    fn check_oom(&mut self, id: &str) {
        let Some(Entry { oom: Some((_, watch)), .. }) = self.entries.get_mut(id) else { return };
        if watch.take().is_ok_and(|kills| kills > 0) {
            self.publisher.publish("/tasks/oom", &events_pb::TaskOom { container_id: id.to_owned() });
        }
    }

    /// Kills a first process and waits for its end.
    pub(crate) fn end_init(&mut self, id: &str) -> Result<(), Error> {
        if self.entry(id)?.images.is_some() {
            return self.give_up(id, libc::SIGKILL);
        }
        match self.entry_mut(id)?.runtime.kill(libc::SIGKILL, false) {
            // It died by itself, for example because its program could not be executed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            killed => killed?,
        }
        let deadline = Instant::now() + DYING;
        while self.entry(id)?.task.process("")?.exit().is_none() {
            if Instant::now() > deadline {
                return Err(Error::refused(ErrorKind::DeadlineExceeded, "the process does not die"));
            }
            self.reap();
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Kills what has run for too long, with all that it started.
    fn end_limited(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            let late = |member: &Member| member.deadline.is_some_and(|deadline| deadline <= now);
            for (exec, member) in entry.members.iter_mut().filter(|(_, member)| late(member)) {
                member.deadline = None;
                let pid = entry.task.process(exec).map_or(0, |process| process.pid);
                if let Err(error) = entry.runtime.kill_exec(&own_cgroup(exec), pid) {
                    log::warning("an execution that ran for too long cannot be killed", &error);
                }
            }
        }
    }

    /// The end of some attached inputs is the process's own.
    fn end_inputs(&mut self) {
        let (open, ended) = std::mem::take(&mut self.once)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, _, copier)| self.movers.copiers.is_open(*copier));
        self.once = open;
        for (id, exec, _) in ended {
            // It may be gone altogether.
            let _ = self.close_stdin(&id, &exec);
        }
    }

    /// Closes what belongs to a process. Called before its end is forgotten.
    pub(crate) fn forget(&mut self, id: &str, exec: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(mut member) = entry.members.remove(exec) else { return };
        if member.limit.is_some() {
            entry.runtime.leave_exec(&own_cgroup(exec));
        }
        // Whoever still waits does so for an execution that was never started.
        let never = Exit { status: NEVER_RAN, at: Moment::now() };
        let never = Answer::Exit(never);
        self.waited.extend(member.waiting.drain(..).map(|caller| Waited { caller, answer: never }));
        if let Some(logger) = member.attached.finish(&mut self.movers) {
            self.end_logger(&logger);
        }
    }

    pub(crate) fn end_logger(&mut self, logger: &Logger) {
        // One that is not listed any more has been reaped: its id may be another's by now.
        if reaper::has_ended(logger.pid) {
            return;
        }
        logger.signal(Signal::SIGTERM);
        self.loggers.insert(logger.pid, Some(Instant::now() + LOGGER_GRACE));
    }

    pub(crate) fn step(&mut self, id: &str, step: Step<'_>) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        let notice: Notice = entry.task.step(step)?;
        if entry.sandbox.is_none() {
            self.publisher.announce(id, &notice);
        }
        Ok(())
    }

    pub(crate) fn entry(&self, id: &str) -> Result<&Entry, Error> {
        self.entries.get(id).ok_or_else(not_found)
    }

    pub(crate) fn entry_mut(&mut self, id: &str) -> Result<&mut Entry, Error> {
        self.entries.get_mut(id).ok_or_else(not_found)
    }
}

/// Name of an execution's own cgroup.
pub(crate) fn own_cgroup(exec: &str) -> String {
    format!("exec-{exec}")
}

pub(crate) fn not_found() -> Error {
    Error::refused(ErrorKind::NotFound, "container not created: not found")
}

pub(crate) fn signal_process(pid: i32, signal: i32) -> Result<(), Error> {
    // Only this thread reaps, so the id cannot have become another's.
    let signal = Signal::try_from(signal);
    let signal = signal.map_err(|_| Error::refused(ErrorKind::InvalidArgument, "no such signal"))?;
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Err(nix::errno::Errno::ESRCH) => Err(Error::refused(ErrorKind::NotFound, "process already finished")),
        other => other.map_err(|error| Error::system("kill", error)),
    }
}
