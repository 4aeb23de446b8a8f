//! A sandbox controller in another process.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_plugins::convert::{any_from_wire, any_to_wire, mounts_to_wire, platform_from_wire, time_to_wire};
use gantry_plugins::{RemoteSandboxer, sandbox_wire as wire, wire_types};
use gantry_types::{ErrorKind, Platform, Scope};

use super::{CreateSandbox, Instance, Sandbox, SandboxController, SandboxExit, SandboxStatus};
use crate::tasks::Metric;
use crate::{Error, Result};

/// First and longest pause before a sandbox's end is waited for again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(128), Duration::from_secs(4));

#[async_trait]
impl SandboxController for RemoteSandboxer {
    async fn create(&self, scope: &Scope, sandbox: &Sandbox, create: CreateSandbox) -> Result<()> {
        let message = wire::ControllerCreateRequest {
            sandbox_id: sandbox.id.to_string(),
            rootfs: mounts_to_wire(create.rootfs),
            options: create.options.map(any_to_wire),
            netns_path: create.netns_path,
            annotations: create.annotations,
            sandbox: Some(to_wire(sandbox)),
            sandboxer: self.name().into(),
        };
        self.create(scope, message).await?;
        Ok(())
    }

    async fn start(&self, scope: &Scope, id: &str) -> Result<Instance> {
        let message = wire::ControllerStartRequest { sandbox_id: id.into(), sandboxer: self.name().into() };
        let answer = self.start(scope, message).await?;
        Ok(Instance {
            pid: answer.pid,
            created_at: time(answer.created_at),
            labels: answer.labels,
            address: answer.address,
            version: answer.version,
            spec: answer.spec.map(any_from_wire),
        })
    }

    async fn platform(&self, scope: &Scope, id: &str) -> Result<Platform> {
        let message = wire::ControllerPlatformRequest { sandbox_id: id.into(), sandboxer: self.name().into() };
        let platform = self.platform(scope, message).await?.platform;
        Ok(platform.map_or_else(Platform::default, platform_from_wire))
    }

    async fn stop(&self, scope: &Scope, id: &str, timeout: Option<Duration>) -> Result<()> {
        let message = wire::ControllerStopRequest {
            sandbox_id: id.into(),
            timeout_secs: timeout.map_or(0, |timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX)),
            sandboxer: self.name().into(),
        };
        self.stop(scope, message).await?;
        Ok(())
    }

    /// The other process may end and start again meanwhile.
    async fn wait(&self, scope: &Scope, id: &str) -> Result<SandboxExit> {
        let mut pause = PAUSES.0;
        loop {
            let message = wire::ControllerWaitRequest { sandbox_id: id.into(), sandboxer: self.name().into() };
            match self.wait(scope, message).await {
                Ok(answer) => {
                    let exited_at = time(answer.exited_at).unwrap_or(SystemTime::UNIX_EPOCH);
                    return Ok(SandboxExit { status: answer.exit_status, exited_at });
                }
                Err(failure) if matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) => {}
                Err(failure) => return Err(failure.into()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn status(&self, scope: &Scope, id: &str, verbose: bool) -> Result<SandboxStatus> {
        let message = wire::ControllerStatusRequest { sandbox_id: id.into(), verbose, sandboxer: self.name().into() };
        let answer = self.status(scope, message).await?;
        Ok(SandboxStatus {
            pid: answer.pid,
            state: answer.state,
            info: answer.info,
            created_at: time(answer.created_at),
            exited_at: time(answer.exited_at),
            extra: answer.extra.map(any_from_wire),
            address: answer.address,
            version: answer.version,
        })
    }

    async fn shutdown(&self, scope: &Scope, id: &str) -> Result<()> {
        let message = wire::ControllerShutdownRequest { sandbox_id: id.into(), sandboxer: self.name().into() };
        self.shutdown(scope, message).await?;
        Ok(())
    }

    async fn metrics(&self, scope: &Scope, id: &str) -> Result<Option<Metric>> {
        let message = wire::ControllerMetricsRequest { sandbox_id: id.into(), sandboxer: self.name().into() };
        let Some(metric) = self.metrics(scope, message).await?.metrics else { return Ok(None) };
        let empty = || Error::Unexpected { what: "sandbox controller", reason: "metrics without data".into() };
        let data = any_from_wire(metric.data.ok_or_else(empty)?);
        let timestamp = time(metric.timestamp).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Some(Metric { timestamp, id: metric.id, data }))
    }

    async fn update(&self, scope: &Scope, sandbox: &Sandbox, fields: &[String]) -> Result<()> {
        let message = wire::ControllerUpdateRequest {
            sandbox_id: sandbox.id.to_string(),
            sandboxer: self.name().into(),
            sandbox: Some(to_wire(sandbox)),
            fields: fields.to_vec(),
        };
        self.update(scope, message).await?;
        Ok(())
    }
}

fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| SystemTime::try_from(time).ok())
}

fn to_wire(sandbox: &Sandbox) -> wire_types::Sandbox {
    let Sandbox { id, labels, runtime, spec, sandboxer, extensions, created, updated } = sandbox.clone();
    let options = runtime.options.map(any_to_wire);
    wire_types::Sandbox {
        sandbox_id: id.into(),
        runtime: Some(wire_types::sandbox::Runtime { name: runtime.name, options }),
        spec: spec.map(any_to_wire),
        labels,
        created_at: Some(time_to_wire(created)),
        updated_at: Some(time_to_wire(updated)),
        extensions: extensions.into_iter().map(|(name, any)| (name, any_to_wire(any))).collect(),
        sandboxer,
    }
}
