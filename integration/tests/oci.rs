//! The validation of OCI runtime-tools: what Debian's runc passes here, `gantry-runtime` passes.
//!
//! The quick part runs always; `GANTRY_OCI=all` runs the whole, some five minutes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gantry_integration::images::busybox_root;
use gantry_integration::lab::{our_binary, peer_binary, run};
use gantry_integration::{Lab, Outcome};
use serde_json::{Value, json};

/// What runc passes and we do not: the test, words of the check, and why.
const DIFFERENT: &[(&str, &str, &str)] = &[
    (
        "mounts",
        "found in order",
        "since Linux 6.8 the mount table is sorted by the mounts' numbers, and ours for binds are given before",
    ),
    ("linux_ns_itype", "", "without a mount namespace all mounts would be the host's: refused, with that reason"),
    ("killsig", "MUST send", "the test signals before the shell has set its trap; a slow start hides that"),
];

/// The quick part; the others sleep, or try every value.
const QUICK: &[&str] = &[
    "create",
    "default",
    "linux_cgroups_devices",
    "linux_uid_mappings",
    "mounts",
    "process_capabilities",
    "process_rlimits",
];

struct Validation {
    lab: Lab,
    place: PathBuf,
}

impl Validation {
    fn new() -> Validation {
        let tools = peer_binary("oci");
        let lab = Lab::new();
        let place = lab.path("w");
        std::fs::create_dir(&place).expect("make a directory");
        for name in ["runtimetest", "rootfs-amd64.tar.gz"] {
            std::fs::copy(tools.join(name), place.join(name)).expect("copy what the validation needs");
        }
        Validation { lab, place }
    }

    /// The checks of one test under a runtime, each with whether it passed.
    fn run(&self, test: &Path, runtime: &Path) -> (BTreeMap<String, bool>, Outcome) {
        let mut command = Command::new(test);
        command.env("RUNTIME", runtime).env("TMPDIR", self.lab.dir()).current_dir(&self.place);
        let out = Outcome::of(command, Duration::from_secs(60));
        let mut checks = BTreeMap::new();
        for line in out.stdout.lines() {
            let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
                (Some(rest), _) => (true, rest),
                (_, Some(rest)) => (false, rest),
                _ => continue,
            };
            // Several checks may have one name: it passed if all did.
            let name = rest.split_once(" - ").map_or(rest, |(_, name)| name);
            let all = checks.entry(name.to_owned()).or_insert(true);
            *all = *all && passed;
        }
        (checks, out)
    }

    /// What the peer passes and we do not.
    fn missing(&self, test: &Path, seen: &mut usize) -> Vec<String> {
        let name = test.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (theirs, _) = self.run(test, &peer_binary("debian/runc"));
        let (ours, out) = self.run(test, &our_binary("gantry-runtime"));
        let known = |check: &str| DIFFERENT.iter().any(|(test, words, _)| *test == name && check.contains(words));
        *seen += theirs.values().filter(|passed| **passed).count();
        let passed = theirs.into_iter().filter(|(check, passed)| *passed && !known(check));
        let missing = passed.filter(|(check, _)| ours.get(check) != Some(&true)).map(|(check, _)| check);
        missing.map(|check| format!("{name}: {check}\n{}", out.stderr)).collect()
    }
}

#[test]
fn what_runc_passes_of_the_validation_we_pass() {
    let all = std::env::var_os("GANTRY_OCI").is_some_and(|value| value == "all");
    let validation = Validation::new();
    let tests = std::fs::read_dir(peer_binary("oci/validation")).expect("the validation is built");
    let mut tests = tests.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    tests.sort();
    let named = |path: &PathBuf, list: &[&str]| path.file_name().is_some_and(|n| list.iter().any(|name| n == *name));
    tests.retain(|path| all || named(path, QUICK));
    assert!(tests.len() >= QUICK.len(), "{tests:?}");
    let mut seen = 0;
    let missing = tests.iter().flat_map(|test| validation.missing(test, &mut seen)).collect::<Vec<_>>();
    assert!(seen > 100, "runc passes next to nothing: {seen}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// What `events --stats` of a runtime says of a container that sleeps.
fn figures(lab: &Lab, bundle: &Path, runtime: &Path, side: &str) -> Value {
    let (id, root) = (lab.id(side), lab.path(&format!("state-{side}")));
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).expect("read the bundle")).expect("JSON");
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    std::fs::write(&config, spec.to_string()).expect("write the bundle");
    let call = |args: &[&str]| {
        let mut command = Command::new(runtime);
        command.arg("--root").arg(&root).args(args).current_dir(bundle);
        Outcome::of(command, Duration::from_secs(30))
    };
    call(&["run", "--detach", &id]).ok();
    let told = call(&["events", "--stats", &id]);
    call(&["delete", "--force", &id]).ok();
    let document: Value = serde_json::from_str(told.ok()).expect("a document");
    assert_eq!((&document["type"], &document["id"]), (&json!("stats"), &json!(id)));
    document["data"].clone()
}

/// The names in a document that `theirs` has and `ours` has not.
fn names_missing(theirs: &Value, ours: &Value, place: &str, missing: &mut Vec<String>) {
    let Some(members) = theirs.as_object() else { return };
    for (name, value) in members {
        let place = format!("{place}/{name}");
        // What is left out, and the kernel's own names.
        const LEFT: &[&str] = &["/cpuset", "/cpu/usage/percpu_kernel", "/cpu/usage/percpu_user", "/memory/raw"];
        if LEFT.contains(&place.as_str()) {
            continue;
        }
        match ours.get(name) {
            None => missing.push(place),
            Some(own) => names_missing(value, own, &place, missing),
        }
    }
}

#[test]
fn events_tell_under_runcs_names_what_a_container_uses() {
    let lab = Lab::new();
    let bundle = lab.path("bundle");
    std::fs::create_dir(&bundle).expect("make a directory");
    let (runc, ours) = (peer_binary("runc"), our_binary("gantry-runtime"));
    run(&runc.to_string_lossy(), &["spec", "--bundle", &bundle.to_string_lossy()]);
    let config = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).expect("read a bundle")).expect("JSON");
    spec["root"]["path"] = json!(busybox_root(&lab));
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["sleep", "1000"]);
    std::fs::write(&config, spec.to_string()).expect("write a bundle");
    let (theirs, ours) = (figures(&lab, &bundle, &runc, "theirs"), figures(&lab, &bundle, &ours, "ours"));
    let mut missing = Vec::new();
    names_missing(&theirs, &ours, "", &mut missing);
    assert!(missing.is_empty(), "{missing:?}\ntheirs: {theirs}\nours: {ours}");
    assert!(ours["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "{ours}");
    assert_eq!(ours["pids"]["current"], theirs["pids"]["current"]);
}
