//! A tour of `ctr`: every subcommand with its main flags, the same steps against our daemon and against the pinned
//! containerd, and every difference between the two answers either explained in a table here or a failure.
//!
//! The steps are `tour/steps`, one shell line each. The record of the last run, with the reason of each difference
//! beside it, is left in `target/tmp/tour.txt`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_integration::daemon::Peer;
use gantry_integration::images::{Format, Image, Packing, busybox_root, digest_of, push_blob, push_manifest};
use gantry_integration::lab::{peer_binary, run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};
use regex::Regex;
use serde_json::{Value, json};

/// How long one step may take.
const STEP: Duration = Duration::from_secs(30);

/// An expected difference: lines that only one side prints in the steps it speaks of.
struct Difference {
    /// Which steps: a regular expression over the line in `tour/steps`.
    step: &'static str,
    /// Whole lines (regular expression) that only our daemon's side may print; empty for none.
    ours: &'static str,
    /// Whole lines that only containerd's side may print; empty for none.
    theirs: &'static str,
    /// Why.
    reason: &'static str,
}

/// What differs whenever the tour is walked.
const DIFFERENCES: &[Difference] = &[
    Difference {
        step: "",
        ours: "",
        theirs: r#"(time="TIME" level=warning msg="|.*WARN.* )DEPRECATION: The support for cgroup v1.*"#,
        reason: "containerd announces the end of its support for cgroup v1, which we go on to support",
    },
    Difference {
        step: "^ctr .*version$",
        ours: r"  Version: +v2\.4\.2\+gantry\..*|WARNING: version mismatch",
        theirs: r"  Version: +2\.4\.2\+unknown",
        reason: "the daemon says what it is; ctr warns where client and daemon differ",
    },
    Difference {
        step: "^ctr (info|deprecations list)",
        ours: r#" +"pidns": N"#,
        theirs: r#".*(deprecation|deprecated|last_?[oO]ccurrence|"seconds"|"nanos"|"pidns").*|ID .*|\s*[\[\]{}]+,?"#,
        reason: "nothing we offer is about to go: the list of deprecations is empty",
    },
    Difference {
        step: r"^ctr plugins ls( -q)? \| sort",
        ours: r"io\.containerd\.differ\.v1 +erofs +linux/amd64 +ok",
        theirs: r"(io\.containerd\.\S+ +)?(bindir|blockfile|bolt|cgroups|cri|debug|deprecations|erofs|grpc-otel|grpc-prometheus|grpc-tcp|images|metrics|nri|opt|otelttrpc|otlp|podsandbox|pprof|runtime|shim|tracing)\b.*",
        reason: "parts of containerd that are not here, or are no part of their own here; layers become erofs images by ourselves, where containerd needs a program",
    },
    Difference {
        step: "^ctr plugins ls -d",
        ours: r" +root +ROOT/\S+|Capabilities: +\S+|ID: +erofs| +path +/opt/gantry",
        theirs: ".*",
        reason: "other directories, no snapshotter blockfile, capabilities in another order, and what a part needs is not listed",
    },
    Difference {
        step: "^ctr plugins inspect-runtime",
        ours: ".*",
        theirs: ".*",
        reason: "another runtime tells of itself; that a runtime binary is missing shows when a container is created",
    },
    Difference {
        step: "^ctr images pull",
        ours: r"layer \(\w+\) +(already exists|exists|extracted.*|waiting.*)",
        theirs: "",
        reason: "layers that were there already are shown too",
    },
    Difference {
        step: "^ctr images pull .*--snapshotter nothing",
        ours: r"(config|index|manifest) \(\w+\) .*",
        theirs: "",
        reason: "an unknown snapshotter is found out when it is needed, not before the image is looked at",
    },
    Difference {
        step: "^ctr images (pull|mount) .*('not a reference'|noslash)",
        ours: "ctr: invalid reference.*",
        theirs: "ctr: failed to resolve image: .*",
        reason: "the message says what is wrong with the name",
    },
    Difference {
        step: "^ctr images push .*:index ",
        ours: r"(config|layer) \(\w+\) +complete.*",
        theirs: r"(config|layer) \(\w+\) +already exists",
        reason: "a blob that the registry takes over from another repository counts as pushed",
    },
    Difference {
        step: "^ctr images push .*--platform",
        ours: r"application/vnd.oci.image.manifest.v1\+json .*|manifest \(\w+\) .*",
        theirs: r"(index|manifest) \(\w+\) .*",
        reason: "for one platform its own manifest is pushed, not an index of which parts would be missing",
    },
    Difference {
        step: r"^ctr images push .*127\.0\.0\.1:1/",
        ours: r"(config|layer) \(\w+\) .*|ctr: .*Connection refused.*",
        theirs: r"(config|layer) \(\w+\) .*|ctr: .*connection refused",
        reason: "how far the other uploads were is chance; the error names the host",
    },
    Difference {
        step: r"bare2\.tar",
        ours: "[0-9a-f]{64}  bare2.tar",
        theirs: "[0-9a-f]{64}  bare2.tar",
        reason: "the same members; some bytes of the tar's headers differ",
    },
    Difference {
        step: "^ctr images import",
        ours: r"layer \(\w+\) .*|application/vnd\.(oci\.image\.layer|docker\.image\.rootfs)\..*",
        theirs: "",
        reason: "an import shows its layers as they are unpacked",
    },
    Difference {
        step: "^ctr images import .*--snapshotter native",
        ours: ".* saved|Importing|application/vnd.oci.image.index.*",
        theirs: r"ctr: unable to initialize unpacker.*|\[exit code 1\]",
        reason: "every snapshotter can be unpacked into, without configuration",
    },
    Difference {
        step: "^ctr images inspect --content example.com/oci",
        ours: r".*gc\.ref\.snapshot\.native.*",
        theirs: "",
        reason: "trace of the import into the native snapshotter before",
    },
    Difference {
        step: "ctr images import (/etc/passwd|short.tar)",
        ours: "ctr: archive: .*",
        theirs: "ctr: .*(invalid tar header|unexpected EOF|unrecognized image format)",
        reason: "the tar reader's own words",
    },
    Difference {
        step: "^ctr snapshots mounts --temp",
        ours: r"mount -t bind STATE/mounts/\d+/1 WORK/m -o rbind",
        theirs: r"mount -t bind STATE/io\.containerd\.mount-manager\.v1\.bolt/t/\d+/1 WORK/m -o rbind",
        reason: "the daemon's mounts are in another directory",
    },
    Difference {
        step: r"nothing\.v9|c5-",
        ours: r"ctr: .*nothing\.v9.*|ctr: .*not found",
        theirs: r"ctr: .*nothing\.v9.*",
        reason: "the message says where the shim was looked for",
    },
    Difference {
        step: "proc/self/mountinfo",
        ours: r"/(proc|sys)/\S+ .*",
        theirs: r"/(proc|sys)/\S+ .*",
        reason: "masked paths are covered by the host's null and an empty read-only tmpfs of our own",
    },
    Difference {
        step: "type=tmpfs,dst=/t,",
        ours: "tmpfs /t tmpfs .*",
        theirs: " /t tmpfs .*",
        reason: "a mount without a source bears the name of its kind, where runc leaves the field empty",
    },
    Difference {
        step: "^ctr (tasks|containers) checkpoint",
        ours: "ctr: OCI runtime checkpoint failed: criu dump.*|ctr: .*CRIU.*",
        theirs: "ctr: runc did not terminate successfully: exit status 1: criu failed.*",
        reason: "where CRIU does not work, the words of its log are the message",
    },
    Difference {
        step: "cat events.pid",
        ours: r#".* /content/create .*"size":\d+.*"#,
        theirs: r#".* /content/create .*"size":\d+.*"#,
        reason: "another compressor makes another layer of the same files, and so another index",
    },
    Difference {
        step: "shim.sock.* state",
        ours: r#" +"status": 2"#,
        theirs: r#" +"status": 2,| +"exited_at": \{| +"seconds": .*| +\}"#,
        reason: "a task that runs has no time of exit",
    },
    Difference {
        step: "shim.sock.* state --api-version 2",
        ours: ".*",
        theirs: r"ctr: rpc error: code = Unimplemented.*|\[exit code 1\]",
        reason: "our shim serves version 2 of the protocol too",
    },
    Difference {
        step: "^ctr shim --id s1",
        ours: r"ctr: fail to connect to container shim.*|/containerd-shim/.*|\[exit code 1\]",
        theirs: "",
        reason: "our shims' sockets lie in the daemon's own state directory, where ctr looks only if told",
    },
    Difference {
        step: "^ctr sandboxes (run|rm)",
        ours: r#"sb-TAG|ctr: failed to create new sandbox.*|time="TIME" level=.*sb-TAG.*"#,
        theirs: r#"ctr: failed to create new sandbox.*|time="TIME" level=.*sb-TAG.*|\[exit code 1\]"#,
        reason: "our shim holds sandboxes; containerd's shim for runc does not",
    },
];

