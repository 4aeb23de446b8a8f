//! Registries and layers that lie, break, stall and climb: each pull of them ends with an error that says which blob or
//! reference, where and why, leaves nothing behind, and the same pull succeeds once the fault is gone.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use gantry_integration::fake::{FakeRegistry, Tar, busybox_layer};
use gantry_integration::{Daemon, Lab, Outcome, Peer};
use gantry_registry::fake::{Fault, Rule};
use gantry_registry::image::{Builder, Image, compress};
use gantry_types::Digest;
use gantry_types::media_type::{self, Compression};
use serde_json::{Value, json};

/// Short waits and small limits, so that what runs into them does so within a test.
const CONFIG: &str = "
[gantry.registry]
connect_timeout = '500ms'
answer_timeout = '500ms'
slow_window = '700ms'
min_bytes_per_second = 10240
max_failures = 2
backoff = '20ms'
[gantry.unpack]
max_bytes = 1073741824
max_entries = 20000
max_ratio = 100
[plugins.'io.containerd.gc.v1.scheduler']
pause_threshold = 0.5
";

/// Longest that any of these pulls may take.
const BOUND: Duration = Duration::from_secs(12);

struct World {
    daemon: Daemon,
    fake: FakeRegistry,
    lab: Lab,
    base: Builder,
    /// Numbers the containers.
    runs: Cell<u32>,
    /// What was not as it must be, all of it told at the end.
    wrong: RefCell<Vec<String>>,
}

fn world() -> World {
    let lab = Lab::new();
    let fake = FakeRegistry::start(&lab);
    let daemon = Daemon::start_with(&lab, Peer::Gantry, CONFIG, &[]);
    World { daemon, fake, lab, base: base(), runs: 0.into(), wrong: RefCell::default() }
}

/// Busybox as a layer that is packed already, for it is served many times.
fn base() -> Builder {
    let image = busybox_layer().build();
    let config: Value = serde_json::from_slice(&image.blobs()[0].1).expect("a configuration");
    let diff_id: Digest = config["rootfs"]["diff_ids"][0].as_str().and_then(|d| d.parse().ok()).expect("a diff ID");
    Builder::new().blob(image.blobs()[1].1.clone(), Compression::Gzip, diff_id).env("PATH=/bin").command(&["sh"])
}

impl World {
    fn pull(&self, reference: &str) -> Outcome {
        self.daemon.ctr(&["images", "pull", "--plain-http", reference])
    }

    fn expect(&self, holds: bool, what: &str, text: impl std::fmt::Display) {
        if !holds {
            self.wrong.borrow_mut().push(format!("{what}: {text}"));
        }
    }

    /// Both clients fail to pull, saying all of `says`, in time, and nothing is left.
    fn fails(&self, what: &str, reference: &str, says: &[&str]) {
        for outcome in [self.pull(reference), self.daemon.gctr(&["pull", "--plain-http", reference])] {
            let message = said(&outcome).to_lowercase();
            self.expect(outcome.code != 0, what, format!("expected a failure\n{}", said(&outcome)));
            self.expect(outcome.took < BOUND, what, format!("took {:?}\n{}", outcome.took, said(&outcome)));
            for text in says {
                self.expect(
                    message.contains(&text.to_lowercase()),
                    what,
                    format!("does not say {text:?}\n{}", said(&outcome)),
                );
            }
            self.expect(!message.contains("internal"), what, format!("is not a fault of ours\n{}", said(&outcome)));
            self.nothing_is_left(what);
        }
    }

