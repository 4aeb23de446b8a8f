//! A registry for first steps and tests: serves images made of programs or tarballs, from memory, on loopback.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode};

use gantry_registry::fake::{Fake, Options};
use gantry_registry::image::{self, Builder, Image};

const USAGE: &str = "usage: gantry-fake-registry [--listen 127.0.0.1:PORT] IMAGE...
each IMAGE is one of
  program=NAME[:TAG]=FILE   FROM scratch with one static program, which is its entry point
  busybox=NAME[:TAG]=FILE   a busybox program with links for its applets
  rootfs=NAME[:TAG]=FILE    a root file system in a tar, plain or compressed by gzip or zstd
Prints `listening HOST:PORT` and one line `image REFERENCE DIGEST` for each, then serves until it is stopped.";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("gantry-fake-registry: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), String> {
    let mut options = Options::default();
    let mut images = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => {
                let address = arguments.next().and_then(|text| text.parse().ok());
                options.listen = address.ok_or("--listen needs HOST:PORT")?;
            }
            "--help" | "-h" => return Ok(println!("{USAGE}")),
            text => images.push(parse(text)?),
        }
    }
    if images.is_empty() {
        return Err(USAGE.into());
    }
    let fake = Fake::start(options).await.map_err(|e| format!("cannot listen: {e}"))?;
    println!("listening {}", fake.address());
    for (repository, tag, image) in images {
        let reference = fake.put_image(&repository, &tag, &image);
        println!("image {reference} {}", image.descriptor().digest);
    }
    tokio::signal::ctrl_c().await.map_err(|e| e.to_string())
}

/// Repository, tag and image of `KIND=NAME[:TAG]=FILE`.
fn parse(text: &str) -> Result<(String, String, Image), String> {
    let mut parts = text.splitn(3, '=');
    let (Some(kind), Some(name), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{text:?} is not KIND=NAME=FILE\n{USAGE}"));
    };
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let valid = format!("localhost/{repository}:{tag}").parse::<gantry_types::Reference>();
    valid.map_err(|e| e.to_string())?;
    let bytes = std::fs::read(file).map_err(|e| format!("cannot read {file}: {e}"))?;
    let builder = match kind {
        "program" => program(file, bytes),
        "busybox" => busybox(file, &bytes)?,
        "rootfs" => Builder::new().tar(plain(&bytes).map_err(|e| format!("cannot unpack {file}: {e}"))?.into()),
        _ => return Err(format!("unknown kind of image {kind:?}\n{USAGE}")),
    };
    Ok((repository.to_owned(), tag.to_owned(), builder.build()))
}

fn program(file: &str, bytes: Vec<u8>) -> Builder {
    let name = Path::new(file).file_name().and_then(|n| n.to_str()).unwrap_or("program");
    Builder::new().file(name, bytes, 0o755).entrypoint(&[&format!("/{name}")])
}

/// Asks the program itself for its applets.
fn busybox(file: &str, bytes: &[u8]) -> Result<Builder, String> {
    let path = std::fs::canonicalize(file).map_err(|e| e.to_string())?;
    let output = Command::new(path).arg("--list").output().map_err(|e| format!("cannot run {file}: {e}"))?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let applets: Vec<&str> = list.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    Ok(image::busybox(bytes, &applets))
}

/// A tar without its compression.
fn plain(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => drop(flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut tar)?),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::decode_all(bytes)?,
        _ => tar = bytes.to_vec(),
    }
    Ok(tar)
}