/// What may differ by chance: clients that race with what they show, peers that drop what we do not.
const CHANCE: &[Difference] = &[
    Difference {
        step: "^ctr images (pull|push|import)",
        ours: r".* (saved|fetching image content|pushed content|pushing content)|(Pulling from|Pushing to|Completed (pull|push)) .*|Importing|Completed import|application/vnd\.oci\.image\.index.*",
        theirs: r".* (saved|fetching image content|pushed content|pushing content)|(Pulling from|Pushing to|Completed (pull|push)) .*|Importing|Completed import|application/vnd\.oci\.image\.index.*",
        reason: "ctr stops drawing when the answer comes, with the last lines still on their way",
    },
    Difference {
        step: "^ctr images pull",
        ours: r"(config|index|layer|manifest) \(\w+\) .*",
        theirs: r"(config|index|layer|manifest) \(\w+\) .*",
        reason: "ctr stops drawing when the answer comes, with the last lines still on their way",
    },
    Difference {
        step: "^ctr (content fetch|images pull)",
        ours: r#"time="TIME" level=error msg="failed to get content info".*"#,
        theirs: r#"time="TIME" level=error msg="failed to get content info".*"#,
        reason: "ctr draws its progress while it is told to stop",
    },
    Difference {
        step: "^ctr (content fetch|images pull --plain-http .*--local|images pull --plain-http --local)",
        ours: r"(config|index|layer|manifest)-sha256:\w+: .*",
        theirs: r"(config|index|layer|manifest)-sha256:\w+: .*",
        reason: "how far ctr saw its own fetch come",
    },
    Difference {
        step: "cat events.pid",
        ours: ".* /tasks/(exit|delete) .*",
        theirs: ".* /tasks/(exit|delete) .*",
        reason: "the peer's shim may end before it has sent its last events",
    },
    Difference {
        step: "cat events.pid",
        ours: r#".* /snapshot/remove .*"t9-TAG".*"#,
        theirs: r#".* /snapshot/remove .*"t9-TAG".*"#,
        reason: "a snapshot that nothing holds goes when the collector comes by",
    },
    Difference {
        step: "^script",
        ours: r".*resize pty.*|.*\bcannot resize .*",
        theirs: r".*resize pty.*|.*\bcannot resize .*",
        reason: "a terminal is resized while its process ends",
    },
    Difference {
        step: "^ctr tasks metrics --format json",
        ours: r#" +?"(total_)?(active_file|cache|inactive_file|mapped_file|pgpgin|user|system|kernel|throttling)\w*":|"\w+":"#,
        theirs: r#" +?"(total_)?(active_file|cache|inactive_file|mapped_file|pgpgin|user|system|kernel|throttling)\w*":|"\w+":"#,
        reason: "counters that are zero are left out, which is chance",
    },
    Difference {
        step: "^ctr images prune --all",
        ours: ".*deleted image: import-.*",
        theirs: ".*deleted image: import-.*",
        reason: "an imported index that has expired goes when the collector comes by, once its image is gone",
    },
    Difference {
        step: "native rm c3-",
        ours: r"ctr: failed to remove .c3-TAG.*|\[exit code 1\]",
        theirs: r"ctr: failed to remove .c3-TAG.*|\[exit code 1\]",
        reason: "a snapshot that nothing holds goes when the collector comes by",
    },
];

