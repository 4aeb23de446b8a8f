//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use gantry_client::types::{Namespace, Platform};

/// Debug tool for the gantry daemon.
#[derive(Debug, Parser)]
#[command(name = "gctr", version, about, max_term_width = 120)]
pub struct Args {
    /// The daemon's socket.
    #[arg(short, long, global = true, env = "GANTRY_ADDRESS", default_value = "/run/gantry/gantry.sock")]
    pub address: PathBuf,
    /// The namespace to work in.
    #[arg(short, long, global = true, env = "GANTRY_NAMESPACE", default_value = "default")]
    pub namespace: Namespace,
    /// Print JSON, one document a line, instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pull an image from a registry and unpack it.
    Pull(Pull),
    /// Run a command in a new container.
    Run(Box<Run>),
    /// List containers and their tasks.
    Ps,
    /// Run one more command in a running container.
    Exec(Exec),
    /// Write what a container has changed as an image: its own image with one more layer.
    Commit(Commit),
    /// Send a signal to a container's processes.
    Kill {
        /// The container.
        container: String,
        /// Signal, by name or number.
        #[arg(short, long, default_value = "SIGTERM")]
        signal: String,
        /// To all processes of the container, not just its first.
        #[arg(long)]
        all: bool,
    },
    /// Remove containers.
    Rm {
        /// The containers.
        #[arg(required = true)]
        containers: Vec<String>,
        /// Kill what still runs.
        #[arg(short, long)]
        force: bool,
    },
    /// List, tag, check and remove images.
    #[command(alias = "image")]
    Images {
        /// Without one: list.
        #[command(subcommand)]
        command: Option<Images>,
    },
    /// Look at blobs.
    Content {
        /// Without one: list.
        #[command(subcommand)]
        command: Option<Content>,
    },
    /// Look at snapshots.
    Snapshots {
        /// Whose snapshots.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
        /// Without one: list.
        #[command(subcommand)]
        command: Option<Snapshots>,
    },
    /// Print events as they happen.
    Events {
        /// Filters; an event is shown when any matches.
        filters: Vec<String>,
    },
    /// List, make and remove namespaces.
    Namespaces {
        /// Without one: list.
        #[command(subcommand)]
        command: Option<Namespaces>,
    },
    /// Collect garbage, and print what went and why.
    Gc {
        /// Only print what would go.
        #[arg(long)]
        dry_run: bool,
        /// Only in the namespace that is worked in; else in all.
        #[arg(long)]
        here: bool,
        /// Print what stays, too, each with the path that keeps it.
        #[arg(long)]
        kept: bool,
    },
    /// Print what the daemon is doing, and what that waits for.
    Ops,
    /// Print whose the bytes under the daemon's root directory are.
    Du {
        /// Print every entry; else sums by kind.
        #[arg(long)]
        all: bool,
        /// Print only what belongs to nobody.
        #[arg(long)]
        unowned: bool,
    },
    /// Compare all blobs and unpacked layers with what they should be. Exits with 1 where something stays broken.
    Fsck {
        /// Fetch again or unpack again what is broken; blobs that cannot be had are removed.
        #[arg(long)]
        repair: bool,
    },
    /// Print the versions of this tool and of the daemon.
    Version,
}

/// Arguments of `pull`.
#[derive(Debug, ClapArgs)]
pub struct Pull {
    /// Full reference: HOST/PATH:TAG.
    pub reference: String,
    /// Platform, OS/ARCH[/VARIANT]; this machine's by default.
    #[arg(long)]
    pub platform: Option<Platform>,
    /// Where to unpack.
    #[arg(long, default_value = "")]
    pub snapshotter: String,
    /// Directory of hosts.toml files.
    #[arg(long, default_value = "")]
    pub hosts_dir: String,
    /// Speak plain http.
    #[arg(long)]
    pub plain_http: bool,
}

