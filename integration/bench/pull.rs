//! Images from a registry on loopback: fetch and unpack. Each round starts with none of the image's blobs.
//!
//! With `GANTRY_BENCH_FULL` in the environment: one layer of 500 MB gzip, eight of 100 MB, pulls of 2 GB, archives of 1 GB;
//! else a quarter of that, which shows the same ratios.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_integration::daemon::{Daemon, Peer};
use gantry_integration::images::{Image, Packed, Packing};
use gantry_integration::lab::{our_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Lab, Outcome};

use crate::Row;
use crate::layers::Layers;
use crate::table::{Bar, Pairs};

/// All rows, in the order they are measured.
pub const ALL: &[Row<Pulls>] = &[
    Row { name: "pull: 1 gzip layer", bar: Bar::RatioAtMost(0.35), measure: |p| p.beside("large") },
    Row { name: "pull: 8 gzip layers", bar: Bar::RatioAtMost(0.35), measure: |p| p.beside("eight") },
    Row {
        name: "pull: 8 gzip layers (containerd parallel)",
        bar: Bar::RatioAtMost(0.6),
        measure: |p| p.beside_parallel("eight"),
    },
    Row { name: "pull: 30,000 small files", bar: Bar::RatioAtMost(0.4), measure: |p| p.beside("small") },
    Row { name: "pull: 1 layer, zstd", bar: Bar::RatioAtMost(0.5), measure: |p| p.beside("large-zstd") },
    Row { name: "pull: 8 layers, zstd", bar: Bar::RatioAtMost(0.5), measure: |p| p.beside("eight-zstd") },
    Row { name: "pull: 30,000 small files, zstd", bar: Bar::RatioAtMost(0.5), measure: |p| p.beside("small-zstd") },
    Row {
        name: "pull: 20 clients at once (one client / twenty, both ours)",
        bar: Bar::RatioAtMost(1.1),
        measure: many_clients,
    },
    Row { name: "pull: 1 new layer of 8", bar: Bar::None, measure: shared_layers },
    Row { name: "pull: daemon's peak RSS, 12 layers of both kinds", bar: Bar::OursAtMost(64.0), measure: peak_memory },
    Row { name: "import: 10 gzip layers", bar: Bar::RatioAtMost(0.35), measure: import },
    Row { name: "export: 10 gzip layers", bar: Bar::RatioAtMost(0.6), measure: export },
    Row {
        name: "pull: 1 layer (skopeo + umoci)",
        bar: Bar::None,
        measure: |p| p.beside_peer("large", skopeo_and_umoci),
    },
    Row { name: "pull: 8 layers (podman)", bar: Bar::None, measure: |p| p.beside_peer("eight", podman) },
    Row { name: "pull: 8 layers, by erofs", bar: Bar::None, measure: by_erofs },
    Row {
        name: "limit: bare decompression of the gzip layer / pull",
        bar: Bar::None,
        measure: |p| p.limit("large", "inflate"),
    },
    Row {
        name: "limit: bare decompression of the zstd layer / pull",
        bar: Bar::None,
        measure: |p| p.limit("large-zstd", "inflate"),
    },
    Row {
        name: "limit: bare creation of the layer's files / pull",
        bar: Bar::None,
        measure: |p| p.limit("large", "create"),
    },
    Row {
        name: "limit: bare creation of 30,000 files / pull",
        bar: Bar::None,
        measure: |p| p.limit("small", "create"),
    },
];

/// Daemons, and images of different shapes.
pub struct Pulls {
    ours: Daemon,
    theirs: Daemon,
    parallel: Daemon,
    registry: DockerRegistry,
    layers: Layers,
    /// What was pushed, by its name.
    pushed: RefCell<HashMap<String, String>>,
    lab: Lab,
}

/// Copies of the Debian files in the large layer, and in each of eight.
fn copies() -> (usize, usize) {
    if is_full() { (7, 1) } else { (2, 0) }
}

/// Whether the sizes are those that the bars speak of.
fn is_full() -> bool {
    std::env::var_os("GANTRY_BENCH_FULL").is_some()
}

/// What containerd has for many layers at once.
const PARALLEL: &str = "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = 8\n\
                        concurrent_layer_fetch_buffer = 8388608\nmax_concurrent_unpacks = 8\n";
/// Rounds that count.
const ROUNDS: usize = 3;