    /// No image, no blob, no ingest, no snapshot, no lease and no file of any of them.
    fn nothing_is_left(&self, what: &str) {
        let images = self.daemon.ctr(&["images", "ls", "-q"]);
        self.expect(images.ok().is_empty(), what, format!("an image is listed\n{}", said(&images)));
        let start = Instant::now();
        let mut left = self.left();
        // What a lease held is collected soon after its end.
        while !left.is_empty() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
            left = self.left();
        }
        self.expect(left.is_empty(), what, format!("left behind:\n{}", left.join("\n")));
    }

    fn left(&self) -> Vec<String> {
        let root = self.daemon.root();
        let mut found = Vec::new();
        for place in [
            "content/blobs/sha256",
            "content/blobs/sha512",
            "content/ingest",
            "snapshots/overlayfs/snapshots",
            "snapshots/overlayfs/trash",
            "snapshots/native/snapshots",
        ] {
            let entries = std::fs::read_dir(root.join(place)).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        if found.is_empty() {
            let leases = self.daemon.ctr(&["leases", "ls", "-q"]);
            found.extend(leases.ok().lines().map(|lease| format!("lease {lease}")));
            let snapshots = self.daemon.ctr(&["snapshots", "ls"]);
            found.extend(snapshots.ok().lines().skip(1).map(|snapshot| format!("snapshot {snapshot}")));
            let active = self.daemon.ctr(&["content", "active"]);
            found.extend(active.ok().lines().skip(1).map(|ingest| format!("ingest {ingest}")));
        }
        found
    }

    /// The pull succeeds, what was pulled runs, and is removed again without a rest.
    fn succeeds(&self, what: &str, reference: &str) {
        let outcome = self.pull(reference);
        self.expect(outcome.code == 0, what, format!("the next pull must succeed\n{}", said(&outcome)));
        self.runs.set(self.runs.get() + 1);
        let id = self.lab.id(&format!("r{}", self.runs.get()));
        let ran = self.daemon.ctr(&["run", "--rm", reference, &id, "/bin/echo", "well"]);
        self.expect(ran.code == 0 && ran.stdout == "well\n", what, format!("the image must run\n{}", said(&ran)));
        self.daemon.ctr(&["images", "rm", "--sync", reference]).ok();
        self.nothing_is_left(what);
    }

    /// A pull of a good image from a registry that misbehaves by `fault` for what has `path` in it.
    fn misbehaves(&self, what: &str, path: &str, fault: Fault, says: &[&str]) {
        let reference = self.fake.put_image("good", "1", &self.base.clone().build()).to_string();
        self.fake.fault(Rule::new(path, fault));
        let host = self.fake.host();
        self.fails(what, &reference, &[&[host.as_str(), "good"], says].concat());
        self.fake.clear_faults();
        self.succeeds(what, &reference);
    }

    /// Tries a hostile second layer, then an honest one under the same name.
    fn hostile_layer(&self, what: &str, blob: &[u8], compression: Compression, says: &[&str]) {
        let layered = self.base.clone().blob(blob.to_vec().into(), compression, Digest::of(b"never reached")).build();
        let layer = layered.blobs()[2].0.digest.to_string();
        self.hostile_image(what, &layered, &[&[layer.as_str()], says].concat());
    }

    /// A hostile tar, packed honestly.
    fn hostile_tar(&self, what: &str, tar: Vec<u8>, says: &[&str]) {
        self.hostile_layer(what, &compress(&tar, Compression::Gzip), Compression::Gzip, says);
    }

    fn hostile_image(&self, what: &str, image: &Image, says: &[&str]) {
        let reference = self.fake.put_image("image", "1", image).to_string();
        self.fails(what, &reference, says);
        self.fake.put_image("image", "1", &self.base.clone().build());
        self.succeeds(what, &reference);
    }

    /// Tries a hostile manifest, then an honest one under the same name.
    fn hostile_manifest(&self, what: &str, kind: &str, bytes: &[u8], says: &[&str]) {
        let good = self.base.clone().build();
        let reference = self.fake.put_image("manifest", "1", &good).to_string();
        self.fake.put_manifest("manifest", Some("1"), kind, bytes.to_vec().into());
        self.fails(what, &reference, says);
        self.fake.put_image("manifest", "1", &good);
        self.succeeds(what, &reference);
    }

    fn finish(self, pid: i32) {
        let wrong = self.wrong.borrow();
        assert!(wrong.is_empty(), "{} expectations failed:\n\n{}", wrong.len(), wrong.join("\n"));
        drop(wrong);
        let log = std::fs::read_to_string(self.daemon.log()).unwrap_or_default();
        assert!(!log.contains("panicked"), "the daemon panicked:\n{log}");
        assert_eq!(self.daemon.pid(), pid, "it is still the same daemon");
        self.daemon.assert_nothing_leaked();
        self.daemon.stop_clean();
    }
}