#[test]
fn every_ctr_command_answers_as_with_containerd() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let facts = images(&lab, &registry.host());
    let steps = steps();
    let (ours, theirs) = (Daemon::start(&lab), Daemon::start_with(&lab, Peer::Containerd, "", &[]));
    let (left, right) = std::thread::scope(|scope| {
        let left = scope.spawn(|| Tourist::new(&lab, &ours, "g", &facts).walk(&steps));
        let right = scope.spawn(|| Tourist::new(&lab, &theirs, "c", &facts).walk(&steps));
        (left.join().expect("our tour ended"), right.join().expect("containerd's tour ended"))
    });
    let mut comparison = Comparison::default();
    for ((step, a), b) in steps.iter().zip(&left).zip(&right) {
        comparison.step(step, a, b);
    }
    comparison.finish();
    ours.assert_nothing_leaked();
    ours.stop_clean();
}

#[test]
fn the_tour_visits_every_command_that_ctr_has() {
    let steps = steps().join("\n");
    let mut missing = Vec::new();
    visit(&mut Vec::new(), &mut |command, names| {
        let (last, parents) = command.split_last().expect("a command has a name");
        let used = names.iter().any(|name| {
            let parents: String = parents.iter().fold(String::new(), |text, p| text + &format!("(?:{p}) (?:-.* )?"));
            let global = r"(?m)\bctr (?:-.* )?";
            let pattern = Regex::new(&format!("{global}{parents}{}(?:[ ;)\"]|$)", regex::escape(name)));
            pattern.expect("a pattern made of names").find_iter(&steps).next().is_some()
        });
        if !used {
            missing.push(format!("{} {last}", parents.join(" ")));
        }
    });
    assert!(missing.is_empty(), "never visited: {missing:?}");
}

