//! Reading the configuration again while everything runs: all of it or nothing.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use gantry_engine::Engine;

use crate::config::{Changes, Config, Mistake, Notice};
use crate::listen::Certificates;
use crate::tls;

/// Reads the configuration again, with what is to be said of it; or all its mistakes.
pub type Read = dyn Fn() -> Result<(Config, Vec<Notice>), Vec<Mistake>> + Send;

/// What the program that runs the daemon gives it for this.
pub struct Control {
    /// Gives something each time the configuration is to be read again.
    pub asked: mpsc::Receiver<()>,
    /// Reads it again, and looks at the disk.
    pub read: Box<Read>,
    /// Changes what is logged.
    pub set_level: Box<dyn Fn(LevelFilter) + Send>,
}

impl Control {
    /// Nobody asks, so that the first configuration holds to the end.
    pub fn none() -> Control {
        let (_, asked) = mpsc::channel(1);
        Control { asked, read: Box::new(|| Err(Vec::new())), set_level: Box::new(|_| {}) }
    }
}

/// What can be exchanged, and what holds now.
pub(crate) struct Reload {
    pub(crate) control: Control,
    pub(crate) config: Config,
    pub(crate) engine: Engine,
    pub(crate) certificates: Certificates,
}

impl Reload {
    /// Reads again when asked to, until `stopping`.
    pub(crate) async fn serve(mut self, stopping: CancellationToken) {
        while let Some(Some(())) = stopping.run_until_cancelled(self.control.asked.recv()).await {
            // Files and certificates are read: nothing for a thread that serves calls.
            tokio::task::block_in_place(|| self.again());
        }
    }

    fn again(&mut self) {
        let read = (self.control.read)().and_then(|(config, notices)| {
            // Read a second time, for between the look and this a file can have changed: then nothing happens either.
            match tls::load(&config.tcp) {
                Ok(certificates) => Ok((config, notices, certificates)),
                Err(errors) => {
                    errors.iter().for_each(|error| tracing::error!("{error}"));
                    Err(Vec::new())
                }
            }
        });
        let (config, notices, certificates) = match read {
            Ok((mut config, notices, certificates)) => {
                config.leave_out_servers();
                (config, notices, certificates)
            }
            Err(mistakes) => {
                mistakes.iter().for_each(|mistake| tracing::error!("{mistake}"));
                tracing::error!(mistakes = mistakes.len(), "the configuration stays as it was");
                return;
            }
        };
        notices.iter().filter(|notice| !notice.known).for_each(|notice| tracing::warn!("{notice}"));
        let changes = Changes::between(&self.config, &config);
        // From here on nothing can fail.
        self.engine.reload(config.engine_registry(), config.engine_runtimes(), config.concurrent_unpacks);
        if self.config.tcp.cert.is_some() && certificates.is_some() {
            self.certificates.set(certificates);
        }
        (self.control.set_level)(config.log_level);
        for name in &changes.restart {
            tracing::warn!("`{name}` has changed, which takes a restart");
        }
        tracing::info!(changed = changes.live.join(", "), "the configuration was read again");
        self.take(config);
    }

    /// Remembers what holds now: what takes a restart is still told the next time.
    fn take(&mut self, config: Config) {
        self.config.log_level = config.log_level;
        self.config.registry = config.registry;
        self.config.hosts_dirs = config.hosts_dirs;
        self.config.runtimes = config.runtimes;
        if self.config.tcp.cert.is_some() && config.tcp.cert.is_some() {
            self.config.tcp = crate::config::TcpSocket {
                ca: config.tcp.ca,
                cert: config.tcp.cert,
                key: config.tcp.key,
                ..self.config.tcp.clone()
            };
        }
    }
}
