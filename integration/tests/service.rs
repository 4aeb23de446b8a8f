//! The daemon as a service: health, reflection, its configuration, its socket, how it ends.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use gantry_integration::lab::{our_binary, peer_binary};
use gantry_integration::{Daemon, Lab, Outcome};

fn grpcurl(daemon: &Daemon, args: &[&str]) -> Outcome {
    let mut command = daemon.command(peer_binary("grpcurl"));
    command.args(["-plaintext", "-unix", "-authority", "localhost"]);
    let (flags, rest): (Vec<&&str>, Vec<&&str>) = args.iter().partition(|a| a.starts_with('-'));
    command.args(flags).arg(daemon.address()).args(rest);
    Outcome::of(command, Duration::from_secs(20))
}

#[test]
fn health_and_reflection_answer_a_client_that_knows_neither_us_nor_containerd() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let list = grpcurl(&daemon, &["list"]);
    for service in [
        "containers",
        "content",
        "diff",
        "events",
        "images",
        "introspection",
        "leases",
        "namespaces",
        "snapshots",
        "streaming",
        "tasks",
        "transfer",
        "version",
    ] {
        assert!(list.ok().contains(&format!("containerd.services.{service}.v1.")), "no {service}\n{list}");
    }
    let health = grpcurl(&daemon, &["grpc.health.v1.Health/Check"]);
    assert!(health.ok().contains("SERVING"), "{health}");
    let version = grpcurl(&daemon, &["containerd.services.version.v1.Version/Version"]);
    assert!(version.ok().contains("version"), "{version}");
    daemon.stop_clean();
}

#[test]
fn the_sockets_are_for_their_owner_and_go_with_the_daemon() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let address = daemon.address();
    let companion = address.with_extension("sock.ttrpc");
    for socket in [&address, &companion] {
        let meta = std::fs::metadata(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o007, 0, "{} is open to others", socket.display());
    }
    for dir in [daemon.root(), daemon.state()] {
        let mode = std::fs::metadata(&dir).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o002, 0, "{} is writable for others: {mode:o}", dir.display());
    }
    daemon.stop_clean();
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let mut second = daemon.command(our_binary("gantryd"));
    second.arg("--root").arg(daemon.root()).arg("--state").arg(daemon.state());
    second.arg("--address").arg(lab.path("other.sock"));
    let out = Outcome::of(second, Duration::from_secs(20));
    assert!(out.code != 0 && out.code < 128, "it must refuse by itself\n{out}");
    daemon.ctr(&["version"]).ok();
    daemon.stop_clean();
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_line() {
    let lab = Lab::new();
    let config = lab.path("bad.toml");
    std::fs::write(&config, "version = 3\n\n[grpc]\n  adress = \"/x\"\n").expect("write");
    let mut command = std::process::Command::new(our_binary("gantryd"));
    command.arg("--config").arg(&config).arg("--root").arg(lab.path("root")).arg("--state").arg(lab.path("state"));
    command.arg("--address").arg(lab.path("s.sock"));
    let out = Outcome::of(command, Duration::from_secs(5));
    let text = format!("{}{}", out.stdout, out.stderr);
    assert!(text.contains("bad.toml:4") && text.contains("adress"), "{out}");
}