/// What a client said at last, without the progress before it.
fn said(outcome: &Outcome) -> String {
    let all: Vec<&str> = outcome.stdout.lines().chain(outcome.stderr.lines()).collect();
    format!("exit code {}: {}", outcome.code, all.last().unwrap_or(&"nothing"))
}

#[test]
fn a_registry_that_misbehaves_on_blobs_is_named_with_blob_and_reason() {
    let world = world();
    let pid = world.daemon.pid();
    let good = world.base.clone().build();
    let layer = good.blobs()[1].0.clone();
    let (path, digest) = (format!("/blobs/{}", layer.digest), layer.digest.to_string());
    let size = usize::try_from(layer.size).expect("a small layer");
    let long = Some("3600".to_owned());
    let cases: Vec<(&str, Fault, &[&str])> = vec![
        ("wrong bytes", Fault::WrongBytes, &["digest"]),
        ("cut short", Fault::CutAt(1000), &["connection failed"]),
        ("a length too small", Fault::WrongLength(size - 1), &["offers", "expected"]),
        ("a length too great", Fault::WrongLength(size + 1), &["offers", "expected"]),
        ("more bytes than it says", Fault::Longer(5), &["offers", "expected"]),
        ("fewer bytes than it says", Fault::Shorter(1000), &["bytes"]),
        ("401 for ever", Fault::Unauthorized, &["not let in"]),
        ("403", Fault::Status(403, None), &["status 403"]),
        ("404", Fault::Status(404, None), &["status 404"]),
        ("429 for an hour", Fault::Status(429, long), &["status 429"]),
        ("500", Fault::Status(500, None), &["status 500", "scripted failure"]),
        ("a loop of redirects", Fault::RedirectLoop, &["redirect"]),
        ("giant headers", Fault::GiantHeaders(1 << 20), &["connection failed"]),
        ("a trickle", Fault::Trickle(10, Duration::from_millis(100)), &["bytes came within"]),
        ("silence", Fault::Silence, &["no answer within 500ms"]),
    ];
    for (what, fault, says) in cases {
        world.misbehaves(what, &path, fault, &[&[digest.as_str()], says].concat());
    }
    world.finish(pid);
}

#[test]
fn a_registry_that_misbehaves_on_manifests_is_named_with_reference_and_reason() {
    let world = world();
    let pid = world.daemon.pid();
    let cases: Vec<(&str, Fault, &[&str])> = vec![
        ("wrong bytes", Fault::WrongBytes, &["digest"]),
        ("cut short", Fault::CutAt(100), &["connection failed"]),
        ("401 for ever", Fault::Unauthorized, &["not let in"]),
        ("403", Fault::Status(403, None), &["status 403"]),
        ("404", Fault::Status(404, None), &["status 404"]),
        ("429 for an hour", Fault::Status(429, Some("3600".into())), &["status 429"]),
        ("500", Fault::Status(500, None), &["status 500"]),
        ("another digest in its header", Fault::WrongDigestHeader, &["sha256:0000", "status 404"]),
        ("a loop of redirects", Fault::RedirectLoop, &["redirect"]),
        ("giant headers", Fault::GiantHeaders(1 << 20), &["connection failed"]),
        ("silence", Fault::Silence, &["no answer within 500ms"]),
    ];
    for (what, fault, says) in cases {
        world.misbehaves(what, "/manifests/", fault, says);
    }
    let nobody = "127.0.0.1:9/nobody/home:1";
    world.fails("nobody listens", nobody, &["127.0.0.1:9", "nobody/home", "cannot connect"]);
    world.finish(pid);
}

