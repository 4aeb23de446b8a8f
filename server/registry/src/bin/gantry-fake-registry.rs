//! A registry for first steps and tests: serves images made of programs or trees, from memory, on loopback.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use gantry_registry::fake::{Fake, Options};
use gantry_registry::image::{Builder, Image, tar_of_tree};

const USAGE: &str = "usage: gantry-fake-registry [--listen 127.0.0.1:PORT] IMAGE...
each IMAGE is one of
  --program NAME:TAG=FILE   FROM scratch with one static program, which is its entry point
  --root NAME:TAG=DIR       a root file system: the tree of a directory, with a shell
  --tar NAME:TAG=FILE       the same from a tar, plain or compressed by gzip or zstd
The first line on standard output is the address; then it serves until it is stopped.";

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
        let value = arguments.next().map(String::as_str);
        match (argument.as_str(), value) {
            ("--listen", Some(text)) => {
                options.listen = text.parse().map_err(|_| format!("{text:?} is not an address like 127.0.0.1:5000"))?;
            }
            (kind @ ("--program" | "--root" | "--tar"), Some(text)) => images.push(image(kind, text)?),
            _ => return Err(format!("what does {argument:?} mean?\n{USAGE}")),
        }
    }
    let fake = Fake::start(options).await.map_err(|e| format!("cannot listen: {e}"))?;
    for (repository, tag, image) in images {
        let reference = fake.put_image(&repository, &tag, &image);
        eprintln!("serving {reference} {}", image.descriptor().digest);
    }
    let mut output = std::io::stdout();
    writeln!(output, "{}", fake.address()).and_then(|()| output.flush()).map_err(|e| e.to_string())?;
    tokio::signal::ctrl_c().await.map_err(|e| e.to_string())
}

/// Repository, tag and image of `NAME:TAG=PATH`.
fn image(kind: &str, text: &str) -> Result<(String, String, Image), String> {
    let (name, path) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME:TAG=PATH"))?;
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let valid = format!("localhost/{repository}:{tag}").parse::<gantry_types::Reference>();
    valid.map_err(|e| e.to_string())?;
    let built = match kind {
        "--program" => std::fs::read(path).map(|bytes| program(repository, bytes)),
        "--root" => tar_of_tree(Path::new(path)).map(root),
        _ => std::fs::read(path).and_then(|bytes| plain(&bytes)).map(|tar| root(tar.into())),
    };
    let builder = built.map_err(|e| format!("cannot read {path}: {e}"))?;
    Ok((repository.to_owned(), tag.to_owned(), builder.build()))
}

/// The program is named as the last part of the repository.
fn program(repository: &str, bytes: Vec<u8>) -> Builder {
    let name = repository.rsplit('/').next().unwrap_or(repository);
    Builder::new().file(name, bytes, 0o755).entrypoint(&[&format!("/{name}")])
}

fn root(tar: bytes::Bytes) -> Builder {
    Builder::new()
        .tar(tar)
        .env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .command(&["/bin/sh"])
}

/// A tar without its compression.
fn plain(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut tar)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::decode_all(bytes)?,
        _ => tar = bytes.to_vec(),
    }
    Ok(tar)
}
