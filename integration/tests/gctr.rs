//! Our own client: the same road, tables for people, JSON for programs, the container's exit code.

use std::time::Duration;

use gantry_integration::daemon::Peer;
use gantry_integration::images::{Image, busybox_root};
use gantry_integration::lab::{our_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_integration::{Daemon, Lab, Outcome};
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
fn what_a_container_has_changed_becomes_an_image() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    // The wire is the same: our client commits by containerd's daemon, too.
    for daemon in [Daemon::start(&lab), Daemon::start_with(&lab, Peer::Containerd, "", &[])] {
        daemon.ctr(&["images", "pull", "--plain-http", &image]).ok();
        let id = lab.id("c");
        let script =
            "echo new > /new; rm /etc/group; chmod 700 /tmp; touch -t 202001010000 /new; touch /done; exec sleep 1000";
        daemon.gctr(&["run", "-d", &image, &id, "/bin/sh", "-c", script]).ok();
        let waiting =
            "n=0; until test -e /done; do n=$((n + 1)); test $n -lt 200 || exit 1; sleep 0.05; done; rm /done";
        daemon.gctr(&["exec", &id, "/bin/sh", "-c", waiting]).ok();
        let commit = |name: &str| {
            let epoch = ["--source-date-epoch", "1700000000", "--author", "somebody", "-m", "why"];
            let change = ["--change", r#"CMD ["/bin/cat", "/new"]"#];
            daemon.gctr(&[&["commit"][..], &epoch, &change, &[id.as_str(), name]].concat()).ok().trim().to_owned()
        };
        let digests = [commit("local/one:1"), commit("local/two:1"), commit("local/two:1")];
        assert!(digests.iter().all(|digest| *digest == digests[0]), "the same bytes each time: {digests:?}");
        let ps = daemon.gctr(&["ps"]);
        assert!(ps.ok().contains("running"), "it goes on after the commit: {ps}");
        daemon.gctr(&["rm", "--force", &id]).ok();
        let out = daemon.gctr(&["run", "--rm", "local/two:1", &lab.id("n")]);
        assert_eq!((out.code, out.stdout.as_str()), (0, "new\n"), "{out}");
        let look = ["/bin/sh", "-c", "stat -c %a /tmp; ls /etc; echo $FROM"];
        let out = daemon.gctr(&[&["run", "--rm", "local/one:1", &lab.id("l")][..], &look].concat());
        assert_eq!(out.ok(), "700\npasswd\nimage\n");
        // What was pushed and pulled elsewhere is the same image.
        let pushed = format!("{}/committed:1", registry.host());
        daemon.gctr(&["images", "tag", "local/one:1", &pushed]).ok();
        daemon.ctr(&["images", "push", "--plain-http", &pushed]).ok();
        let inspect = run("skopeo", &["inspect", "--config", "--tls-verify=false", &format!("docker://{pushed}")]);
        let config: Value = serde_json::from_str(&inspect).expect("JSON");
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
        let history = config["history"].as_array().and_then(|all| all.last()).expect("a line of history");
        assert_eq!((&history["author"], &history["comment"]), (&"somebody".into(), &"why".into()));
        daemon.assert_nothing_leaked();
        daemon.stop_clean();
    }
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

/// Runs a shell command in a terminal of 33 rows and 99 columns, by util-linux's `script`, and types `input` into it.
fn in_a_terminal(daemon: &Daemon, command: &str, input: &str) -> Outcome {
    let gctr = our_binary("gctr");
    let line = format!("stty rows 33 cols 99; {} {command}", gctr.display());
    let mut shell = daemon.command("/bin/sh");
    shell.env("GANTRY_ADDRESS", daemon.address()).env("TERM", "xterm");
    shell.env("LINE", line).env("TYPED", input);
    // What is typed waits until the terminal is the container's; its end would be taken for a hang-up.
    shell.args(["-c", "(sleep 0.6; printf \"$TYPED\"; sleep 1.5) | script -qec \"$LINE\" /dev/null"]);
    Outcome::of(shell, Duration::from_secs(30))
}

#[test]
fn a_terminal_goes_all_the_way_and_a_pull_draws_bars_on_one() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let daemon = Daemon::start(&lab);
    let image = Image::new(&lab, "busybox").layer(&busybox_root(&lab)).push(&registry.host(), "busybox");
    let pull = in_a_terminal(&daemon, &format!("pull {image}"), "");
    assert!(pull.ok().contains("\u{1b}[") && pull.stdout.contains(&image), "{pull}");
    let id = lab.id("t");
    let script = "/bin/busybox stty size; /bin/busybox tty; exit 9";
    let out = in_a_terminal(&daemon, &format!("run --rm -t {image} {id} /bin/sh -c '{script}'"), "");
    out.code(9);
    assert!(out.stdout.contains("33 99") && out.stdout.contains("/dev/pts/"), "{out}");
    // A shell that is typed into.
    let out = in_a_terminal(&daemon, &format!("run --rm -t {image} {id} /bin/sh"), "echo $((40+2))\\nexit 7\\n");
    out.code(7);
    assert!(out.stdout.contains("42"), "{out}");
    let bg = lab.id("bg");
    daemon.gctr(&["run", "-d", &image, &bg, "/bin/sleep", "1000"]).ok();
    let out = in_a_terminal(&daemon, &format!("exec -t {bg} /bin/sh"), "/bin/busybox stty size\\nexit 5\\n");
    out.code(5);
    assert!(out.stdout.contains("33 99"), "{out}");
    daemon.gctr(&["rm", &bg]).fails_with(&bg);
    daemon.gctr(&["rm", "--force", &bg]).ok();
    assert_eq!(daemon.gctr(&["--json", "ps"]).ok(), "");
    daemon.assert_nothing_leaked();
    daemon.stop_clean();
}

#[test]
fn gctr_shows_what_runs_what_would_go_and_whose_the_bytes_are() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    assert!(daemon.gctr(&["gc", "--dry-run"]).ok().contains("0 records would go"));
    assert!(daemon.gctr(&["gc"]).ok().contains("0 records went"));
    assert!(daemon.gctr(&["ops"]).ok().starts_with("ID"));
    let du = daemon.gctr(&["du"]);
    assert!(du.ok().lines().last().is_some_and(|line| line.starts_with("total")), "{du}");
    assert!(daemon.gctr(&["du", "--all"]).ok().contains("metadata"));
    daemon.stop_clean();
}
