//! Power cuts: the store writes on an ext4 of its own in an image file; the image is copied as the device has it at one
//! moment, and the copy is mounted as after a reboot. What the kernel had not written yet is not in the copy.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use gantry_metadata::{Config, Db, Image};
use gantry_types::{Descriptor, Digest, Id, Labels};

const DIRECTORY: &str = "GANTRY_METADATA_TEST_CHILD";

/// Usually few, for time's sake; as many as `GANTRY_POWER_CUTS` says where it is set.
fn rounds() -> u64 {
    std::env::var("GANTRY_POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

fn ns() -> Id {
    "n".parse().unwrap()
}

fn image(name: &str) -> Image {
    Image {
        name: name.into(),
        target: Descriptor::new("m", Digest::of(name.as_bytes()), 1),
        labels: Labels::from([("padding".into(), "x".repeat(2000))]),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One of the ignored tests below, in a process of its own.
fn child(name: &str, directory: &Path, wrapper: &[&str]) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut argv: Vec<&str> = wrapper.to_vec();
    argv.extend([exe.to_str().unwrap(), "--exact", name, "--ignored", "--nocapture"]);
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).env(DIRECTORY, directory);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test of power cuts, in a process of its own"]
async fn child_writes_until_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    // As much as a careless program does for its data.
    let unsynced = File::create(directory.join("unsynced")).unwrap();
    let (db, _) =
        Db::open(Config { export_every: Duration::from_millis(200), ..Config::new(directory.join("db")) }).unwrap();
    let writer = async |writer: usize| {
        for n in 0.. {
            let name = format!("w{writer}-{n}");
            db.images(&ns()).create(image(&name), None).await.unwrap();
            writeln!(&unsynced, "{name}").unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "ACK {name}").and_then(|()| out.flush()).unwrap();
        }
    };
    tokio::join!(writer(0), writer(1), writer(2), writer(3), writer(4), writer(5), writer(6), writer(7));
}

/// Stops all threads, wherever they are, and returns when they stand still.
fn freeze(writer: &Child) {
    run("kill", &["-STOP", &writer.id().to_string()]);
    let (since, tasks) = (Instant::now(), format!("/proc/{}/task", writer.id()));
    let stands = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
    };
    while !fs::read_dir(&tasks).unwrap().flatten().all(stands) {
        assert!(since.elapsed() < Duration::from_secs(30), "the writer does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What was acknowledged before the cut.
fn acknowledged(log: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(log).unwrap();
    // The test harness writes its own words without a line's end; the last line may be half.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| Some(line.split_once("ACK ")?.1.to_owned())).collect()
}

/// Lets the writer run on a fresh disk, cuts its power after `patience`, and looks at what the disk holds.
fn cut(place: &Path, patience: Duration) -> usize {
    let paths = ["disk", "copy", "before", "after", "acknowledged"].map(|name| place.join(name));
    let [disk, copy, before, after, log] = paths.each_ref().map(|path| path.to_str().unwrap());
    File::create(disk).unwrap().set_len(192 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk]);
    fs::create_dir(before).and_then(|()| fs::create_dir(after)).unwrap();
    // Nothing comes to the disk in the time of a test but what is asked for.
    run("mount", &["-o", "loop,commit=300", disk, before]);
    let mut command = child("child_writes_until_killed", Path::new(before), &[]);
    let mut writer = command.stdout(File::create(log).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(patience);
    freeze(&writer);
    let acknowledged = acknowledged(Path::new(log));
    fs::copy(disk, copy).unwrap();
    writer.kill().and_then(|()| writer.wait()).unwrap();
    run("umount", &[before]);
    run("mount", &["-o", "loop", copy, after]);

    let (db, report) = Db::open(Config::new(Path::new(after).join("db"))).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let there: BTreeSet<String> = db.images(&ns()).scan().map(|image| image.unwrap().name).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged records are gone: {lost:?}", lost.len(), acknowledged.len());
    assert!(there.len() <= acknowledged.len() + 8, "no more than one write of each writer was under way");
    let unsynced = fs::read_to_string(Path::new(after).join("unsynced")).unwrap_or_default();
    assert!(unsynced.lines().count() < acknowledged.len(), "the cut is none: what nobody synced is there");
    drop(db);
    run("umount", &[after]);
    paths.iter().for_each(|path| drop(fs::remove_dir(path).or_else(|_| fs::remove_file(path))));
    acknowledged.len()
}

#[test]
#[ignore = "run by the test of power cuts, in a mount namespace of its own"]
fn child_cuts_the_power() {
    let Some(place) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let counts: Vec<usize> = (0..rounds()).map(|n| cut(&place, Duration::from_millis(300 + n * 157 % 900))).collect();
    assert!(counts.iter().sum::<usize>() > 20, "{counts:?}");
    println!("acknowledged before each cut: {counts:?}");
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_and_what_was_not_synced_does_not() {
    let place = tempfile::tempdir().unwrap();
    let mut command = child("child_cuts_the_power", place.path(), &["unshare", "-m"]);
    assert!(command.status().unwrap().success());
}
