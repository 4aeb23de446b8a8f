//! ExecSync, and what the streaming server asks: executions and attachments with the client's streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::runtime::{Process, Spec};
use gantry_engine::tasks::{Exit, RunExec, RunningExec};
use gantry_types::Any;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use wire::ContainerState;

use crate::containers::Container;
use crate::{Cri, Error, Result};

/// Most bytes kept of each of the two outputs: a message must hold them.
const MAX_OUTPUT: usize = 4 << 20;
/// Type of a process in calls to runtimes.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Exit status of what was killed.
const KILLED: u32 = 137;
/// How long a killed execution may take to be gone.
const REAP: Duration = Duration::from_secs(10);

impl Cri {
    /// Runs a command in a container to its end.
    pub(crate) async fn exec_sync(&self, request: wire::ExecSyncRequest) -> Result<wire::ExecSyncResponse> {
        let seconds = u64::try_from(request.timeout).map_err(|_| Error::invalid("timeout", "must not be negative"))?;
        let limit = (seconds > 0).then(|| Duration::from_secs(seconds));
        let container = self.running(&request.container_id)?;
        let began = Instant::now();
        let (exec_id, running) = self.execute(&container, &request.cmd, false, false, limit).await?;
        let collected = self.collect(&container, &exec_id, running).await;
        if let Some(limit) = limit
            && began.elapsed() >= limit
            && !matches!(&collected, Ok((_, _, exit)) if exit.status != KILLED)
        {
            return Err(Error::Deadline { what: "failed to exec in container".into(), limit });
        }
        let (stdout, stderr, exit) = collected?;
        Ok(wire::ExecSyncResponse { stdout, stderr, exit_code: i32::try_from(exit.status).unwrap_or(i32::MAX) })
    }

    async fn collect(
        &self,
        container: &Container,
        exec_id: &str,
        mut running: RunningExec,
    ) -> Result<(Vec<u8>, Vec<u8>, Exit)> {
        let (stdout, stderr) = (running.streams.stdout.take(), running.streams.stderr.take());
        let reading = async { tokio::try_join!(bounded(stdout), bounded(stderr)) };
        let drain = self.config.runtime.drain_exec_sync_io_timeout;
        tokio::pin!(reading);
        let waiting = self.engine.tasks.wait(&self.scope, &container.id, exec_id);
        tokio::pin!(waiting);
        // Whichever ends first, the output counts until it is closed, or until the time to drain it is over.
        let (output, exit) = tokio::select! {
            output = &mut reading => (Some(output), waiting.await),
            exit = &mut waiting => {
                let output = match drain.is_zero() {
                    true => Some(reading.await),
                    false => tokio::time::timeout(drain, &mut reading).await.ok(),
                };
                (output, exit)
            }
        };
        self.delete_exec(&container.id, exec_id).await;
        let (stdout, stderr) =
            output.ok_or_else(|| Error::Deadline { what: "failed to drain exec io".into(), limit: drain })??;
        Ok((stdout, stderr, exit?))
    }

    /// A container in which something can be executed.
    pub(crate) fn running(&self, id: &str) -> Result<std::sync::Arc<Container>> {
        let container = self.containers.get(id)?;
        match container.state() {
            ContainerState::ContainerRunning => Ok(container),
            state => {
                Err(Error::State(format!("failed to exec in container: container is in {} state", state.as_str_name())))
            }
        }
    }

    /// Starts a command in a container; gives the execution's id.
    pub(crate) async fn execute(
        &self,
        container: &Container,
        command: &[String],
        terminal: bool,
        stdin: bool,
        timeout: Option<Duration>,
    ) -> Result<(String, RunningExec)> {
        if command.is_empty() || command[0].is_empty() {
            return Err(Error::invalid("cmd", "must not be empty"));
        }
        let process = self.process_of(&container.id, command, terminal).await?;
        let exec_id = unique();
        let exec = RunExec {
            container_id: container.id.clone(),
            exec_id: exec_id.clone(),
            process: Some(process),
            terminal,
            stdin,
            timeout,
        };
        let failed = Error::at(format!("failed to exec in container: failed to start exec {exec_id:?}"));
        let running = self.engine.tasks.run_exec(&self.scope, exec).await.map_err(failed)?;
        Ok((exec_id, running))
    }

    /// The container's own process with another command.
    async fn process_of(&self, id: &str, command: &[String], terminal: bool) -> Result<Any> {
        let record = self.engine.containers.get(&self.scope, id).await?;
        let bytes = record.spec.map(|spec| spec.value).unwrap_or_default();
        let broken = |error: serde_json::Error| Error::State(format!("container spec: {error}"));
        let spec: Spec = serde_json::from_slice(&bytes).map_err(broken)?;
        let mut process: Process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(command.to_vec()));
        process.set_terminal(Some(terminal));
        if terminal {
            let mut env = process.env().clone().unwrap_or_default();
            if !env.iter().any(|pair| pair.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
            process.set_env(Some(env));
        }
        let value = serde_json::to_vec(&process).map_err(broken)?;
        Ok(Any { type_url: PROCESS_TYPE.into(), value })
    }

    /// Removes an ended execution; it may just be ending.
    pub(crate) async fn delete_exec(&self, container: &str, exec_id: &str) {
        let waiting = self.engine.tasks.wait(&self.scope, container, exec_id);
        let _ = tokio::time::timeout(REAP, waiting).await;
        if let Err(error) = self.engine.tasks.delete_process(&self.scope, container, exec_id).await {
            tracing::debug!(container, exec_id, %error, "execution not removed");
        }
    }
}

/// What a stream gives, up to the limit; what comes behind that is read and forgotten.
async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return Ok(kept) };
    let broken = |error| Error::State(format!("output of the command is not complete: {error}"));
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut piece).await.map_err(broken)?;
        if length == 0 {
            return Ok(kept);
        }
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&piece[..length.min(room)]);
    }
}

/// An id that no other execution of this daemon has, nor one that an earlier daemon left.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("cri-{:x}-{:x}", crate::now(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_beyond_the_limit_is_read_and_forgotten() {
        let (mut writer, reader) = tokio::io::duplex(1 << 16);
        let writing = tokio::spawn(async move {
            let piece = vec![7; 1 << 16];
            for _ in 0..(MAX_OUTPUT >> 16) + 10 {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &piece).await.unwrap();
            }
        });
        assert_eq!(bounded(Some(reader)).await.unwrap().len(), MAX_OUTPUT);
        writing.await.unwrap();
    }
}
