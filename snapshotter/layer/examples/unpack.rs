//! Unpacks layers and says how long it took: `unpack LAYER ROOT [inflate|apply|unpack]…`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::Instant;

use gantry_layer::{Decompressor, Options, apply, unpack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let layer = arguments.next().ok_or("which layer?")?;
    let root = arguments.next().ok_or("unpack where?")?;
    for what in arguments {
        let file = File::open(&layer)?;
        let start = Instant::now();
        let said = match what.as_str() {
            "inflate" => format!("{} bytes", discard(Decompressor::detect(file)?)?),
            "apply" => {
                fs::create_dir_all(&root)?;
                format!("{:?}", apply(Decompressor::detect(file)?, root.as_ref(), &Options::default())?)
            }
            _ => {
                fs::create_dir_all(&root)?;
                format!("{:?}", unpack(file, None, root.as_ref(), &Options::default())?)
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
