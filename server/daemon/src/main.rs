//! `gantryd`: reads argv and environment, installs logger and signal handlers, runs the daemon.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gantry_daemon::app;
use gantry_daemon::config::{self, Config, LogFormat, Mistake, Notice};
use gantry_daemon::notify::notify;
use gantry_daemon::reload::Control;
use gantry_daemon::resident;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

/// Read where no other is named, and need not exist.
const DEFAULT_CONFIG: &str = "/etc/gantry/config.toml";

/// Read after it, whether it says so or not.
const DROP_INS: &str = "/etc/gantry/conf.d/*.toml";

/// Our release, and that of the API that is served.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (containerd API 2.4)");

/// The container daemon.
#[derive(Clone, Debug, Parser)]
#[command(name = "gantryd", version = VERSION, disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file
    #[arg(short, long, value_name = "PATH", global = true)]
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

/// What to do instead of serving.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Show, check or renew the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigCommand {
    /// Print what holds where no file says anything
    Default,
    /// Print what holds, with all imports, as one file
    Dump,
    /// Look for mistakes, also on the disk: all are named, and the exit status tells
    Check,
    /// Print the configuration file in the words of the newest version, without its imports
    Migrate,
}

fn parse_level(name: &str) -> Result<LevelFilter, String> {
    config::level(name).ok_or_else(|| "not one of trace, debug, info, warn, error, fatal, panic".into())
}

fn main() -> ExitCode {
    resident::share_arenas();
    let arguments = Arguments::parse();
    if let Some(Command::Config(command)) = arguments.command {
        return match answer(command, &arguments) {
            Ok(text) => print(&text),
            Err(mistakes) => fail(&mistakes),
        };
    }
    let (config, notices) = match configure(&arguments, false) {
        Ok(configured) => configured,
        Err(mistakes) => return fail(&mistakes),
    };
    let filter = install_logger(&config);
    #[cfg(feature = "failpoints")]
    let _points = gantry_daemon::failpoints::setup(std::env::var_os("FAILPOINTS").is_some());
    for notice in notices {
        match notice.known {
            true => tracing::info!("{notice}"),
            false => tracing::warn!("{notice}"),
        }
    }
    match run(config, arguments, filter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            eprintln!("gantryd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fail(mistakes: &[Mistake]) -> ExitCode {
    mistakes.iter().for_each(|mistake| eprintln!("gantryd: {mistake}"));
    ExitCode::FAILURE
}

fn print(text: &str) -> ExitCode {
    // A reader that has seen enough is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// What a command of `config` prints.
fn answer(command: ConfigCommand, arguments: &Arguments) -> Result<String, Vec<Mistake>> {
    match command {
        ConfigCommand::Default => Ok(config::default_text()),
        ConfigCommand::Dump => Ok(config::dump(&configure(arguments, false)?.0)),
        ConfigCommand::Check => {
            let (_, notices) = configure(arguments, true)?;
            notices.iter().for_each(|notice| eprintln!("gantryd: {notice}"));
            Ok("no mistakes\n".into())
        }
        ConfigCommand::Migrate => match source(arguments) {
            (Some(path), _) => config::migrate(&path),
            (None, _) => Ok(config::default_text()),
        },
    }
}

/// The file to read, and patterns of files after it.
fn source(arguments: &Arguments) -> (Option<PathBuf>, &'static [&'static str]) {
    match &arguments.config {
        Some(path) => (Some(path.clone()), &[]),
        None => (Some(PathBuf::from(DEFAULT_CONFIG)).filter(|path| path.exists()), &[DROP_INS]),
    }
}

/// Defaults, then the files, then the environment and the command line. `look`: at what only the disk can tell, too.
fn configure(arguments: &Arguments, look: bool) -> Result<(Config, Vec<Notice>), Vec<Mistake>> {
    let mut config = Config::default();
    let (path, further) = source(arguments);
    let notices = match look {
        true => config.read_and_look(path.as_deref(), further)?,
        false => config.read(path.as_deref(), further)?,
    };
    config.executable = std::env::current_exe().unwrap_or_default();
    config.search = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    config.root = absolute(&arguments.root, config.root);
    config.state = absolute(&arguments.state, config.state);
    config.grpc.address = absolute(&arguments.address, config.grpc.address);
    config.log_level = arguments.log_level.unwrap_or(config.log_level);
    Ok((config, notices))
}

/// The path of an argument, seen from the current directory; `otherwise` where there is none.
fn absolute(argument: &Option<PathBuf>, otherwise: PathBuf) -> PathBuf {
    argument.as_ref().map_or(otherwise, |path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
}

/// What is logged; libraries only speak of trouble.
fn targets(level: LevelFilter) -> Targets {
    let quiet = level.min(LevelFilter::WARN);
    let libraries = ["h2", "hyper", "hyper_util", "reqwest", "rustls", "sled", "tonic", "tower"];
    Targets::new().with_default(level).with_targets(libraries.map(|name| (name, quiet)))
}

/// Installs the logger; gives what changes its filter.
fn install_logger(config: &Config) -> reload::Handle<Targets, Registry> {
    let (filter, handle) = reload::Layer::new(targets(config.log_level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match config.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(false).with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().with_filter(filter)).init(),
    }
    handle
}

fn run(
    config: Config,
    arguments: Arguments,
    filter: reload::Handle<Targets, Registry>,
) -> Result<(), Box<dyn std::error::Error>> {
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
        let (ask, asked) = mpsc::channel(1);
        tokio::spawn(watch_signals(stopping.clone(), ask)?);
        let set_level = move |level| {
            if let Err(error) = filter.reload(targets(level)) {
                tracing::error!(%error, "the log level stays as it was");
            }
        };
        let read = move || configure(&arguments, true);
        let control = Control { asked, read: Box::new(read), set_level: Box::new(set_level) };
        let serving = async {
            let result = app::run(config, control, stopping.clone(), || tell("READY=1")).await;
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

/// Cancels `stopping` at the first SIGTERM or SIGINT; SIGHUP asks for the configuration to be read again. SIGPIPE ends
/// nothing.
fn watch_signals(stopping: CancellationToken, ask: mpsc::Sender<()>) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                // One that waits to be taken up already will see this change, too.
                _ = hang_up.recv() => drop(ask.try_send(())),
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
    fn containerds_commands_about_configuration_are_accepted() {
        for line in ["gantryd -c /c config dump", "gantryd config dump -c /c"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.config.as_deref(), Some(Path::new("/c")));
            assert!(matches!(arguments.command, Some(Command::Config(ConfigCommand::Dump))));
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "root = '/from/file'\nstate = '/from/file'\n").unwrap();
        let line = ["gantryd", "-c", path.to_str().unwrap(), "--root", "/from/argv"];
        let (config, _) = configure(&Arguments::try_parse_from(line).unwrap(), false).unwrap();
        assert_eq!(config.root, Path::new("/from/argv"));
        assert_eq!(config.state, Path::new("/from/file"));
    }
}
