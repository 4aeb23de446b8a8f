//! Packed layers of real files, kept from one run to the next: packing gigabytes takes longer than to measure them.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_integration::Lab;
use gantry_integration::images::{DEBIAN, Packed, Packing, TAR, compressed, debian_root};
use gantry_integration::lab::run;

/// Makes layers, or has them from an earlier run.
pub struct Layers {
    debian: PathBuf,
    kept: PathBuf,
}

impl Layers {
    pub fn new(lab: &Lab) -> Layers {
        let kept = std::env::temp_dir().join("gantry-bench-layers");
        fs::create_dir_all(&kept).expect("make a directory");
        Layers { debian: debian_root(lab, DEBIAN), kept }
    }

    /// `copies` of the Debian files (75 MB of gzip, 206 MB of files each), and with `more` a third of one again.
    pub fn debian(&self, name: &str, copies: usize, more: bool, packing: Packing) -> Packed {
        self.packed(&format!("{name}-{copies}{more}"), packing, |tar| {
            (0..copies).for_each(|copy| self.add(tar, &format!("{name}-{copy}"), "."));
            if more {
                self.add(tar, &format!("{name}-more"), "./usr/share");
            }
        })
    }

    /// 30,000 files of 0 to 700 bytes, a hundred in a directory.
    pub fn small_files(&self, lab: &Lab, packing: Packing) -> Packed {
        self.packed("small", packing, |tar| {
            let root = lab.path("tree-small");
            for number in 0..30_000 {
                let dir = root.join(format!("{}/{}", number / 3000, number / 100));
                if number % 100 == 0 {
                    fs::create_dir_all(&dir).expect("make a directory");
                }
                let text = format!("{number}\n").repeat(number % 97);
                fs::write(dir.join(number.to_string()), text).expect("write a file");
            }
            append(tar, &root, ".", &[]);
        })
    }

    /// Adds what is below `part` of the Debian files to a tar, in a directory of its own.
    fn add(&self, tar: &Path, below: &str, part: &str) {
        append(tar, &self.debian, part, &[&format!("--transform=flags=rh;s,^\\.,./{below},")]);
    }

    fn packed(&self, key: &str, packing: Packing, make: impl FnOnce(&Path)) -> Packed {
        let (file, note) =
            (self.kept.join(format!("{key}-{packing:?}")), self.kept.join(format!("{key}-{packing:?}.id")));
        if let Ok(diff_id) = fs::read_to_string(&note) {
            return Packed { file, diff_id, packing };
        }
        eprintln!("packing {key} ({packing:?}), once");
        let tar = self.kept.join(format!("{key}-{packing:?}.tar"));
        let _ = fs::remove_file(&tar);
        make(&tar);
        let made = compressed(&tar, packing);
        fs::rename(&made.file, &file).expect("rename the layer");
        if packing != Packing::Plain {
            fs::remove_file(&tar).expect("remove the tar");
        }
        fs::write(&note, &made.diff_id).expect("note the digest");
        Packed { file, ..made }
    }
}

fn append(tar: &Path, directory: &Path, part: &str, more: &[&str]) {
    let (tar, directory) = (tar.to_string_lossy(), directory.to_string_lossy());
    let what = ["--append", "--file", &tar, "--directory", &directory];
    run("tar", &[TAR, more, &what, &[part]].concat());
}
