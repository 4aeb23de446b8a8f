//! `gantry.shim.v1.Extras`: logs, attached streams, bounded executions. What no other shim has.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use gantry_ttrpc::Status;
use gantry_ttrpc::pb::gantry::shim::v1 as pb;
use gantry_types::ErrorKind;
use prost::Message;

use crate::Error;
use crate::service::{decode, on};
use crate::supervisor::{Caller, Supervisor, not_found};
use crate::task::Phase;
use crate::tee::{End, Pipes};

/// Its name on the wire.
pub const SERVICE: &str = "gantry.shim.v1.Extras";

type Answered = Option<Result<Vec<u8>, Status>>;

/// Answers a call; none means that the answer comes later.
pub fn answer(s: &mut Supervisor, caller: Caller, method: &str, payload: &[u8]) -> Answered {
    match method {
        "ReopenLog" => {
            Some(on(payload, |r: pb::ReopenLogRequest| Ok(pb::ReopenLogResponse { dropped: s.reopen_log(&r.id)? })))
        }
        "LimitExec" => Some(on(payload, |r: pb::LimitExecRequest| {
            s.limit_exec(&r.id, &r.exec_id, Duration::from_millis(r.timeout_millis))?;
            Ok(pb::LimitExecResponse {})
        })),
        "Attach" => {
            let attached = decode(payload).and_then(|request| s.attach(request, caller).map_err(Status::from));
            attached.err().map(Err)
        }
        _ => Some(Err(Status::unimplemented(SERVICE, method))),
    }
}

/// The answer to Attach.
pub fn detached(end: End) -> Vec<u8> {
    let end = match end {
        End::Exited => pb::attach_response::End::Exited,
        End::Closed => pb::attach_response::End::Closed,
        End::Lagged => pb::attach_response::End::Lagged,
    };
    pb::AttachResponse { end: end.into() }.encode_to_vec()
}

impl Supervisor {
    /// Opens a container's log anew; gives the number of records that were lost so far.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` where this shim keeps no log of it; that the file cannot be opened.
    pub fn reopen_log(&mut self, id: &str) -> Result<u64, Error> {
        let log = self.entry(id)?.members.get("").and_then(|member| member.attached.log());
        let log = log.ok_or_else(|| Error::refused(ErrorKind::FailedPrecondition, "the container has no log here"))?;
        self.movers.tees.reopen(log)
    }

    /// Gives an execution that was added a cgroup of its own, and a limit from its start on (none if zero).
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` once it was started.
    pub fn limit_exec(&mut self, id: &str, exec: &str, limit: Duration) -> Result<(), Error> {
        let entry = self.entry_mut(id)?;
        if exec.is_empty() || entry.task.process(exec)?.phase != Phase::Created {
            return Err(Error::refused(ErrorKind::FailedPrecondition, "only an execution before its start is limited"));
        }
        entry.members.get_mut(exec).ok_or_else(not_found)?.limit = Some(limit);
        Ok(())
    }

    /// Copies a process's streams to and from the caller's pipes. The end is told later.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a process whose streams do not pass through a log here; a pipe that cannot
    /// be opened, or that nobody reads.
    pub fn attach(&mut self, request: pb::AttachRequest, caller: Caller) -> Result<(), Error> {
        let member = self.entries.get_mut(&request.id).ok_or_else(not_found)?.members.get_mut(&request.exec_id);
        let attached = &mut member.ok_or_else(not_found)?.attached;
        let log = attached.log().ok_or_else(|| {
            Error::refused(ErrorKind::FailedPrecondition, "its streams are not kept by this shim: nothing to attach to")
        })?;
        let mut pipes = Pipes { outputs: [output(&request.stdout)?, output(&request.stderr)?], input: None };
        if let Some(source) = input(&request.stdin)? {
            pipes.input = attached.feed(source, &mut self.movers.copiers)?;
        }
        if let Some(copier) = pipes.input.filter(|_| request.stdin_once) {
            self.once.push((request.id, request.exec_id, copier));
        }
        self.movers.tees.attach(log, pipes, caller)
    }
}

fn output(path: &str) -> Result<Option<OwnedFd>, Error> {
    open(path, OpenOptions::new().write(true))
}

fn input(path: &str) -> Result<Option<OwnedFd>, Error> {
    open(path, OpenOptions::new().read(true))
}

fn open(path: &str, options: &mut OpenOptions) -> Result<Option<OwnedFd>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let opened = options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    opened.map(|file| Some(file.into())).map_err(|error| Error::file("open pipe", path, error))
}