#[test]
fn a_manifest_that_makes_no_sense_is_refused_by_name_and_reason() {
    let world = world();
    let pid = world.daemon.pid();
    let good = world.base.clone().build();
    let (config, layer) = (&good.blobs()[0].0, &good.blobs()[1].0);
    let manifest = |config: &Value, layers: Value| {
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers})
            .to_string()
    };
    let (config, layer) = (json!(config), json!(layer));
    let oci = media_type::OCI_MANIFEST;
    let other = |key: &str, value: Value| {
        let mut changed = layer.clone();
        changed[key] = value;
        manifest(&config, json!([changed]))
    };
    let both = json!({"schemaVersion": 2, "config": config, "layers": [layer], "manifests": [layer]}).to_string();
    let many = manifest(&config, Value::Array(vec![layer.clone(); 5000]));
    let schema1 = json!({"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [], "history": []}).to_string();
    let lying =
        json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config, "layers": [layer]});
    let big = format!("{}{}", manifest(&config, json!([layer])), " ".repeat(5 << 20));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let nonsense = manifest(&config, json!([layer])).replace(media_type::OCI_MANIFEST, "application/x-nonsense");
    let huge = other("size", json!(1_u64 << 62));
    let cases: Vec<(&str, &str, String, &[&str])> = vec![
        ("schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", schema1, &["manifest:1", "schema 1"]),
        ("too big", oci, big, &["manifest:1", "larger than"]),
        ("index and manifest at once", oci, both.clone(), &["both a manifest and an index"]),
        ("manifest and index at once", media_type::OCI_INDEX, both, &["index"]),
        ("another type inside", oci, lying.to_string(), &["says it is"]),
        ("a page instead", "text/html", "<html>".into(), &["not the JSON of a manifest"]),
        ("nested for ever", oci, deep, &["manifest"]),
        ("nothing", oci, "{}".into(), &["config"]),
        ("an unknown type", "application/x-nonsense", nonsense, &["application/x-nonsense"]),
        ("too many layers", oci, many, &["larger than 4096"]),
        ("fewer diff IDs than layers", oci, manifest(&config, json!([layer, layer])), &["as many layers"]),
        ("a digest that climbs", oci, other("digest", json!("sha256:../../../../etc/passwd")), &["digest"]),
        ("a negative size", oci, other("size", json!(-1)), &["manifest"]),
        ("a wrong size", oci, other("size", json!(7)), &["expected 7"]),
        ("a giant size", oci, huge, &["expected 4611686018427387904"]),
        ("a layer of an unknown type", oci, other("mediaType", json!("text/plain")), &["text/plain"]),
        ("a layer that is not there", oci, other("digest", json!(Digest::of(b"none"))), &["status 404"]),
    ];
    for (what, kind, bytes, says) in cases {
        world.hostile_manifest(what, kind, bytes.as_bytes(), says);
    }
    let wrong_diff_id = busybox_with_a_wrong_diff_id(&good);
    world.hostile_image(
        "a wrong diff ID",
        &wrong_diff_id,
        &["configuration says", layer["digest"].as_str().unwrap_or("?")],
    );
    world.finish(pid);
}

fn busybox_with_a_wrong_diff_id(good: &Image) -> Image {
    Builder::new().blob(good.blobs()[1].1.clone(), Compression::Gzip, Digest::of(b"another")).build()
}

