//! Compares trees: `diff trees LEFT RIGHT` says how they differ, `diff layer LOWER UPPER OUT` writes the layer between.

use std::fs::File;

use gantry_layer::{DiffOptions, diff, tree};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["trees", left, right] => {
            for line in tree::difference(left.as_ref(), right.as_ref())? {
                println!("{line}");
            }
        }
        ["layer", lower, upper, out] => {
            let options = DiffOptions::default();
            println!("{:?}", diff(Some(lower.as_ref()), upper.as_ref(), File::create(out)?, &options)?);
        }
        _ => return Err("usage: diff trees LEFT RIGHT | diff layer LOWER UPPER OUT".into()),
    }
    Ok(())
}
