//! StopContainer and RemoveContainer.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::pb::runtime::v1 as wire;
use gantry_types::{ErrorKind, HasKind};

use super::Container;
use super::create::container_name;
use crate::events::Kind;
use crate::images::Image;
use crate::pods::{absent, found, found_record};
use crate::{Cri, Error, Result};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;
/// How long a killed container may take to end, and its end to be recorded.
const KILL_LIMIT: Duration = Duration::from_secs(30);

impl Cri {
    /// Asks a container to end, and kills it after the grace period. One that has ended, or is not there, is no error.
    pub(crate) async fn stop_container(&self, id: &str, seconds: i64) -> Result<()> {
        let seconds = u64::try_from(seconds).map_err(|_| Error::invalid("timeout", "must not be negative"))?;
        let Some(container) = found(self.containers.get(id))? else { return Ok(()) };
        self.halt_container(&container, Duration::from_secs(seconds)).await
    }

    /// Ends a container after `grace`. Several may ask at once: the shortest grace period counts.
    pub(crate) async fn halt_container(&self, container: &Arc<Container>, grace: Duration) -> Result<()> {
        let running = [wire::ContainerState::ContainerRunning, wire::ContainerState::ContainerUnknown];
        if !running.contains(&container.state()) {
            return Ok(());
        }
        let operation =
            self.engine.ops.begin("container stop", container.id.clone(), Some(&self.scope.namespace), None);
        operation.stage("looking whether the shim answers");
        let given_up = self.engine.tasks.give_up_if_silent(&self.scope, &container.id).await;
        if !grace.is_zero() && !given_up {
            operation.stage("waiting for the container to end by itself");
            self.signal(container, container.facts().stop_signal).await?;
            if self.ended(container, grace).await.is_ok() {
                return Ok(());
            }
        }
        operation.stage("waiting for the killed container");
        self.signal(container, SIGKILL).await?;
        self.ended(container, KILL_LIMIT).await
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<()> {
        let number = u32::try_from(signal).unwrap_or_default();
        let sent = self.engine.tasks.kill(&self.scope, &container.id, "", number, signal == SIGKILL).await;
        match sent {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) if signal == SIGKILL => {
                tracing::warn!(id = container.id, %error, "the shim does not kill; its processes are killed directly");
                self.cgroups.kill(self, &container.id).await
            }
            other => Ok(other?),
        }
    }

    /// Removes a container, killing it before where it runs. One that is not there is no error.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let Some(container) = found(self.containers.get(id))? else { return Ok(()) };
        let cri = self.clone();
        let work = tokio::spawn(async move {
            container.set_going(true);
            let removed = match cri.halt_container(&container, Duration::ZERO).await {
                Ok(()) => cri.discard_container(&container).await,
                failed => failed,
            };
            container.set_going(false);
            removed
        });
        work.await.map_err(|_| Error::Stopped { what: "removing a container" })?
    }

    /// Removes all that an ended container is made of, the record as the last.
    pub(crate) async fn discard_container(&self, container: &Arc<Container>) -> Result<()> {
        let _one = container.gate.lock().await;
        if self.containers.get(&container.id).is_err() {
            return Ok(());
        }
        let id = &container.id;
        self.remove_task(id).await;
        let record = found_record(self.engine.containers.get(&self.scope, id).await)?;
        let snapshotter = record.map(|record| record.snapshotter).unwrap_or_default();
        self.remove_volumes(id, &snapshotter).await?;
        absent(self.engine.snapshots.remove(&self.scope, &snapshotter, id).await)?;
        self.nri_stopped(container).await;
        {
            let _hold = self.nri.hold().await;
            self.nri_remove(container).await;
            absent(self.engine.containers.delete(&self.scope, id).await)?;
            self.containers.remove(id);
        }
        self.rates.forget(id);
        if let Ok(pod) = self.pods.get(&container.pod) {
            self.container_names.free(&container_name(&container.config(), &pod), id);
            self.events.tell(self, Kind::Deleted, id, &pod).await;
        }
        Ok(())
    }
}

/// The signal that asks a container to end: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// [`Error::Invalid`] for a number that stands for no signal.
pub(super) fn stop_signal(config: &wire::ContainerConfig, image: &Image) -> Result<i32> {
    let asked = wire::Signal::try_from(config.stop_signal)
        .map_err(|_| Error::invalid("config.stop_signal", format!("{} is not a signal", config.stop_signal)))?;
    if asked != wire::Signal::RuntimeDefault {
        let name = asked.as_str_name().trim_start_matches("SIGNAL_");
        return number(name)
            .ok_or_else(|| Error::invalid("config.stop_signal", format!("{name} is not a signal here")));
    }
    let of_image = image.facts.config.config().as_ref().and_then(|config| config.stop_signal().clone());
    Ok(of_image.and_then(|name| number(&name)).unwrap_or(SIGTERM))
}

/// The number of a signal: a number, or a name with or without `SIG`, such as `SIGRTMIN+3` or `SIGRTMAXMINUS2`.
fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_uppercase().replace("PLUS", "+").replace("MINUS", "-");
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return offset(rest).map(|offset| SIGRTMIN + offset);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return offset(rest).map(|offset| SIGRTMAX + offset);
    }
    let name = match bare {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The name of a signal as the interface has it.
pub(super) fn wire_signal(number: i32) -> wire::Signal {
    let all = (1..=65).filter_map(|value| wire::Signal::try_from(value).ok());
    let name = |signal: &wire::Signal| signal.as_str_name().trim_start_matches("SIGNAL_").to_owned();
    all.into_iter().find(|signal| self::number(&name(signal)) == Some(number)).unwrap_or(wire::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_number_name_and_distance() {
        for (name, expected) in
            [("SIGTERM", 15), ("term", 15), ("3", 3), ("SIGRTMIN+3", 37), ("SIGRTMAXMINUS14", 50), ("SIGRTMAX", 64)]
        {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        assert_eq!((number("SIGNONE"), number("0"), number("99")), (None, None, None));
    }

    #[test]
    fn every_signal_of_the_interface_has_a_number_and_back() {
        for value in 1..=65 {
            let signal = wire::Signal::try_from(value).unwrap();
            let number = number(signal.as_str_name().trim_start_matches("SIGNAL_"));
            assert!(number.is_some(), "{}", signal.as_str_name());
        }
        assert_eq!(wire_signal(15), wire::Signal::Sigterm);
        assert_eq!(wire_signal(10), wire::Signal::Sigusr1);
    }
}