#[test]
fn a_layer_that_climbs_out_of_its_root_writes_nothing_outside() {
    let world = world();
    let pid = world.daemon.pid();
    let outside = world.lab.path("outside");
    std::fs::write(&outside, "untouched").expect("write");
    let victim = outside.to_string_lossy().into_owned();
    let up = "../".repeat(20);
    let climbing = format!("{up}{}", victim.trim_start_matches('/'));
    let cases: Vec<(&str, Tar, &[&str])> = vec![
        ("..", Tar::new().file(&climbing, b"pwned"), &["leaves the root"]),
        (".. by PAX", Tar::new().pax(&[("path", climbing.as_bytes())]).file("x", b"pwned"), &["leaves the root"]),
        (
            ".. by a long name",
            Tar::new().entry(b'L', "././@LongLink", "", climbing.as_bytes()).file("x", b"pwned"),
            &["leaves the root"],
        ),
        ("a symlink as parent", Tar::new().symlink("out", &up).file("out/tmp/pwned", b"pwned"), &["leaves the root"]),
        ("a hard link out", Tar::new().hard_link("stolen", &climbing), &["leaves the root"]),
        ("a hard link to an absolute path", Tar::new().hard_link("stolen", &victim), &["does not exist"]),
        ("a hard link through a symlink", Tar::new().symlink("o", &up).hard_link("s", "o/etc/passwd"), &["leaves"]),
        ("a whiteout of ..", Tar::new().file(".wh...", b""), &["invalid name"]),
        ("a whiteout that climbs", Tar::new().file(&format!("{up}tmp/.wh.x"), b""), &["leaves the root"]),
    ];
    for (what, tar, says) in cases {
        world.hostile_tar(what, tar.end(), says);
        assert_eq!(std::fs::read_to_string(&outside).ok().as_deref(), Some("untouched"), "{what}");
    }
    // An absolute name counts from the layer's root, as containerd has it.
    let tar = Tar::new().file(&victim, b"inside").end();
    let image = world.base.clone().tar(tar.into()).build();
    let reference = world.fake.put_image("absolute", "1", &image).to_string();
    world.pull(&reference).ok();
    let out = world.daemon.ctr(&["run", "--rm", &reference, &world.lab.id("abs"), "/bin/cat", &victim]);
    assert_eq!(out.ok(), "inside");
    assert_eq!(std::fs::read_to_string(&outside).ok().as_deref(), Some("untouched"));
    world.finish(pid);
}

#[test]
fn a_layer_that_is_broken_or_asks_for_too_much_is_refused_by_entry_and_reason() {
    let world = world();
    let pid = world.daemon.pid();
    let mut entries = Tar::new();
    for number in 0..20_001 {
        entries = entries.directory(&format!("d{}", number % 50));
    }
    let sparse =
        Tar::new().pax(&[("GNU.sparse.realsize", b"9000000000000"), ("GNU.sparse.map", b"0,1")]).file("s", b"x");
    let pax = Tar::new().pax(&[("comment", &vec![b'x'; 2 << 20])]).file("f", b"");
    let deep = Tar::new().pax(&[("path", "d/".repeat(1500).as_bytes())]).file("f", b"");
    let long = Tar::new().pax(&[("path", "n".repeat(300).as_bytes())]).file("f", b"");
    let tars: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("cut in a file", Tar::new().announced(b'0', "cut", "", 100_000, b"short").cut(), &["cut", "cut short"]),
        ("more than all bytes", Tar::new().announced(b'0', "big", "", 2 << 30, b"").end(), &["big", "bytes of files"]),
        ("too many entries", entries.end(), &["20000 entries"]),
        ("a sparse bomb", sparse.end(), &["more than 1073741824 bytes of files"]),
        ("a PAX bomb", pax.end(), &["extended header"]),
        ("a path too deep", deep.end(), &["components in a path"]),
        ("a name too long", long.end(), &["name"]),
        ("a header with a wrong sum", Tar::new().file("sum", b"").spoiled().end(), &["malformed archive"]),
        ("an unknown type", Tar::new().entry(b'Z', "what", "", b"").end(), &["unsupported entry type"]),
        ("a file amid a path", Tar::new().file("f", b"").file("f/x", b"").end(), &["is not a directory"]),
        ("no tar at all", b"this is no tar archive".repeat(100), &["malformed archive"]),
    ];
    for (what, tar, says) in tars {
        world.hostile_tar(what, tar, says);
    }
    let noise: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let packed = compress(&Tar::new().file("f", &noise).end(), Compression::Gzip);
    let half = &packed[..packed.len() / 2];
    world.hostile_layer("half a gzip stream", half, Compression::Gzip, &["layer"]);
    world.hostile_layer("no gzip stream", b"plain text", Compression::Gzip, &["layer"]);
    let mut checksum = packed.to_vec();
    let end = checksum.len();
    checksum[end - 6] ^= 1;
    world.hostile_layer("a wrong check sum", &checksum, Compression::Gzip, &["layer"]);
    world.hostile_layer("no zstd stream", &packed, Compression::Zstd, &["layer"]);
    let zeros = vec![0_u8; 300 << 20];
    let bomb = compress(&Tar::new().file("zeros", &zeros).end(), Compression::Zstd);
    drop(zeros);
    world.hostile_layer("a zip bomb", &bomb, Compression::Zstd, &["zeros", "bytes out of each compressed byte"]);
    world.finish(pid);
}

