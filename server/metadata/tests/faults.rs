//! Kills, damage and a full disk: what was acknowledged is there, and the store always opens.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use gantry_metadata::{Config, Db, Error, Image, Report};
use gantry_types::{Descriptor, Digest, ErrorKind, HasKind, Id, Labels};
use proptest::prelude::*;

const CHILD: &str = "GANTRY_METADATA_TEST_CHILD";
const POINT: &str = "GANTRY_METADATA_TEST_POINT";

/// Usually few, for time's sake; as many as `PROPTEST_CASES` says where it is set.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn ns() -> Id {
    "n".parse().unwrap()
}

fn image(name: &str) -> Image {
    Image {
        name: name.into(),
        target: Descriptor::new("m", Digest::of(name.as_bytes()), 1),
        labels: Labels::from([("padding".into(), "x".repeat(200))]),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

fn open(directory: &Path) -> (Db, Report) {
    Db::open(Config::new(directory)).unwrap()
}

fn names(db: &Db) -> BTreeSet<String> {
    db.images(&ns()).scan().map(|image| image.unwrap().name).collect()
}

async fn fill(db: &Db, count: usize) {
    let (images, ns) = (db.clone(), ns());
    let create = async |n: usize| images.images(&ns).create(image(&format!("i{n:04}")), None).await.unwrap();
    for n in 0..count {
        create(n).await;
    }
}

/// Starts one of the ignored tests below in a process of its own.
fn child(name: &str, directory: &Path, point: &str, wrapper: &[&str]) -> Child {
    let exe = std::env::current_exe().unwrap();
    let mut argv: Vec<&str> = wrapper.to_vec();
    argv.extend([exe.to_str().unwrap(), "--exact", name, "--ignored", "--nocapture"]);
    Command::new(argv[0])
        .args(&argv[1..])
        .env(CHILD, directory)
        .env(POINT, point)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn child_directory() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

/// Says that a name was acknowledged, at once.
fn say(name: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ACK {name}").unwrap();
    out.flush().unwrap();
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests of kills, in a process of its own"]
async fn child_writes_until_killed() {
    let Some(directory) = child_directory() else { return };
    let (db, _) = open(&directory);
    let point = std::env::var(POINT).unwrap();
    fill(&db, 5).await;
    (0..5).for_each(|n| say(&format!("i{n:04}")));
    if !point.is_empty() {
        let at_point = || {
            kill(std::process::id());
            std::thread::sleep(Duration::from_secs(60));
        };
        fail::cfg_callback(point, at_point).unwrap();
    }
    let writer = async |writer: usize| {
        for n in 0.. {
            let name = format!("w{writer}-{n}");
            db.images(&ns()).create(image(&name), None).await.unwrap();
            say(&name);
        }
    };
    tokio::join!(writer(0), writer(1), writer(2), writer(3));
}

/// Runs the child until it dies, killing it after `patience`; returns what was acknowledged.
fn run_until_killed(directory: &Path, point: &str, patience: Option<Duration>) -> BTreeSet<String> {
    let mut child = child("child_writes_until_killed", directory, point, &[]);
    let started = Instant::now();
    let (mut acknowledged, mut killed) = (BTreeSet::new(), false);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test harness writes its own words without a line's end.
        if let Some((_, name)) = line.split_once("ACK ") {
            acknowledged.insert(name.to_owned());
        }
        if !killed && patience.is_some_and(|patience| started.elapsed() > patience) {
            kill(child.id());
            killed = true;
        }
    }
    assert!(!child.wait().unwrap().success());
    acknowledged
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..4 {
        // Each round has names of its own only where the store is new.
        let directory = directory.path().join(round.to_string());
        acknowledged = run_until_killed(&directory, "", Some(Duration::from_millis(150 + 90 * round)));
        let (db, report) = open(&directory);
        assert!(report.is_clean(), "{report:?}");
        let there = names(&db);
        let missing: Vec<_> = acknowledged.difference(&there).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(there.len() - acknowledged.len() <= 4, "no more than one write of each writer was under way");
    }
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
}

#[test]
fn killed_at_any_point_of_a_commit_the_acknowledged_is_there_and_the_store_opens() {
    for point in
        ["metadata::before-apply", "metadata::before-flush", "metadata::before-sync", "metadata::before-publish"]
    {
        let directory = tempfile::tempdir().unwrap();
        let acknowledged = run_until_killed(directory.path(), point, None);
        assert_eq!(acknowledged.len(), 5, "{point}");
        let (db, report) = open(directory.path());
        assert!(report.is_clean(), "{point}: {report:?}");
        assert!(names(&db).is_superset(&acknowledged), "{point}");
    }
}

#[tokio::test]
#[ignore = "run by the test of failing writes, in a process of its own, because fail points are global"]
async fn child_sees_writes_fail() {
    let Some(directory) = child_directory() else { return };
    let (db, _) = open(&directory);
    fill(&db, 3).await;
    for point in ["metadata::before-apply", "metadata::before-flush", "metadata::before-sync"] {
        fail::cfg(point, "1*return").unwrap();
        let error = db.images(&ns()).create(image(point), None).await.unwrap_err();
        assert!(matches!(error, Error::NotWritten { .. }), "{error}");
        assert_eq!(names(&db).len(), 3, "{point}: what failed is not seen");
        db.images(&ns()).update(image("i0000"), vec![], None).await.unwrap();
        assert_eq!(names(&db).len(), 3, "{point}");
    }
    drop(db);
    fs::remove_file(directory.join("export")).unwrap();
    let (db, report) = open(&directory);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(names(&db).len(), 3, "what failed is not there after a restart");
    println!("ACK done");
}

#[test]
fn a_write_that_fails_has_no_effect_and_the_next_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    assert!(child("child_sees_writes_fail", directory.path(), "", &[]).wait().unwrap().success());
}

#[tokio::test]
#[ignore = "run by the test of a full disk, in a mount namespace of its own"]
async fn child_fills_the_disk() {
    let Some(directory) = child_directory() else { return };
    let (db, _) = open(&directory.join("db"));
    fill(&db, 10).await;
    fs::write(directory.join("ballast"), vec![1; 1 << 20]).unwrap();
    let rest = vec![1; 64 << 20];
    let _ = fs::write(directory.join("rest"), &rest);
    let mut written = 10;
    let error = loop {
        match db.images(&ns()).create(image(&format!("more{written}")), None).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100_000, "the disk never fills");
    };
    assert!(matches!(error.kind(), ErrorKind::ResourceExhausted | ErrorKind::Internal), "{error}");
    assert_eq!(names(&db).len(), written, "readers go on");
    fs::remove_file(directory.join("rest")).unwrap();
    fs::remove_file(directory.join("ballast")).unwrap();
    db.images(&ns()).create(image("after"), None).await.unwrap();
    drop(db);
    let (db, _) = open(&directory.join("db"));
    assert_eq!(names(&db).len(), written + 1);
}

#[test]
fn on_a_full_disk_writes_fail_reads_go_on_and_room_made_is_used_again() {
    let root = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=12m none \"$GANTRY_METADATA_TEST_CHILD\" && exec \"$@\"";
    let mut child = child("child_fills_the_disk", root.path(), "", &["unshare", "-m", "sh", "-c", script, "sh"]);
    assert!(child.wait().unwrap().success());
}

/// A store of 200 images, the last 50 of them in the journal and not in the export; copied for each case.
fn template() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let export = directory.path().join("export");
    runtime.block_on(async {
        let (db, _) = open(directory.path());
        fill(&db, 150).await;
        db.export().await.unwrap();
        fs::copy(&export, directory.path().join("earlier")).unwrap();
        for n in 150..200 {
            db.images(&ns()).create(image(&format!("i{n:04}")), None).await.unwrap();
        }
    });
    fs::rename(directory.path().join("earlier"), export).unwrap();
    directory
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to.path()).status().unwrap().success());
    to
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(u32, u8),
    Zero(u32, u16),
    Truncate(u32),
    Garbage(u32, Vec<u8>),
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<u32>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        3 => (any::<u32>(), 1u16..).prop_map(|(at, len)| Damage::Zero(at, len)),
        2 => any::<u32>().prop_map(Damage::Truncate),
        3 => (any::<u32>(), proptest::collection::vec(any::<u8>(), 1..5000)).prop_map(|(at, bytes)| Damage::Garbage(at, bytes)),
        1 => Just(Damage::Remove),
    ]
}

