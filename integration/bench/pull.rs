//! Images from a registry on loopback: fetch and unpack. Each round starts with none of the image's blobs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_integration::Lab;
use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{DEBIAN, Image, Packing, debian_root};
use gantry_integration::lab::run;
use gantry_integration::registry::DockerRegistry;

use crate::Row;
use crate::table::{Bar, Pairs};

/// All rows, in the order they are measured.
pub const ALL: &[Row<Pulls>] = &[
    Row { name: "pull: 1 large gzip layer", bar: Bar::RatioAtMost(0.35), measure: one_layer },
    Row { name: "pull: 8 gzip layers", bar: Bar::RatioAtMost(0.35), measure: eight_layers },
    Row { name: "pull: 8 gzip layers (containerd parallel)", bar: Bar::RatioAtMost(0.6), measure: eight_parallel },
    Row { name: "pull: 30,000 small files", bar: Bar::RatioAtMost(0.4), measure: small_files },
    Row { name: "pull: 1 large zstd layer", bar: Bar::RatioAtMost(0.5), measure: one_zstd },
    Row { name: "pull: 8 gzip layers, by erofs", bar: Bar::None, measure: eight_by_erofs },
    Row {
        name: "pull: 20 clients at once / 1 client (ours / ours)",
        bar: Bar::RatioAtMost(1.1),
        measure: many_clients,
    },
    Row { name: "pull: 1 new layer of 8", bar: Bar::None, measure: shared_layers },
    Row { name: "pull: daemon's peak RSS, 8 layers", bar: Bar::OursAtMost(64.0), measure: peak_memory },
];

/// Daemons, and images of different shapes.
pub struct Pulls {
    ours: Daemon,
    theirs: Daemon,
    parallel: Daemon,
    registry: DockerRegistry,
    lab: Lab,
    debian: PathBuf,
}

/// Copies of the Debian files in one layer: some 500 MB of gzip with 16.
const COPIES: usize = 8;

impl Pulls {
    /// Starts three daemons on a fresh disk.
    pub fn new() -> Pulls {
        let lab = Lab::new();
        lab.on_fresh_disk(40);
        let registry = DockerRegistry::start(&lab);
        let debian = debian_root(&lab, DEBIAN);
        let ours = Daemon::start(&lab);
        let theirs = Daemon::start_with(&lab, Peer::Containerd, "", &[]);
        let config = "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_unpacks = 4\n";
        let parallel = Daemon::start_named(&lab, "p", Peer::Containerd, config, &[]);
        Pulls { ours, theirs, parallel, registry, lab, debian }
    }

    /// A directory of so many copies of the Debian files, unlike any other of another salt.
    fn tree(&self, name: &str, copies: usize) -> PathBuf {
        let root = self.lab.path(&format!("tree-{name}"));
        std::fs::create_dir_all(&root).expect("make a directory");
        for copy in 0..copies {
            let to = root.join(format!("{name}-{copy}"));
            run("cp", &["-a", &self.debian.to_string_lossy(), &to.to_string_lossy()]);
            std::fs::write(to.join("salt"), format!("{name} {copy}")).expect("write the salt");
        }
        root
    }

    fn image(&self, name: &str, layers: &[PathBuf], packing: Packing) -> String {
        let image = layers.iter().fold(Image::new(&self.lab, name), |image, layer| image.layer(layer));
        image.packing(packing).push(&self.registry.host(), name)
    }

    fn large(&self, name: &str, packing: Packing) -> String {
        self.image(name, &[self.tree(name, COPIES)], packing)
    }

    fn eight(&self, name: &str) -> String {
        let layers: Vec<PathBuf> = (0..8).map(|n| self.tree(&format!("{name}{n}"), 2)).collect();
        self.image(name, &layers, Packing::Gzip)
    }
}

fn pull(daemon: &Daemon, image: &str, more: &[&str]) -> Duration {
    let start = Instant::now();
    daemon.ctr(&[&["images", "pull", "--plain-http"], more, &[image]].concat()).ok();
    start.elapsed()
}

fn remove(daemon: &Daemon, image: &str) {
    daemon.ctr(&["images", "rm", "--sync", image]).ok();
    // What was removed is deleted behind the answer; it must not run beside the next round.
    std::thread::sleep(Duration::from_secs(2));
}

