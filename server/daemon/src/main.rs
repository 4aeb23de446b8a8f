//! `gantryd`: reads argv and environment, installs logger and signal handlers, runs the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gantry_daemon::app;
use gantry_daemon::config::{self, Config, LogFormat, Mistake, Notice};
use gantry_daemon::notify::notify;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Read where no other is named, and need not exist.
const DEFAULT_CONFIG: &str = "/etc/gantry/config.toml";

/// Our release, and that of the API that is served.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (containerd API 2.4)");

/// The container daemon.
#[derive(Debug, Parser)]
#[command(name = "gantryd", version = VERSION, disable_version_flag = true)]
struct Arguments {
    /// Configuration file
    #[arg(short, long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Socket that clients connect to
    #[arg(short, long, value_name = "PATH")]
    address: Option<PathBuf>,
    /// Directory for what survives a reboot
    #[arg(long, value_name = "PATH")]
    root: Option<PathBuf>,
    /// Directory for what a reboot clears
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// What to log: trace, debug, info, warn, error, fatal or panic
    #[arg(short, long, value_name = "LEVEL", value_parser = parse_level)]
    log_level: Option<LevelFilter>,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: (),
}

fn parse_level(name: &str) -> Result<LevelFilter, String> {
    config::level(name).ok_or_else(|| "not one of trace, debug, info, warn, error, fatal, panic".into())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, notices) = match configure(arguments) {
        Ok(configured) => configured,
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("gantryd: {mistake}"));
            return ExitCode::FAILURE;
        }
    };
    install_logger(&config);
    #[cfg(feature = "failpoints")]
    let _points = gantry_daemon::failpoints::setup(std::env::var_os("FAILPOINTS").is_some());
    for notice in notices {
        match notice.known {
            true => tracing::info!("{notice}"),
            false => tracing::warn!("{notice}"),
        }
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            eprintln!("gantryd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Defaults, then the file, then the environment and the command line.
fn configure(arguments: Arguments) -> Result<(Config, Vec<Notice>), Vec<Mistake>> {
    let mut config = Config::default();
    let fallback = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists());
    let notices = match arguments.config.or_else(fallback) {
        Some(path) => config.read(&path)?,
        None => Vec::new(),
    };
    config.executable = std::env::current_exe().unwrap_or_default();
    config.search = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    config.root = absolute(arguments.root, config.root);
    config.state = absolute(arguments.state, config.state);
    config.address = absolute(arguments.address, config.address);
    config.log_level = arguments.log_level.unwrap_or(config.log_level);
    Ok((config, notices))
}

/// The path of an argument, seen from the current directory; `otherwise` where there is none.
fn absolute(argument: Option<PathBuf>, otherwise: PathBuf) -> PathBuf {
    argument.map_or(otherwise, |path| std::path::absolute(&path).unwrap_or(path))
}

fn install_logger(config: &Config) {
    let quiet = config.log_level.min(LevelFilter::WARN);
    let libraries = ["h2", "hyper", "hyper_util", "reqwest", "rustls", "sled", "tonic", "tower"];
    let filter = Targets::new().with_default(config.log_level).with_targets(libraries.map(|name| (name, quiet)));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match config.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).init(),
    }
}

fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let manager = std::env::var("NOTIFY_SOCKET").ok();
    let tell = |state: &str| {
        if let Some(socket) = &manager
            && let Err(error) = notify(socket, state)
        {
            tracing::warn!(socket, state, %error, "cannot notify the service manager");
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("gantryd").build()?;
    runtime.block_on(async {
        let stopping = CancellationToken::new();
        tokio::spawn(watch_signals(stopping.clone())?);
        let serving = async {
            let result = app::run(config, stopping.clone(), || tell("READY=1")).await;
            stopping.cancel();
            result
        };
        let farewell = async {
            stopping.cancelled().await;
            tell("STOPPING=1");
        };
        let (result, ()) = tokio::join!(serving, farewell);
        Ok(result?)
    })
}

/// Cancels `stopping` at the first SIGTERM or SIGINT; SIGHUP and SIGPIPE end nothing.
fn watch_signals(stopping: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hang_up.recv() => tracing::info!("SIGHUP: there is nothing to reload"),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("stopping");
        stopping.cancel();
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn containerds_command_line_is_accepted() {
        let line = "gantryd -c /c --root /r --state /s -a /a -l debug";
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(arguments.address.as_deref(), Some(Path::new("/a")));
        assert_eq!(arguments.log_level, Some(LevelFilter::DEBUG));
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "root = '/from/file'\nstate = '/from/file'\n").unwrap();
        let line = ["gantryd", "-c", path.to_str().unwrap(), "--root", "/from/argv"];
        let (config, _) = configure(Arguments::try_parse_from(line).unwrap()).unwrap();
        assert_eq!(config.root, Path::new("/from/argv"));
        assert_eq!(config.state, Path::new("/from/file"));
    }
}