/// Calls `found` for each command below `path`: its way (names joined by `|`) and its own names.
fn visit(path: &mut Vec<String>, found: &mut dyn FnMut(&[String], &[String])) {
    let mut command = Command::new(peer_binary("ctr"));
    command.args(path.iter().map(|names| names.split('|').next_back().unwrap_or_default())).arg("--help");
    let help = Outcome::of(command, STEP);
    let commands = help.stdout.split("COMMANDS:").nth(1).unwrap_or_default();
    let commands = commands.split("OPTIONS:").next().unwrap_or_default();
    for line in commands.lines().filter(|line| line.starts_with("   ")) {
        let names = line.trim().split("  ").next().unwrap_or_default();
        let names: Vec<String> = names.split(", ").map(str::to_owned).filter(|n| n != "help" && n != "h").collect();
        if names.is_empty() {
            continue;
        }
        path.push(names.join("|"));
        let before = path.len();
        found(path, &names);
        visit(path, found);
        debug_assert_eq!(path.len(), before);
        path.pop();
    }
}

fn steps() -> Vec<String> {
    let text = std::fs::read_to_string(source_root().join("integration/tests/tour/steps")).expect("read the steps");
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
}

/// Names and values that steps use as shell variables.
type Facts = Vec<(&'static str, String)>;

/// Makes and pushes the images of the tour, and files that steps read.
fn images(lab: &Lab, host: &str) -> Facts {
    let shared = lab.path("shared");
    let top = lab.path("top-root");
    let package = lab.path("package-root");
    let script = r#"
        mkdir -p "$0/etc" "$0/first-dir" "$1/bin" "$1/lib" "$2"
        echo one >"$0/first" && ln -s first "$0/link" && mkfifo "$0/pipe" && chmod 4755 "$0/first"
        chown 33:34 "$0/first-dir" && echo conf >"$0/etc/conf"
        echo tool >"$1/bin/tool" && echo library >"$1/lib/libtool.so"
        echo FROMFILE=file >"$2/env" && echo '{' >"$2/broken.json"
        find "$0" "$1" -exec touch -h -d @1500000000 {} +
    "#;
    let place = |path: &Path| path.to_string_lossy().into_owned();
    run("sh", &["-ec", script, &place(&top), &place(&package), &place(&shared)]);
    let busybox = busybox_root(lab);
    Image::new(lab, "package").layer(&package).push(host, "package");
    Image::new(lab, "zstd").layer(&top).packing(Packing::Zstd).push(host, "zstd");
    Image::new(lab, "docker").layer(&busybox).layer(&top).format(Format::Docker).push(host, "docker");
    Image::new(lab, "tour").layer(&busybox).layer(&top).push(host, "tour");
    let mut facts = two_platforms(lab, host);
    documents(lab, &shared);
    facts.push(("R", host.to_owned()));
    facts.push(("S", place(&shared)));
    facts.push(("ROOTFS", place(&busybox)));
    facts.push(("RUNC", place(&peer_binary("runc"))));
    facts.push(("RUNC_SHIM", place(&peer_binary("containerd-shim-runc-v2"))));
    facts
}

/// Pushes an index over the tour's image and a copy of it that says it is for linux/arm64.
fn two_platforms(lab: &Lab, host: &str) -> Facts {
    let dir = lab.path("image-tour");
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(dir.join(name)).expect("read a document of the image");
        serde_json::from_str(&text).expect("a document of the image is JSON")
    };
    let write = |name: &str, document: &Value| {
        let path = dir.join(name);
        std::fs::write(&path, document.to_string()).expect("write a document");
        let size = document.to_string().len();
        (digest_of(&path), size, path)
    };
    let (mut config, mut manifest) = (read("config.json"), read("manifest.json"));
    let kind = manifest["mediaType"].clone();
    let (first, first_size, _) = write("manifest.json", &manifest);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (config_digest, layer) = (text(&manifest["config"]["digest"]), text(&manifest["layers"][0]["digest"]));
    let top = text(&manifest["layers"][1]["digest"]);
    let diffs = config["rootfs"]["diff_ids"].clone();
    config["architecture"] = json!("arm64");
    let (digest, size, path) = write("config-arm64.json", &config);
    push_blob(host, "tour", &path, &digest);
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    let (second, second_size, path) = write("manifest-arm64.json", &manifest);
    push_manifest(host, "tour", "arm64", &path, kind.as_str().unwrap_or_default());
    let index_type = "application/vnd.oci.image.index.v1+json";
    let (index, _, path) = write(
        "index.json",
        &json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
            {"mediaType": kind, "digest": first, "size": first_size, "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": kind, "digest": second, "size": second_size, "platform": {"os": "linux", "architecture": "arm64"}},
        ]}),
    );
    push_manifest(host, "tour", "latest", &path, index_type);
    let base = text(&diffs[0]);
    let chain = run("sh", &["-c", "printf '%s %s' $0 $1 | sha256sum | cut -d' ' -f1", &base, &text(&diffs[1])]);
    vec![
        ("INDEX", index),
        ("MANIFEST", first),
        ("CONFIG", config_digest),
        ("LAYER", layer),
        ("TOP", top),
        ("BASE", base),
        ("CHAIN", format!("sha256:{}", chain.trim())),
    ]
}