impl Pulls {
    /// Starts three daemons on a fresh disk.
    pub fn new() -> Pulls {
        let lab = Lab::new();
        lab.on_fresh_disk(if is_full() { 14 } else { 12 });
        let registry = DockerRegistry::start(&lab);
        let layers = Layers::new(&lab);
        let ours = Daemon::start(&lab);
        let theirs = Daemon::start_with(&lab, Peer::Containerd, "", &[]);
        let parallel = Daemon::start_named(&lab, "p", Peer::Containerd, PARALLEL, &[]);
        Pulls { ours, theirs, parallel, registry, layers, pushed: RefCell::default(), lab }
    }

    fn made_of(&self, name: &str) -> Vec<Packed> {
        let (shape, packing) = match name.strip_suffix("-zstd") {
            Some(shape) => (shape, Packing::Zstd),
            None => (name, Packing::Gzip),
        };
        let (large, part) = copies();
        let part = |number: usize| self.layers.debian(&format!("part{number}"), part, true, packing);
        match shape {
            "large" => vec![self.layers.debian("large", large, false, packing)],
            "small" => vec![self.layers.small_files(&self.lab, packing)],
            "eight" => (0..8).map(part).collect(),
            "other-eight" => (0..7).chain([8]).map(part).collect(),
            "ten" => (0..10).map(part).collect(),
            // Of layers that other images have, too.
            "huge" => {
                let all = ["large", "eight", "large-zstd", "eight-zstd"].map(|name| self.made_of(name));
                all.concat().into_iter().take(1 + 8 + 1 + 2).collect()
            }
            other => panic!("no image {other}"),
        }
    }

    /// The reference of an image, which is pushed where it was not yet.
    fn image(&self, name: &str) -> String {
        if let Some(image) = self.pushed.borrow().get(name) {
            return image.clone();
        }
        let layers = self.made_of(name);
        let image = layers.iter().fold(Image::new(&self.lab, name), Image::packed).push(&self.registry.host(), name);
        self.pushed.borrow_mut().insert(name.to_owned(), image.clone());
        image
    }

    fn beside(&self, name: &str) -> Pairs {
        let image = self.image(name);
        rounds(|| pull_and_remove(&self.theirs, &image, &[]), || pull_and_remove(&self.ours, &image, &[]))
    }

    fn beside_parallel(&self, name: &str) -> Pairs {
        let image = self.image(name);
        rounds(|| pull_and_remove(&self.parallel, &image, &[]), || pull_and_remove(&self.ours, &image, &[]))
    }

    fn beside_peer(&self, name: &str, peer: fn(&Lab, &str) -> Duration) -> Pairs {
        let image = self.image(name);
        rounds(|| peer(&self.lab, &image), || pull_and_remove(&self.ours, &image, &[]))
    }

    /// Part of the work alone, done by one thread with what the daemon uses: what a pull cannot be faster than.
    fn limit(&self, name: &str, what: &str) -> Pairs {
        let (image, layer) = (self.image(name), self.made_of(name).swap_remove(0));
        let root = self.lab.path("bare");
        let bare = || {
            let said = run(&text(&our_binary("unpack")), &[&text(&layer.file), &text(&root), what]);
            let _ = std::fs::remove_dir_all(&root);
            let seconds = said.split(' ').nth(1).and_then(|text| text.parse().ok());
            Duration::from_secs_f64(seconds.unwrap_or_else(|| panic!("no time in {said}")))
        };
        rounds(bare, || pull_and_remove(&self.ours, &image, &[]))
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn pull(daemon: &Daemon, image: &str, more: &[&str]) -> Duration {
    let start = Instant::now();
    daemon.ctr(&[&["images", "pull", "--plain-http"], more, &[image]].concat()).ok();
    start.elapsed()
}

fn remove(daemon: &Daemon, image: &str) {
    daemon.ctr(&["images", "rm", "--sync", image]).ok();
    settle();
}

/// What was removed is deleted behind the answer, and what was written goes to the disk by and by; neither must run
/// beside the next round.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
    run("sync", &[]);
}

fn pull_and_remove(daemon: &Daemon, image: &str, more: &[&str]) -> Duration {
    let took = pull(daemon, image, more);
    settle();
    remove(daemon, image);
    took
}

/// Milliseconds of both, in turn, after a round that does not count.
fn rounds(theirs: impl Fn() -> Duration, ours: impl Fn() -> Duration) -> Pairs {
    let round = |_| (theirs().as_secs_f64() * 1000.0, ours().as_secs_f64() * 1000.0);
    round(0);
    Pairs { unit: "ms", values: (0..ROUNDS).map(round).collect() }
}

fn by_erofs(pulls: &Pulls) -> Pairs {
    let image = pulls.image("eight");
    let erofs = ["--snapshotter", "erofs"];
    rounds(|| pull_and_remove(&pulls.theirs, &image, &[]), || pull_and_remove(&pulls.ours, &image, &erofs))
}

/// One pull, and twenty of the same at once, by ours. The client is the smaller one: to start twenty of `ctr`
/// takes four times the processor's time, which a short pull notices.
fn many_clients(pulls: &Pulls) -> Pairs {
    let (image, ours) = (pulls.image("eight"), &pulls.ours);
    let clients = |count| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    ours.gctr(&["pull", "--plain-http", &image]).ok();
                });
            }
        });
        let took = start.elapsed();
        settle();
        remove(ours, &image);
        took
    };
    rounds(|| clients(1), || clients(20))
}

