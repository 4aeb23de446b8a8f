//! Which way dependencies point: each rule of ARCHITECTURE.md, read from `cargo metadata` and from the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gantry_integration::lab::{run, source_root};
use serde_json::Value;

/// Crates of ours, and what each may depend on of ours (features and tests aside).
const ALLOWED: &[(&str, &[&str])] = &[
    ("gantry-types", &[]),
    ("gantry-spec", &["gantry-types"]),
    ("gantry-ttrpc", &["gantry-types"]),
    ("gantry-api", &["gantry-types", "gantry-ttrpc"]),
    ("gantry-mount", &["gantry-types"]),
    ("gantry-inflate", &[]),
    ("gantry-layer", &["gantry-types", "gantry-inflate"]),
    ("gantry-snapshots", &["gantry-types", "gantry-layer", "gantry-mount"]),
    ("gantry-runtime", &["gantry-types", "gantry-mount"]),
    ("gantry-task", &["gantry-types", "gantry-ttrpc", "gantry-mount", "gantry-runtime"]),
    ("gantry-content", &["gantry-types"]),
    ("gantry-metadata", &["gantry-types"]),
    ("gantry-registry", &["gantry-types"]),
    ("gantry-shims", &["gantry-types", "gantry-ttrpc", "gantry-mount"]),
    ("gantry-plugins", &["gantry-types", "gantry-api", "gantry-content", "gantry-snapshots"]),
    (
        "gantry-engine",
        &[
            "gantry-plugins",
            "gantry-types",
            "gantry-spec",
            "gantry-ttrpc",
            "gantry-mount",
            "gantry-layer",
            "gantry-snapshots",
            "gantry-content",
            "gantry-metadata",
            "gantry-registry",
            "gantry-shims",
        ],
    ),
    ("gantry-nri", &["gantry-types", "gantry-ttrpc"]),
    ("gantry-cri", &["gantry-types", "gantry-api", "gantry-mount", "gantry-engine", "gantry-nri", "gantry-spec"]),
    ("gantry-daemon", &["gantry-types", "gantry-api", "gantry-ttrpc", "gantry-engine", "gantry-cri"]),
    ("gantry-client", &["gantry-types", "gantry-spec", "gantry-api"]),
    ("gctr", &["gantry-types", "gantry-client", "gantry-mount"]),
    ("gantry-integration", &["gantry-types", "gantry-registry"]),
    (
        "gantry-fuzz",
        &[
            "gantry-types",
            "gantry-ttrpc",
            "gantry-inflate",
            "gantry-layer",
            "gantry-metadata",
            "gantry-registry",
            "gantry-engine",
            "gantry-daemon",
        ],
    ),
];

/// External crates that only some of ours may name.
const RESTRICTED: &[(&str, &[&str])] = &[
    ("tonic", &["gantry-api", "gantry-daemon", "gantry-cri", "gantry-plugins", "gantry-client", "gctr"]),
    ("sled", &["gantry-metadata"]),
    ("reqwest", &["gantry-registry"]),
    ("clap", &["gantry-daemon", "gctr"]),
    ("tracing-subscriber", &["gantry-daemon"]),
];

/// What must not be linked into the shim and the runtime, at any depth.
const NOT_IN_THE_SHIM: &[&str] = &["tonic", "hyper", "clap", "regex", "tracing-subscriber", "tokio", "sled"];

/// Crates in which `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] = &[
    "snapshotter/inflate/src/fast.rs",
    "snapshotter/mount",
    "shim/runtime",
    "shim/task",
    "proto/ttrpc",
    "server/content/src/mapped.rs",
    "server/daemon/src/resident.rs",
];

struct Graph {
    packages: BTreeMap<String, Value>,
    resolved: BTreeMap<String, BTreeSet<String>>,
    names: BTreeMap<String, String>,
}

impl Graph {
    fn read() -> Graph {
        let manifest = source_root().join("Cargo.toml");
        let text = run(
            "cargo",
            &["metadata", "--format-version=1", "--locked", "--manifest-path", &manifest.to_string_lossy()],
        );
        let metadata: Value = serde_json::from_str(&text).expect("cargo prints JSON");
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = list(&metadata["packages"]);
        let names = all.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let ours: BTreeSet<String> = list(&metadata["workspace_members"]).iter().map(&text).collect();
        let packages =
            all.iter().filter(|p| ours.contains(&text(&p["id"]))).map(|p| (text(&p["name"]), p.clone())).collect();
        let normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        let edges = |node: &Value| list(&node["deps"]).iter().filter(|d| normal(d)).map(|d| text(&d["pkg"])).collect();
        let resolved = list(&metadata["resolve"]["nodes"]).iter().map(|n| (text(&n["id"]), edges(n))).collect();
        Graph { packages, resolved, names }
    }