/// A docker archive, a seccomp profile and a pod's configuration.
fn documents(lab: &Lab, shared: &Path) {
    let image = lab.path("image-docker");
    let script = r#"
        cp "$0/config.json" "$0/0.tar" "$0/1.tar" .
        printf '[{"Config":"config.json","RepoTags":["example.com/archive:1"],"Layers":["0.tar","1.tar"]}]' >manifest.json
        tar -cf docker-archive.tar --sort=name --mtime=@0 manifest.json config.json 0.tar 1.tar
        rm manifest.json config.json 0.tar 1.tar
    "#;
    run("sh", &["-ec", &format!("cd '{}'; {script}", shared.display()), &image.to_string_lossy()]);
    let write = |name: &str, document: Value| {
        std::fs::write(shared.join(name), document.to_string()).expect("write a document");
    };
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5});
    write("seccomp.json", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    write("pod.json", json!({"metadata": {"name": "pod", "uid": "u", "namespace": "n"}}));
}

/// Runs a command until the archive that it writes has its end: ctr leaves when the answer comes, with the last bytes of
/// the stream still on their way to the file.
const WHOLE: &str = r#"#!/bin/sh
archive=$1
shift
for attempt in 1 2 3 4 5; do
    "$@" || exit
    tar tf "$archive" >/dev/null 2>&1 && exit