/// Arguments of `run`.
#[derive(Debug, ClapArgs)]
pub struct Run {
    /// The image; it must have been pulled.
    pub image: String,
    /// The container's id.
    pub id: String,
    /// The command; the image's own by default.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Remove the container when it has ended.
    #[arg(long)]
    pub rm: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Leave it running and return at once.
    #[arg(short, long, conflicts_with_all = ["tty", "rm"])]
    pub detach: bool,
    /// Keep standard input connected.
    #[arg(short, long)]
    pub interactive: bool,
    /// Environment, NAME=VALUE.
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Mount: type=bind,src=PATH,dst=PATH[,options=a:b].
    #[arg(long)]
    pub mount: Vec<String>,
    /// Network: none or host.
    #[arg(long, default_value = "none", value_parser = ["none", "host"])]
    pub net: String,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<String>,
    /// User and group, UID[:GID] or names that the image knows.
    #[arg(short, long)]
    pub user: Option<String>,
    /// Host name.
    #[arg(long)]
    pub hostname: Option<String>,
    /// Memory limit in bytes.
    #[arg(long)]
    pub memory_limit: Option<i64>,
    /// CPUs, for example 1.5.
    #[arg(long)]
    pub cpus: Option<f64>,
    /// Largest number of processes.
    #[arg(long)]
    pub pids_limit: Option<i64>,
    /// Read-only root file system.
    #[arg(long)]
    pub read_only: bool,
    /// Without the usual fences.
    #[arg(long)]
    pub privileged: bool,
    /// Label, NAME=VALUE.
    #[arg(long)]
    pub label: Vec<String>,
    /// Where its file system lives.
    #[arg(long, default_value = "overlayfs")]
    pub snapshotter: String,
    /// Who runs it.
    #[arg(long, default_value = gantry_client::RUNTIME)]
    pub runtime: String,
    /// Platform, OS/ARCH[/VARIANT]; this machine's by default.
    #[arg(long)]
    pub platform: Option<Platform>,
}

/// Arguments of `exec`.
#[derive(Debug, ClapArgs)]
pub struct Exec {
    /// The container.
    pub container: String,
    /// The command.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Give it a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Keep standard input connected.
    #[arg(short, long)]
    pub interactive: bool,
    /// Environment, NAME=VALUE.
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<String>,
    /// User and group, UID[:GID].
    #[arg(short, long)]
    pub user: Option<String>,
}

/// Arguments of `commit`.
#[derive(Debug, ClapArgs)]
pub struct Commit {
    /// The container.
    pub container: String,
    /// Name of the image.
    pub image: String,
    /// Who made it.
    #[arg(long, default_value = "")]
    pub author: String,
    /// What it is.
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// Change of the configuration: CMD or ENTRYPOINT, and a JSON list of strings.
    #[arg(short, long)]
    pub change: Vec<String>,
    /// Let the container run on meanwhile: files may be caught half written.
    #[arg(long)]
    pub no_pause: bool,
    /// Time of the image, in seconds since 1970; no file in it is newer. The same changes then give the same bytes.
    #[arg(long, env = "SOURCE_DATE_EPOCH")]
    pub source_date_epoch: Option<u64>,
    /// Platform of the container's image, OS/ARCH[/VARIANT]; this machine's by default.
    #[arg(long)]
    pub platform: Option<Platform>,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Images {
    /// List them.
    Ls,
    /// Give an image one more name.
    Tag {
        /// The image.
        source: String,
        /// The new name.
        target: String,
    },
    /// Write an image with its layers in another form.
    Convert {
        /// The image.
        source: String,
        /// Name of the new one.
        target: String,
        /// The form.
        #[arg(long, value_parser = ["plain", "gzip", "zstd", "estargz"])]
        form: String,
        /// Platforms of an index, OS/ARCH[/VARIANT]; all that are here by default.
        #[arg(long)]
        platform: Vec<Platform>,
    },
    /// Show an image's files at a directory, until `unmount`.
    Mount {
        /// The image; it must have been pulled.
        image: String,
        /// The directory.
        target: PathBuf,
        /// Let them be changed; the image stays as it is.
        #[arg(long)]
        writable: bool,
        /// Where the image was unpacked.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
        /// Platform, OS/ARCH[/VARIANT]; this machine's by default.
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// End what `mount` began, changes included.
    Unmount {
        /// The directory.
        target: PathBuf,
        /// Where the image was unpacked.
        #[arg(long, default_value = "overlayfs")]
        snapshotter: String,
    },
    /// Compare what images are made of with what it should be. Exits with 1 where something stays broken.
    Check {
        /// The images.
        #[arg(required = true)]
        names: Vec<String>,
        /// Fetch again or unpack again what is broken; blobs that cannot be had are removed.
        #[arg(long)]
        repair: bool,
    },
    /// Remove names; what nothing refers to any more is collected.
    Rm {
        /// The names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What to do with blobs.
#[derive(Debug, Subcommand)]
pub enum Content {
    /// List them.
    Ls,
    /// Write one to standard output.
    Get {
        /// Its digest.
        digest: String,
    },
    /// Remove some.
    Rm {
        /// Their digests.
        #[arg(required = true)]
        digests: Vec<String>,
    },
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum Snapshots {
    /// List them.
    Ls,
    /// Print their disk usage.
    Usage,
    /// Remove some.
    Rm {
        /// Their keys.
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// What to do with namespaces.
#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// List them.
    Ls,
    /// Make one.
    Create {
        /// Its name.
        name: Namespace,
    },
    /// Remove empty ones.
    Rm {
        /// Their names.
        #[arg(required = true)]
        names: Vec<Namespace>,
    },
}
