//! A server with a backend whose commands do what their names say.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use async_trait::async_trait;
use gantry_cri::streaming::{Attach, Backend, Config, Duplex, Exec, Failure, Io, Server, forward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct Commands {
    /// Bytes of input that `count` has read.
    pub read: AtomicU64,
    /// Commands that ended because their client was gone.
    pub left: AtomicU64,
}

fn lost(error: std::io::Error) -> Failure {
    Failure::from(error.to_string())
}

#[async_trait]
impl Backend for Commands {
    async fn exec(&self, request: Exec, mut io: Io) -> Result<i32, Failure> {
        let argument = request.command.get(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        match request.command[0].as_str() {
            "cat" => {
                let (mut from, mut to) = (io.stdin.unwrap(), io.stdout.unwrap());
                tokio::io::copy(&mut from, &mut to).await.map_err(lost)?;
                Ok(0)
            }
            "count" => {
                let (mut from, mut buffer) = (io.stdin.unwrap(), vec![0; 64 << 10]);
                while let Ok(length @ 1..) = from.read(&mut buffer).await {
                    self.read.fetch_add(length as u64, Ordering::Relaxed);
                }
                Ok(0)
            }
            "exit" => Ok(argument as i32),
            "both" => {
                io.stdout.unwrap().write_all(b"out").await.map_err(lost)?;
                io.stderr.unwrap().write_all(b"err").await.map_err(lost)?;
                Ok(3)
            }
            "sizes" => {
                let mut out = io.stdout.unwrap();
                for _ in 0..argument {
                    let size = io.resize.recv().await.ok_or("no size came")?;
                    let line = format!("{}x{}\n", size.width, size.height);
                    out.write_all(line.as_bytes()).await.map_err(lost)?;
                }
                Ok(0)
            }
            "fill" => {
                let mut out = io.stdout.unwrap();
                write_pattern(argument, &mut out).await.map_err(lost)?;
                Ok(0)
            }
            "stay" => {
                io.gone.cancelled().await;
                self.left.fetch_add(1, Ordering::Relaxed);
                Ok(0)
            }
            // Takes nothing of its input.
            "deaf" => {
                let _input = io.stdin;
                io.gone.cancelled().await;
                Ok(0)
            }
            _ => Err(Failure::not_found("no such command")),
        }
    }

    async fn attach(&self, _: Attach, mut io: Io) -> Result<(), Failure> {
        let (mut from, mut to) = (io.stdin.take().unwrap(), io.stdout.take().unwrap());
        tokio::io::copy(&mut from, &mut to).await.map(drop).map_err(lost)
    }

    async fn port_forward(&self, _: &str, port: u16, stream: Duplex) -> Result<(), Failure> {
        forward(None, port, stream).await
    }
}

/// Bytes that show where one is missing.
pub fn pattern(from: u64, length: usize) -> Vec<u8> {
    (from..from + length as u64).map(|at| (at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) as u8).collect()
}

pub async fn write_pattern(total: u64, to: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    let mut at = 0;
    while at < total {
        let length = (total - at).min(1 << 20);
        to.write_all(&pattern(at, length as usize)).await?;
        at += length;
    }
    Ok(())
}

/// How long a test may have its server.
fn limit() -> Duration {
    5 * deadline()
}

/// Breaks off the run when a test does not end: whatever it waits for, that has a name then.
fn watch() -> Sender<()> {
    let (sender, receiver) = channel();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        if receiver.recv_timeout(limit()) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test} has not come to an end after {:?}: the run is broken off", limit());
            std::process::abort();
        }
    });
    sender
}

pub struct Lab {
    pub server: Server,
    pub commands: Arc<Commands>,
    stop: CancellationToken,
    _watch: Sender<()>,
}

impl Lab {
    pub async fn new(config: Config) -> Lab {
        let commands = Arc::new(Commands::default());
        let server = Server::bind(config, commands.clone()).await.unwrap();
        let stop = CancellationToken::new();
        let (serving, stopped) = (server.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(stopped).await });
        Lab { server, commands, stop, _watch: watch() }
    }

    pub fn url(&self, tty: bool, command: &[&str]) -> String {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let exec = Exec { container: "c".into(), command, tty, stdin: true, stdout: true, stderr: !tty };
        self.server.exec(exec).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// The client program.
pub fn client() -> Command {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/tools/bin/streams");
    assert!(tools.exists(), "the client program is missing: run integration/tools/install (needs Go)");
    Command::new(tools)
}

/// Runs the client with a file as its input and another for its output; what it says and how it ended.
pub async fn run(args: Vec<String>, input: Option<PathBuf>, output: Option<PathBuf>) -> Output {
    let input = input.map_or_else(Stdio::null, |path| std::fs::File::open(path).unwrap().into());
    run_with(args, input, output).await
}

/// Runs the client with an input that says nothing and does not end before the client does.
pub async fn run_silent(args: Vec<String>) -> Output {
    let (input, _open) = std::io::pipe().unwrap();
    run_with(args, input.into(), None).await
}

/// How long a client may take: far more than any of them needs, so that a hang is a failure with a name.
fn deadline() -> Duration {
    Duration::from_secs(120 + (crate::commands::amount() >> 22))
}

async fn run_with(args: Vec<String>, input: Stdio, output: Option<PathBuf>) -> Output {
    let mut command = tokio::process::Command::from(client());
    command.args(&args).stdin(input).stderr(Stdio::piped()).kill_on_drop(true);
    command.stdout(output.map_or_else(Stdio::piped, |path| std::fs::File::create(path).unwrap().into()));
    let ended = tokio::time::timeout(deadline(), command.spawn().unwrap().wait_with_output()).await;
    ended.unwrap_or_else(|_| panic!("still running after {:?}: {args:?}", deadline())).unwrap()
}

pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