done
echo "$archive has no end after $attempt attempts" >&2
exit 1
"#;

/// One side of the tour.
struct Tourist<'a> {
    lab: &'a Lab,
    daemon: &'a Daemon,
    tag: String,
    work: std::path::PathBuf,
    env: Facts,
}

impl<'a> Tourist<'a> {
    /// `side` is one letter, so that ids, paths and with them tables are of one width on both sides.
    fn new(lab: &'a Lab, daemon: &'a Daemon, side: &str, facts: &Facts) -> Tourist<'a> {
        let work = lab.path(&format!("w{side}"));
        let bin = work.join("bin");
        std::fs::create_dir_all(&bin).expect("make a directory");
        let script = format!(
            "#!/bin/sh\nexec {} --address {} \"$@\"\n",
            peer_binary("ctr").display(),
            daemon.address().display()
        );
        std::fs::write(bin.join("ctr"), script).expect("write a script");
        std::fs::write(bin.join("whole"), WHOLE).expect("write a script");
        run("chmod", &["+x", &bin.join("ctr").to_string_lossy(), &bin.join("whole").to_string_lossy()]);
        let tag = format!("{}{side}", lab.tag());
        let mut env = facts.clone();
        env.push(("T", tag.clone()));
        env.push(("STATE", daemon.state().to_string_lossy().into_owned()));
        env.push(("D", work.to_string_lossy().into_owned()));
        Tourist { lab, daemon, tag, work, env }
    }

    fn walk(&self, steps: &[String]) -> Vec<Answer> {
        let normal = Normal::new(self);
        let start = Instant::now();
        let answers = steps.iter().enumerate().map(|(number, step)| normal.answer(&self.step(number, step))).collect();
        eprintln!("{}: {} steps in {:?}", self.work.display(), steps.len(), start.elapsed());
        answers
    }

    fn step(&self, number: usize, step: &str) -> Outcome {
        let mut command = self.daemon.command("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-c", step]).current_dir(&self.work).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
            .env("PATH", format!("{}:{path}", self.work.join("bin").display()))
            .env("N", (1000 + number).to_string())
            .env("TZ", "UTC")
            .env("LC_ALL", "C");
        Outcome::of(command, STEP)
    }
}

/// What a step answered, without what must differ from run to run.
struct Answer {
    stdout: Vec<String>,
    stderr: Vec<String>,
    took: Duration,
}