/// Milliseconds of a pull by both, in turn, after a round that does not count.
fn rounds(image: &str, theirs: &Daemon, ours: &Daemon, more: (&[&str], &[&str])) -> Pairs {
    let once = |daemon: &Daemon, more: &[&str]| {
        let took = pull(daemon, image, more).as_secs_f64() * 1000.0;
        remove(daemon, image);
        took
    };
    let round = |_| (once(theirs, more.0), once(ours, more.1));
    round(0);
    Pairs { unit: "ms", values: (0..4).map(round).collect() }
}

fn one_layer(pulls: &Pulls) -> Pairs {
    rounds(&pulls.large("large", Packing::Gzip), &pulls.theirs, &pulls.ours, (&[], &[]))
}

fn one_zstd(pulls: &Pulls) -> Pairs {
    rounds(&pulls.large("zstd", Packing::Zstd), &pulls.theirs, &pulls.ours, (&[], &[]))
}

fn eight_layers(pulls: &Pulls) -> Pairs {
    rounds(&pulls.eight("eight"), &pulls.theirs, &pulls.ours, (&[], &[]))
}

fn eight_parallel(pulls: &Pulls) -> Pairs {
    rounds(&pulls.eight("parallel"), &pulls.parallel, &pulls.ours, (&[], &[]))
}

fn eight_by_erofs(pulls: &Pulls) -> Pairs {
    rounds(&pulls.eight("byerofs"), &pulls.theirs, &pulls.ours, (&[], &["--snapshotter", "erofs"]))
}

fn small_files(pulls: &Pulls) -> Pairs {
    let root = pulls.lab.path("tree-small");
    for number in 0..30_000 {
        let dir = root.join(format!("{}/{}", number / 3000, number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&dir).expect("make a directory");
        }
        std::fs::write(dir.join(number.to_string()), format!("{number}\n").repeat(number % 97)).expect("write a file");
    }
    rounds(&pulls.image("small", &[root], Packing::Gzip), &pulls.theirs, &pulls.ours, (&[], &[]))
}

/// One pull, and twenty of the same at once, by ours.
fn many_clients(pulls: &Pulls) -> Pairs {
    let image = pulls.eight("many");
    let one = || pull(&pulls.ours, &image, &[]).as_secs_f64() * 1000.0;
    let many = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            (0..20).for_each(|_| drop(scope.spawn(|| pull(&pulls.ours, &image, &[]))));
        });
        start.elapsed().as_secs_f64() * 1000.0
    };
    let alone = |work: &dyn Fn() -> f64| {
        let took = work();
        remove(&pulls.ours, &image);
        took
    };
    alone(&one);
    Pairs { unit: "ms", values: (0..3).map(|_| (alone(&one), alone(&many))).collect() }
}

/// Seven layers are there already.
fn shared_layers(pulls: &Pulls) -> Pairs {
    let layers: Vec<PathBuf> = (0..9).map(|n| pulls.tree(&format!("shared{n}"), 1)).collect();
    let first = pulls.image("first", &layers[..8], Packing::Gzip);
    let second = pulls.image("second", &[&layers[..7], &layers[8..]].concat(), Packing::Gzip);
    let daemons = [&pulls.theirs, &pulls.ours];
    for daemon in daemons {
        pull(daemon, &first, &[]);
    }
    let pairs = rounds(&second, &pulls.theirs, &pulls.ours, (&[], &[]));
    daemons.iter().for_each(|daemon| remove(daemon, &first));
    pairs
}

fn peak_memory(pulls: &Pulls) -> Pairs {
    let image = pulls.eight("peak");
    let peak = |daemon: &Daemon| {
        let process = Path::new("/proc").join(daemon.pid().to_string());
        // Forgets the highest mark so far (proc_pid_clear_refs(5)).
        std::fs::write(process.join("clear_refs"), "5").expect("reset the peak");
        pull(daemon, &image, &[]);
        let status = std::fs::read_to_string(process.join("status")).expect("read the status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        remove(daemon, &image);
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
    };
    Pairs { unit: "MiB", values: (0..2).map(|_| (peak(&pulls.theirs), peak(&pulls.ours))).collect() }
}