    /// Names of the normal dependencies that a crate of ours declares.
    fn declared(&self, name: &str) -> BTreeSet<String> {
        let dependencies = self.packages[name]["dependencies"].as_array().cloned().unwrap_or_default();
        let normal = dependencies.iter().filter(|d| d["kind"].is_null());
        normal.filter_map(|d| d["name"].as_str().map(str::to_owned)).collect()
    }

    /// Names of all crates that a crate of ours is linked with, as the workspace resolves them.
    fn linked(&self, name: &str) -> BTreeSet<String> {
        let mut todo = vec![self.packages[name]["id"].as_str().unwrap_or_default().to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(id) = todo.pop() {
            if seen.insert(id.clone()) {
                todo.extend(self.resolved.get(&id).into_iter().flatten().cloned());
            }
        }
        seen.iter().filter_map(|id| self.names.get(id).cloned()).collect()
    }
}

#[test]
fn dependencies_between_our_crates_point_the_agreed_way() {
    let graph = Graph::read();
    for name in graph.packages.keys() {
        let allowed = ALLOWED.iter().find(|(n, _)| n == name).map(|(_, a)| *a);
        let allowed = allowed.unwrap_or_else(|| panic!("{name} has no rule: add it here and to ARCHITECTURE.md"));
        for dependency in graph.declared(name).iter().filter(|d| graph.packages.contains_key(*d)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn heavy_libraries_stay_where_they_belong() {
    let graph = Graph::read();
    for (library, allowed) in RESTRICTED {
        for name in graph.packages.keys().filter(|name| graph.declared(name).contains(*library)) {
            assert!(allowed.contains(&name.as_str()), "{name} must not name {library}");
        }
    }
}

#[test]
fn the_shim_links_nothing_heavy() {
    // Resolved for the shim alone: in the whole workspace, features that others ask for would be counted in.
    for name in ["gantry-task", "gantry-runtime"] {
        let tree = run(
            "cargo",
            &[
                "tree",
                "--locked",
                "-e",
                "normal",
                "--prefix",
                "none",
                "-p",
                name,
                "--target",
                "x86_64-unknown-linux-musl",
            ],
        );
        let linked: BTreeSet<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
        let heavy: Vec<_> = NOT_IN_THE_SHIM.iter().filter(|l| linked.contains(**l)).collect();
        assert!(heavy.is_empty(), "{name} links {heavy:?}");
    }
}

#[test]
fn server_and_shim_know_nothing_of_each_other() {
    let graph = Graph::read();
    let shim = ["gantry-task", "gantry-runtime"];
    for name in graph.packages.keys() {
        let path = graph.packages[name]["manifest_path"].as_str().unwrap_or_default().to_owned();
        let linked = graph.linked(name);
        if path.contains("/server/") {
            assert!(shim.iter().all(|s| !linked.contains(*s)), "{name} links the shim");
        }
        if path.contains("/shim/") {
            let server = ["gantry-engine", "gantry-daemon", "gantry-content", "gantry-metadata", "gantry-shims"];
            assert!(server.iter().all(|s| !linked.contains(*s)), "{name} links the server");
        }
    }
}

#[test]
fn unsafe_code_lives_only_where_it_is_allowed() {
    let root = source_root();
    let mut offenders = Vec::new();
    for top in ["proto", "snapshotter", "shim", "server", "clients", "integration"] {
        each_source(&root.join(top), &mut |path, text| {
            let place = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
            let allowed = UNSAFE_ALLOWED.iter().any(|a| place.starts_with(a));
            let uses = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("unsafe {"));
            if uses && !allowed && !place.ends_with("layering.rs") {
                offenders.push(place);
            }
        });
    }
    assert!(offenders.is_empty(), "unsafe code in {offenders:?}");
}

#[test]
fn only_binaries_read_the_environment() {
    let root = source_root();
    let mut offenders = Vec::new();
    for top in ["proto", "snapshotter", "server"] {
        each_source(&root.join(top), &mut |path, text| {
            let place = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
            let binary = place.ends_with("main.rs")
                || place.ends_with("build.rs")
                || place.contains("/examples/")
                || place.contains("/tests/")
                || place.contains("/bin/");
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            if !binary && (shipped.contains("env::var") || shipped.contains("env::args")) {
                offenders.push(place);
            }
        });
    }
    assert!(offenders.is_empty(), "libraries must be told, not look around: {offenders:?}");
}

fn each_source(dir: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            each_source(&path, visit);
        } else if path.extension().is_some_and(|e| e == "rs") {
            visit(&path, &std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
}
