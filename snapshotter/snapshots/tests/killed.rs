//! A process killed at any moment: what it was told had happened has happened, and nothing is left over.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_snapshots::{Kind, Overlay, OverlayConfig, Snapshotter};
use gantry_types::{Filter, Labels};

const ROOT: &str = "GANTRY_TEST_SNAPSHOTS_ROOT";

fn open(root: &Path) -> Overlay {
    Overlay::open(root, OverlayConfig::default()).unwrap()
}

fn say(word: &str, name: &str) {
    // In one piece: a line that is cut off says nothing.
    std::io::stderr().lock().write_all(format!("{word} {name}\n").as_bytes()).unwrap();
}

/// The process that is killed: says what it is about to do (`?`) and what has happened (`+`, `-`).
#[tokio::test]
#[ignore = "is run by the test below, as a process of its own"]
async fn work_until_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let s = open(Path::new(&root));
    for round in 0u64.. {
        let (key, name) = (format!("key-{round}"), format!("{}-{round}", std::process::id()));
        say("?", &key);
        s.prepare(&key, None, Labels::new()).await.unwrap();
        say("+", &key);
        say("?", &key);
        say("?", &name);
        s.commit(&name, &key, None, Labels::new()).await.unwrap();
        say("-", &key);
        say("+", &name);
        if round % 3 == 0 {
            say("?", &name);
            s.remove(&name).await.unwrap();
            say("-", &name);
        }
    }
}

/// What is certain of each name: there, gone, or either.
fn watch(root: &Path, moment: Duration) -> BTreeMap<String, Option<bool>> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "work_until_killed", "--ignored", "--nocapture"])
        .env(ROOT, root)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stderr.take().unwrap());
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut names = BTreeMap::new();
    for line in output.lines().map_while(Result::ok) {
        let state = match line.split_once(' ') {
            Some(("+", _)) => Some(true),
            Some(("-", _)) => Some(false),
            Some(("?", _)) => None,
            _ => panic!("{line}"),
        };
        names.insert(line[2..].to_owned(), state);
    }
    names
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut known: BTreeMap<String, Option<bool>> = BTreeMap::new();
    for round in 0..12u64 {
        known.extend(watch(&root, Duration::from_millis(60 + round * 17)));
        let s = open(&root);
        let infos = runtime.block_on(s.walk(&Filter::default())).unwrap();
        let there = |name: &str| infos.iter().any(|info| info.name == name);
        for (name, certain) in &known {
            assert!(certain.is_none_or(|certain| certain == there(name)), "{name} should be {certain:?}");
        }
        runtime.block_on(s.cleanup()).unwrap();
        let count = |name: &str| fs::read_dir(root.join(name)).unwrap().count();
        assert_eq!((count("snapshots"), count("records"), count("trash")), (infos.len(), infos.len(), 0));
        for info in infos.iter().filter(|info| info.kind == Kind::Active) {
            runtime.block_on(s.remove(&info.name)).unwrap();
            known.insert(info.name.clone(), Some(false));
        }
        known.retain(|_, certain| certain.is_some());
    }
    assert!(known.len() > 12, "the process hardly ran: {known:?}");
}
