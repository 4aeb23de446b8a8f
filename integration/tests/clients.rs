//! The example programs in other languages, each against a daemon of its own: they say what they do on standard
//! output, and leave nothing behind.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{run, source_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};

/// How long one program may take; the Java machine is the slowest to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon tells of one container with one more process in it.
const EVENTS: &[&str] = &[
    "/tasks/create",
    "/tasks/start",
    "/tasks/exec-added",
    "/tasks/exec-started",
    "/tasks/exit",
    "/tasks/exit",
    "/tasks/delete",
];

#[test]
fn the_go_example_pulls_runs_executes_and_cleans_up() {
    let program = out("go").join("example");
    run("go", &["build", "-C", &folder("go"), "-o", &program.to_string_lossy(), "."]);
    example(&[&program.to_string_lossy()], &[]);
}

#[test]
fn the_python_example_pulls_runs_executes_and_cleans_up() {
    if !all_there(&["python3"]) {
        return;
    }
    let (venv, source) = (out("python"), folder("python"));
    run(&format!("{source}/setup.sh"), &[&venv.to_string_lossy()]);
    let (python, stubs) = (venv.join("bin/python"), venv.join("stubs"));
    let env = [("PYTHONPATH", stubs.to_string_lossy().into_owned()), ("PYTHONDONTWRITEBYTECODE", "1".into())];
    example(&[&python.to_string_lossy(), &format!("{source}/run.py")], &env);
}

#[test]
fn the_node_example_pulls_runs_executes_and_cleans_up() {
    if !all_there(&["node", "npm"]) {
        return;
    }
    let source = folder("node");
    if !up_to_date("node", "package-lock.json") {
        run("npm", &["ci", "--prefix", &source, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
        mark("node", "package-lock.json");
    }
    example(&["node", &format!("{source}/run.js")], &[]);
}

#[test]
fn the_java_example_pulls_runs_executes_and_cleans_up() {
    if !all_there(&["java", "mvn"]) {
        return;
    }
    let (target, source) = (out("java"), folder("java"));
    package(&source);
    let classes = format!("{0}/classes:{0}/lib/*", target.display());
    example(&["java", "-XX:TieredStopAtLevel=1", "-cp", &classes, "example.Main"], &[]);
}

/// Builds with what was fetched before, or, where that is not enough, with what can be fetched now.
fn package(source: &str) {
    let pom = format!("{source}/pom.xml");
    let offline = Command::new("mvn").args(["-q", "-B", "-o", "-f", &pom, "package"]).output().expect("run mvn");
    if !offline.status.success() {
        run("mvn", &["-q", "-B", "-f", &pom, "package"]);
    }
}

/// Runs one program against a daemon of its own and insists on what it prints and on what it leaves: nothing.
fn example(program: &[&str], env: &[(&str, String)]) {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let id = lab.id("example");
    let start = |image: &str| {
        let mut command = daemon.command(program[0]);
        command.args(&program[1..]).arg(daemon.address()).args([image, &id]);
        command.envs(env.iter().map(|(k, v)| (k, v))).env("TMPDIR", lab.dir()).current_dir(lab.dir());
        Outcome::of(command, PATIENCE)
    };

    let done = start(&image);
    done.ok();
    let lines: Vec<&str> = done.stdout.lines().collect();
    for wanted in ["running", "executed", "stopped", "exit exec 3", "exit container 7"] {
        assert_eq!(lines.iter().filter(|l| **l == wanted).count(), 1, "expected one line {wanted:?}\n{done}");
    }
    assert!(lines.iter().any(|l| l.starts_with("pull ")), "expected progress of the pull\n{done}");
    let events: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("event ")).collect();
    assert_eq!(events, EVENTS, "{done}");
    nothing_is_left(&daemon);

    let missing = image.replace("busybox", "no-such-image");
    start(&missing).fails_with("no-such-image");
    nothing_is_left(&daemon);
    daemon.stop_clean();
}

/// No record of anything, and nothing of the containers on the machine.
fn nothing_is_left(daemon: &Daemon) {
    let tables: &[&[&str]] = &[
        &["images", "ls", "-q"],
        &["containers", "ls", "-q"],
        &["tasks", "ls", "-q"],
        &["leases", "ls", "-q"],
        &["content", "ls", "-q"],
    ];
    for table in tables {
        let listed = daemon.ctr(&[&["-n", "example"], *table].concat());
        assert_eq!(listed.ok(), "", "{listed}");
    }
    let snapshots = daemon.ctr(&["-n", "example", "snapshots", "ls"]);
    assert_eq!(snapshots.ok().lines().count(), 1, "only the heading\n{snapshots}");
    daemon.assert_nothing_leaked();
}

/// Whether these programs can be run here; says which cannot.
fn all_there(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|p| !is_there(p));
    if let Some(program) = missing {
        eprintln!("skipped: {program} is not installed");
    }
    missing.is_none()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

fn folder(language: &str) -> String {
    source_root().join("clients").join(language).to_string_lossy().into_owned()
}

/// Where what is built for a language goes.
fn out(language: &str) -> PathBuf {
    let dir = source_root().join("target/clients").join(language);
    std::fs::create_dir_all(&dir).expect("make a directory for what is built");
    dir
}

/// Whether what was installed last was asked for by the same lock file.
fn up_to_date(language: &str, lock: &str) -> bool {
    let now = std::fs::read(PathBuf::from(folder(language)).join(lock)).ok();
    now.is_some() && std::fs::read(out(language).join(lock)).ok() == now
}

fn mark(language: &str, lock: &str) {
    std::fs::copy(PathBuf::from(folder(language)).join(lock), out(language).join(lock))
        .expect("note what is installed");
}
