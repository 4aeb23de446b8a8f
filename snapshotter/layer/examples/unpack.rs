//! Unpacks layers and says how long it took: `unpack LAYER ROOT [inflate|create|apply|unpack]…`.
//!
//! `inflate` decompresses alone; `create` makes the same directories and files, from memory and with nothing else done to
//! them, which is what no unpacking can be faster than. A number among these is how many helpers inflate from there on.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use gantry_layer::{Decompressor, Helpers, Options, apply, unpack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let layer = arguments.next().ok_or("which layer?")?;
    let root = arguments.next().ok_or("unpack where?")?;
    let mut options = Options::default();
    for what in arguments {
        if let Ok(count) = what.parse() {
            options.helpers = Helpers::Exactly(count);
            continue;
        }
        let file = File::open(&layer)?;
        let bare = if what == "create" { bare(Decompressor::detect(File::open(&layer)?)?)? } else { Vec::new() };
        let start = Instant::now();
        let said = match what.as_str() {
            "inflate" => format!("{} bytes", discard(Decompressor::detect(file)?.helped(options.helpers))?),
            "create" => {
                fs::create_dir_all(&root)?;
                format!("{} files", create(root.as_ref(), &bare)?)
            }
            "apply" => {
                fs::create_dir_all(&root)?;
                format!("{:?}", apply(Decompressor::detect(file)?, root.as_ref(), &options)?)
            }
            _ => {
                fs::create_dir_all(&root)?;
                format!("{:?}", unpack(file, None, root.as_ref(), &options)?)
            }
        };
        println!("{what}: {:.3} s, {said}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn discard(mut stream: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}

/// A directory, or a file with its content.
struct Bare {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

fn bare(tar: impl Read) -> io::Result<Vec<Bare>> {
    let mut all = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let (path, kind) = (entry.path()?.into_owned(), entry.header().entry_type());
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        match kind {
            tar::EntryType::Directory => all.push(Bare { path, content: None }),
            tar::EntryType::Regular => all.push(Bare { path, content: Some(content) }),
            _ => {}
        }
    }
    Ok(all)
}

fn create(root: &Path, bare: &[Bare]) -> io::Result<usize> {
    for Bare { path, content } in bare {
        let path = root.join(path);
        match content {
            None => fs::create_dir_all(path)?,
            Some(content) => fs::write(path, content)?,
        }
    }
    Ok(bare.len())
}