fn apply(path: &Path, damage: &Damage) {
    let mut bytes = fs::read(path).unwrap();
    let len = bytes.len();
    let place = |at: u32| at as usize % len.max(1);
    match damage {
        Damage::Flip(at, bits) => bytes[place(*at)] ^= bits,
        Damage::Zero(at, count) => bytes[place(*at)..].iter_mut().take((*count).into()).for_each(|b| *b = 0),
        Damage::Truncate(at) => bytes.truncate(place(*at)),
        Damage::Garbage(at, garbage) => bytes[place(*at)..].iter_mut().zip(garbage).for_each(|(b, g)| *b = *g),
        Damage::Remove => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn whatever_happens_to_the_files_of_the_engine_the_store_opens_and_nothing_acknowledged_is_lost() {
    let template = template();
    let expected: BTreeSet<String> = (0..200).map(|n| format!("i{n:04}")).collect();
    let files: Vec<PathBuf> = fs::read_dir(template.path().join("sled"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| path.strip_prefix(template.path()).unwrap().to_owned())
        .collect();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: cases(60),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let file = proptest::sample::select(files);
    runner
        .run(&(proptest::collection::vec((file, damage()), 1..3)), |damages| {
            let directory = copy(template.path());
            for (file, damage) in &damages {
                let path = directory.path().join(file);
                if path.exists() {
                    apply(&path, damage);
                }
            }
            let started = Instant::now();
            let (db, report) = open(directory.path());
            prop_assert!(started.elapsed() < Duration::from_secs(10), "slow: {report:?}");
            let there = names(&db);
            let missing: Vec<_> = expected.difference(&there).collect();
            prop_assert!(missing.is_empty(), "{missing:?} missing, {report:?}");
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                db.images(&ns()).create(image("new"), None).await.unwrap();
            });
            drop(db);
            let (db, report) = open(directory.path());
            prop_assert!(report.is_clean(), "the second time: {report:?}");
            prop_assert_eq!(names(&db).len(), there.len() + 1);
            Ok(())
        })
        .unwrap();
}

fn remove_journals(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("journal-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn with_store_and_export_damaged_what_can_be_read_is_there_and_the_damage_is_reported() {
    let template = template();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: cases(40),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let not_removed =
        damage().prop_filter("a missing export cannot be told from none", |d| !matches!(d, Damage::Remove));
    runner
        .run(&proptest::collection::vec(not_removed, 1..4), |damages| {
            let directory = copy(template.path());
            fs::write(directory.path().join("sled/db"), vec![0x5a; 300_000]).unwrap();
            remove_journals(directory.path());
            damages.iter().for_each(|damage| apply(&directory.path().join("export"), damage));
            let (db, report) = open(directory.path());
            prop_assert!(!report.is_clean());
            let there = names(&db);
            prop_assert!(there.len() == 150 || report.damage.iter().any(|line| line.contains("export")), "{report:?}");
            prop_assert!(there.iter().all(|name| report.restored.iter().any(|line| line.contains(name.as_str()))));
            Ok(())
        })
        .unwrap();
}

#[test]
fn journals_can_be_damaged_too() {
    let template = template();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: cases(30),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(damage(), any::<bool>()), |(damage, store_is_damaged)| {
            let directory = copy(template.path());
            if store_is_damaged {
                fs::write(directory.path().join("sled/db"), vec![0x5a; 300_000]).unwrap();
            }
            for entry in fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("journal-") {
                    apply(&entry.path(), &damage);
                }
            }
            let there = names(&open(directory.path()).0);
            let least = if store_is_damaged { 150 } else { 200 };
            prop_assert!(there.len() >= least);
            let (db, report) = open(directory.path());
            prop_assert!(report.is_clean(), "the second time: {report:?}");
            prop_assert_eq!(names(&db), there);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_single_damaged_record_is_restored_from_the_export_or_named_as_lost() {
    let template = template();
    let directory = copy(template.path());
    {
        let sled = sled::Config::default().path(directory.path().join("sled")).open().unwrap();
        remove_journals(directory.path());
        let break_record = |name: &str| {
            let key = [b"\x02n\0", name.as_bytes()].concat();
            let mut value = sled.get(&key).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            sled.insert(key, value).unwrap();
        };
        break_record("i0007");
        break_record("i0190");
        sled.insert(b"\xc8garbage", b"x").unwrap();
        sled.flush().unwrap();
    }
    let (db, report) = open(directory.path());
    assert_eq!(report.restored, ["image \"i0007\" in namespace \"n\""]);
    assert_eq!(report.lost, ["image \"i0190\" in namespace \"n\""]);
    assert_eq!(report.kept, None);
    assert_eq!(names(&db).len(), 199);
    drop(db);
    assert_eq!(open(directory.path()).1.lost, Vec::<String>::new());
}