#[test]
fn a_pull_that_was_broken_off_fetches_only_the_rest_the_next_time() {
    let world = world();
    let pid = world.daemon.pid();
    let noise: Vec<u8> = (0..6_000_000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    let image = world.base.clone().layer().file("noise", noise, 0o644).compression(Compression::None).build();
    let layer = image.blobs()[2].0.clone();
    let reference = world.fake.put_image("resume", "1", &image).to_string();
    let path = format!("/blobs/{}", layer.digest);
    // The pull is broken off by its client while the layer trickles in.
    world.fake.fault(Rule::new(&path, Fault::Trickle(100_000, Duration::from_millis(50))).times(1));
    let mut command = world.daemon.command(gantry_integration::lab::peer_binary("ctr"));
    command.arg("--address").arg(world.daemon.address()).args(["images", "pull", "--plain-http", &reference]);
    let broken = Outcome::of(command, Duration::from_millis(1200));
    assert!(broken.code != 0, "{broken}");
    world.fake.clear_faults();
    world.fake.clear_requests();
    let outcome = world.pull(&reference);
    outcome.ok();
    let requests = world.fake.requests();
    let asked: Vec<_> = requests.iter().filter(|r| r.path.contains(&path)).map(|r| r.header("range")).collect();
    let start = |range: &str| range.strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok();
    let from = asked.first().copied().flatten().and_then(start);
    assert!(asked.len() == 1 && from.is_some_and(|from| from >= 100_000), "asked for {asked:?} of {}", layer.size);
    let ran = world.daemon.ctr(&["run", "--rm", &reference, &world.lab.id("resumed"), "/bin/echo", "well"]);
    assert_eq!(ran.ok(), "well\n");
    // The client that was killed had a lease of its own.
    for lease in world.daemon.ctr(&["leases", "ls", "-q"]).ok().lines() {
        world.daemon.ctr(&["leases", "rm", lease]).ok();
    }
    world.daemon.ctr(&["images", "rm", "--sync", &reference]).ok();
    world.nothing_is_left("after a resumed pull");
    assert_eq!(*world.wrong.borrow(), Vec::<String>::new());
    // A connection that breaks in the middle is mended by itself.
    world.fake.fault(Rule::new(&path, Fault::CutAt(2_000_000)).times(1));
    world.fake.clear_requests();
    world.pull(&reference).ok();
    let requests = world.fake.requests();
    let asked: Vec<_> = requests.iter().filter(|r| r.path.contains(&path)).map(|r| r.header("range")).collect();
    assert_eq!(asked.first(), Some(&None), "{asked:?}");
    assert_eq!(asked[1].and_then(start), Some(2_000_000), "{asked:?}");
    world.finish(pid);
}

#[test]
fn credentials_stay_at_home_when_a_registry_sends_a_pull_elsewhere() {
    let world = world();
    let pid = world.daemon.pid();
    let thief = FakeRegistry::start(&world.lab);
    let image = world.base.clone().build();
    let layer = image.blobs()[1].0.clone();
    let reference = world.fake.put_image("redirected", "1", &image).to_string();
    thief.put_image("redirected", "1", &image);
    let path = format!("/v2/redirected/blobs/{}", layer.digest);
    world.fake.fault(Rule::new(&path, Fault::Redirect(format!("{}{path}", thief.url()))));
    world.daemon.ctr(&["images", "pull", "--plain-http", "--user", "name:secret", &reference]).ok();
    let seen = thief.requests();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    world.finish(pid);
}
