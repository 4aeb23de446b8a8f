//! Our own client: the same road, tables for people, JSON for programs, the container's exit code.

use gantry_integration::images::{Image, busybox_root};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab};
use serde_json::Value;

#[test]
fn gctr_pulls_runs_lists_executes_and_removes() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    daemon.gctr(&["pull", &image]).ok();
    let out = daemon.gctr(&["run", "--rm", &image, &lab.id("fg"), "/bin/sh", "-c", "echo $FROM $X; exit 9"]);
    assert_eq!((out.code, out.stdout.as_str()), (9, "image\n"), "{out}");
    let out = daemon.gctr(&[
        "run",
        "--rm",
        "--env",
        "X=y",
        "--user",
        "web",
        &image,
        &lab.id("u"),
        "/bin/sh",
        "-c",
        "echo $X; id -u",
    ]);
    assert_eq!(out.ok(), "y\n33\n");

    let id = lab.id("bg");
    daemon.gctr(&["run", "-d", &image, &id, "/bin/sleep", "1000"]).ok();
    let ps = daemon.gctr(&["--json", "ps"]);
    let row: Value = serde_json::from_str(ps.ok().lines().next().expect("a line")).expect("JSON");
    assert_eq!((row["id"].as_str(), row["status"].as_str()), (Some(id.as_str()), Some("running")), "{ps}");
    let out = daemon.gctr(&["exec", &id, "/bin/sh", "-c", "echo more; exit 4"]);
    assert_eq!((out.code, out.stdout.as_str()), (4, "more\n"), "{out}");
    daemon.gctr(&["kill", "--signal", "KILL", &id]).ok();
    daemon.gctr(&["rm", "--force", &id]).ok();
    assert_eq!(daemon.gctr(&["--json", "ps"]).ok(), "");

    let images = daemon.gctr(&["images"]);
    assert!(images.ok().starts_with("NAME") && images.stdout.contains(&image), "{images}");
    assert!(daemon.gctr(&["content"]).ok().lines().count() >= 4);
    assert!(daemon.gctr(&["snapshots", "usage"]).ok().contains("iB"));
    assert!(daemon.gctr(&["namespaces"]).ok().contains("default"));
    assert!(daemon.gctr(&["version"]).ok().contains("daemon"));
    daemon.gctr(&["images", "rm", &image]).ok();
    assert_eq!(daemon.gctr(&["--json", "content"]).ok(), "");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn gctr_says_what_is_wrong_in_one_line() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.gctr(&["run", "example.com/none:1", "x"]).fails_with("example.com/none:1");
    daemon.gctr(&["kill", "--signal", "NOSUCH", "x"]).code(2).fails_with("is not a signal");
    daemon.gctr(&["--namespace", "../x", "ps"]).code(2);
    let nowhere = lab.path("nowhere.sock");
    daemon.gctr(&["--address", &nowhere.to_string_lossy(), "ps"]).fails_with("cannot reach the daemon");
    daemon.stop_clean();
}