/// Takes out of answers what must differ: ids, times, process ids, paths of this run.
struct Normal {
    plain: Vec<(String, &'static str)>,
    patterns: Vec<(Regex, &'static str)>,
}

impl Normal {
    fn new(tourist: &Tourist<'_>) -> Normal {
        let place = |path: &Path| path.to_string_lossy().into_owned();
        let plain = vec![
            (place(&tourist.daemon.root()), "ROOT"),
            (place(&tourist.daemon.state()), "STATE"),
            (place(&tourist.daemon.address()), "SOCKET"),
            (place(&tourist.work), "WORK"),
            (place(tourist.lab.dir()), "LAB"),
            (tourist.tag.clone(), "TAG"),
        ];
        let patterns = [
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME"),
            (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [+-]\d{4} [A-Z]+( m=\+[0-9.]+)?", "TIME"),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
            (r"\b\d{5,19}-[A-Za-z0-9_-]{4,7}", "RANDOM"),
            (r#"("?(?i:pid|seconds|nanos|pidns)"?: ?)\d+"#, "${1}N"),
            (r"(?m)^(\S+ +)\d+( +(?:RUNNING|STOPPED|CREATED|PAUSED) *)$", "${1}PID$2"),
            (r"\b(Less than a second|About a minute|\d+ seconds?|\d+ minutes?)( ago)?", "AGE"),
            (r"\b\d+(\.\d+)?(ms|µs|s)\b", "DURATION"),
            (r"\belapsed: *\d+(\.\d+)? ?s\b", "elapsed: DURATION"),
            (r"\b\d+(\.\d+)? ([KMGT]i)?B/s", "SPEED"),
            (r"ROOT/(snapshots/|io.containerd.snapshotter.v1.)(overlayfs|native)/snapshots/\d+", "SNAPSHOTS/$2/N"),
            (r"\bdefault/\d+/", "default/N/"),
            (r"(/run/containerd/fifo|WORK/fifos)/\d+/", "$1/RANDOM/"),
            (r"/run/containerd/s/[0-9a-f]{64}", "/run/containerd/s/RANDOM"),
            (r"(import|exec|tmp|containerd-mount|initialC)[-]?\d{6,}", "${1}RANDOM"),
            (r"0x[0-9a-f]{5,}", "0xN"),
            (r"nsexec-\d\[\d+\]", "nsexec[PID]"),
            // Whether a blob was there before one looked, or came in between, is chance.
            (r"(?m)^((?:config|index|layer|manifest)-sha256:[0-9a-f]{64}:[ \t]+)exists", "${1}done"),
            (r"(\S)[ \t]{2,}", "$1  "),
            (r"(\S)\t", "$1  "),
            (r"[ \t]+TIME[ \t]+", "  TIME  "),
            (r"(?m)[ \t]+$", ""),
        ];
        let patterns = patterns.map(|(from, to)| (Regex::new(from).expect("a good pattern"), to));
        Normal { plain, patterns: patterns.into() }
    }

    fn answer(&self, outcome: &Outcome) -> Answer {
        let mut stderr = self.lines(&outcome.stderr);
        if outcome.code != 0 {
            stderr.push(format!("[exit code {}]", outcome.code));
        }
        Answer { stdout: self.lines(&outcome.stdout), stderr, took: outcome.took }
    }

    fn lines(&self, text: &str) -> Vec<String> {
        let mut text = text.replace("\r\n", "\n").replace(['\r', '\0'], "\n").replace("^@", "");
        for (from, to) in &self.plain {
            text = text.replace(from, to);
        }
        for (from, to) in &self.patterns {
            text = from.replace_all(&text, *to).into_owned();
        }
        last_frame(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

/// Keeps of a progress display, which draws itself again and again, what stood there in the end, in an order that
/// does not tell which part was first.
fn last_frame(lines: Vec<String>) -> Vec<String> {
    let ends: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].contains("elapsed: ")).collect();
    let Some((&last, before)) = ends.split_last() else { return lines };
    let first = before.last().map_or(0, |end| end + 1);
    let colour = Regex::new(r"\x1b\[[0-9]*[A-Za-z]").expect("a good pattern");
    let bare = |line: &String| {
        let line = line.split("elapsed: ").next().unwrap_or_default();
        let line = colour.replace_all(line, "");
        line.trim_matches(|c: char| c.is_whitespace() || "├─│└".contains(c)).to_owned()
    };
    let mut frame: Vec<String> = lines[first..=last].iter().map(bare).collect();
    frame.sort_unstable();
    frame.dedup();
    frame.extend_from_slice(&lines[last + 1..]);
    frame
}

/// Compares the two sides and keeps the record.
#[derive(Default)]
struct Comparison {
    record: String,
    unexplained: String,
    used: BTreeSet<usize>,
}

impl Comparison {
    /// Notes the answers of one step and what of their differences has no reason.
    fn step(&mut self, step: &str, ours: &Answer, theirs: &Answer) {
        let _ = writeln!(self.record, "\n$ {step}\n[ours {:?}, containerd's {:?}]", ours.took, theirs.took);
        let mut found = String::new();
        for (name, a, b) in [("stdout", &ours.stdout, &theirs.stdout), ("stderr", &ours.stderr, &theirs.stderr)] {
            let lines = side_by_side(a, b);
            let classes = |ours: bool| -> Vec<&str> {
                lines
                    .iter()
                    .filter_map(|line| match line {
                        Line::Ours(text) if ours => class(text),
                        Line::Theirs(text) if !ours => class(text),
                        _ => None,
                    })
                    .collect()
            };
            let (our_classes, their_classes) = (classes(true), classes(false));
            for line in &lines {
                let reason = match line {
                    Line::Both(text) => {
                        let _ = writeln!(self.record, "  {text}");
                        continue;
                    }
                    Line::Ours(text) | Line::Theirs(text) if our_classes == their_classes && class(text).is_some() => {
                        Some("an error of the same class in other words")
                    }
                    Line::Ours(text) => self.reason(step, text, |d| d.ours),
                    Line::Theirs(text) => self.reason(step, text, |d| d.theirs),
                };
                let (side, text) = match line {
                    Line::Ours(text) => ("+", text),
                    Line::Theirs(text) | Line::Both(text) => ("-", text),
                };
                let _ = writeln!(self.record, "{side} {text}    [{}]", reason.unwrap_or("UNEXPLAINED"));
                if reason.is_none() {
                    let _ = writeln!(found, "  {name} {side} {text}");
                }
            }
        }
        if !found.is_empty() {
            let _ = write!(self.unexplained, "\n$ {step}\n{found}");
        }
    }

    fn reason(&mut self, step: &str, line: &str, side: impl Fn(&Difference) -> &'static str) -> Option<&'static str> {
        let matches = |pattern: &str, text: &str| Regex::new(pattern).expect("a good pattern").is_match(text);
        let fits = |d: &Difference| {
            !side(d).is_empty() && matches(d.step, step) && matches(&format!("^(?:{})$", side(d)), line)
        };
        let (number, found) = DIFFERENCES.iter().chain(CHANCE).enumerate().find(|(_, d)| fits(d))?;
        self.used.insert(number);
        Some(found.reason)
    }

    fn finish(self) {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tour.txt");
        std::fs::write(&place, &self.record).expect("write the record");
        assert!(
            self.unexplained.is_empty(),
            "differences without a reason (+ ours, - containerd's; all in {}):\n{}",
            place.display(),
            self.unexplained
        );
        let unused = DIFFERENCES.iter().enumerate().filter(|(n, _)| !self.used.contains(n));
        let unused: Vec<&str> = unused.map(|(_, d)| d.reason).collect();
        assert!(unused.is_empty(), "differences that are no longer there: {unused:#?}");
    }
}

/// What kind of failure a client's line speaks of: the words that containerd's errors end in, or who says it.
fn class(line: &str) -> Option<&'static str> {
    const WORDS: &[&str] = &[
        "failed to create shim task",
        "OCI runtime create failed",
        "OCI runtime exec failed",
        "not found",
        "already exists",
        "invalid argument",
        "failed precondition",
        "out of range",
        "not implemented",
    ];
    let error = line.starts_with("ctr: ") || line.contains("level=error");
    WORDS
        .iter()
        .find(|words| error && (line.trim_end_matches('"').ends_with(*words) || line.contains(&format!("{words}:"))))
        .copied()
}

#[derive(Clone, Copy)]
enum Line<'a> {
    Both(&'a str),
    Ours(&'a str),
    Theirs(&'a str),
}

/// The shortest way from one list of lines to the other (longest common subsequence).
fn side_by_side<'a>(ours: &'a [String], theirs: &'a [String]) -> Vec<Line<'a>> {
    let mut common = vec![vec![0_u32; theirs.len() + 1]; ours.len() + 1];
    for (i, a) in ours.iter().enumerate().rev() {
        for (j, b) in theirs.iter().enumerate().rev() {
            common[i][j] = if a == b { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < ours.len() || j < theirs.len() {
        if i < ours.len() && j < theirs.len() && ours[i] == theirs[j] {
            lines.push(Line::Both(&ours[i]));
            (i, j) = (i + 1, j + 1);
        } else if j >= theirs.len() || (i < ours.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(Line::Ours(&ours[i]));
            i += 1;
        } else {
            lines.push(Line::Theirs(&theirs[j]));
            j += 1;
        }
    }
    lines
}