/// Seven layers are there already.
fn shared_layers(pulls: &Pulls) -> Pairs {
    let (first, second) = (pulls.image("eight"), pulls.image("other-eight"));
    let daemons = [&pulls.theirs, &pulls.ours];
    for daemon in daemons {
        pull(daemon, &first, &[]);
    }
    let pairs = rounds(|| pull_and_remove(&pulls.theirs, &second, &[]), || pull_and_remove(&pulls.ours, &second, &[]));
    daemons.iter().for_each(|daemon| remove(daemon, &first));
    pairs
}

fn peak_memory(pulls: &Pulls) -> Pairs {
    let image = pulls.image("huge");
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

/// An archive that containerd has written, unpacked too.
fn import(pulls: &Pulls) -> Pairs {
    let (image, archive) = (pulls.image("ten"), text(&pulls.lab.path("ten.tar")));
    pull(&pulls.theirs, &image, &[]);
    pulls.theirs.ctr(&["images", "export", &archive, &image]).ok();
    remove(&pulls.theirs, &image);
    let once = |daemon: &Daemon| {
        let start = Instant::now();
        daemon.ctr(&["images", "import", &archive]).ok();
        let took = start.elapsed();
        settle();
        remove(daemon, &image);
        took
    };
    let pairs = rounds(|| once(&pulls.theirs), || once(&pulls.ours));
    std::fs::remove_file(&archive).expect("remove the archive");
    pairs
}

fn export(pulls: &Pulls) -> Pairs {
    let image = pulls.image("ten");
    let daemons = [&pulls.theirs, &pulls.ours];
    for daemon in daemons {
        pull(daemon, &image, &[]);
    }
    let archive = text(&pulls.lab.path("export.tar"));
    let once = |daemon: &Daemon| {
        let start = Instant::now();
        daemon.ctr(&["images", "export", &archive, &image]).ok();
        let took = start.elapsed();
        std::fs::remove_file(&archive).expect("remove the archive");
        settle();
        took
    };
    let pairs = rounds(|| once(&pulls.theirs), || once(&pulls.ours));
    daemons.iter().for_each(|daemon| remove(daemon, &image));
    pairs
}

fn skopeo_and_umoci(lab: &Lab, image: &str) -> Duration {
    let (layout, bundle) = (lab.path("layout"), lab.path("bundle"));
    let start = Instant::now();
    let to = format!("oci:{}:latest", layout.display());
    run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{image}"), &to]);
    run("umoci", &["unpack", "--image", &format!("{}:latest", layout.display()), &text(&bundle)]);
    let took = start.elapsed();
    [layout, bundle].iter().for_each(|dir| std::fs::remove_dir_all(dir).expect("remove what was unpacked"));
    settle();
    took
}

fn podman(lab: &Lab, image: &str) -> Duration {
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        for (flag, name) in [("--root", "podman-root"), ("--runroot", "podman-run"), ("--tmpdir", "podman-tmp")] {
            command.arg(flag).arg(lab.path(name));
        }
        command
            .args(["--storage-driver", "overlay", "--events-backend", "none", "--cgroup-manager", "cgroupfs"])
            .args(args);
        command.env("CONTAINERS_CONF", "/dev/null").env("HOME", lab.dir()).current_dir(lab.dir());
        Outcome::of(command, Duration::from_secs(300)).ok();
    };
    let start = Instant::now();
    podman(&["pull", "--quiet", "--tls-verify=false", image]);
    let took = start.elapsed();
    podman(&["rmi", "--force", image]);
    settle();
    took
}
