//! Mounts that the daemon performs and keeps by name, side by side with containerd.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gantry_integration::census;
use gantry_integration::{Daemon, Lab, Peer};
use serde_json::{Value, json};

use crate::bad_requests::Wire;

/// A call's answer, or its code.
pub(crate) fn call(wire: &Wire, method: &str, lease: Option<&str>, message: &Value) -> Result<Value, String> {
    let header = lease.map(|lease| format!("containerd-lease: {lease}"));
    let mut child = wire.start_with(method, Some("default"), "20", header.as_deref());
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(message.to_string().as_bytes()).expect("send the request");
    drop(stdin);
    let output = child.wait_with_output().expect("grpcurl ends");
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
    }
    let code = text.lines().find_map(|line| line.trim().strip_prefix("Code: "));
    Err(code.map_or_else(|| format!("no code: {text}"), str::to_owned))
}

fn mounts(wire: &Wire, method: &str, message: &Value) -> Result<Value, String> {
    call(wire, &format!("mounts.v1.Mounts/{method}"), Some("keeper"), message)
}

/// A daemon, how to call it, and a directory in which it makes things.
struct Side {
    daemon: Daemon,
    wire: Wire,
    root: PathBuf,
}

impl Side {
    fn new(lab: &Lab, peer: Peer) -> Side {
        let daemon = Daemon::start_with(lab, peer, "", &[]);
        let side = Side { wire: Wire::new(lab, &daemon), root: daemon.root(), daemon };
        call(&side.wire, "leases.v1.Leases/Create", None, &json!({"id": "keeper"})).expect("a lease");
        side
    }

    /// A file made into a file system, and an overlay upon it whose directories are made first.
    fn stack(&self, lower: &Path) -> Value {
        json!([
            {"type": "mkfs/ext4", "source": self.root.join("disk.img"), "options": ["X-containerd.mkfs.size=16MiB", "loop"]},
            {"type": "format/mkdir/overlay", "source": "overlay", "options": [
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0711",
                "upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work", format!("lowerdir={}", lower.display()),
            ]},
        ])
    }

    fn mounted(&self) -> usize {
        census::mounts(&self.daemon.state()).len()
    }
}

/// What clients use of an answer; paths and times are each daemon's own.
fn shape(info: &Value) -> Value {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|text| text.as_str().unwrap_or_default().split("/state/").next().unwrap_or_default().to_owned())
            .collect()
    };
    let list = |name: &str| info[name].as_array().cloned().unwrap_or_default();
    json!({
        "name": info["name"],
        "active": list("active").iter().map(|active| active["mount"]["type"].clone()).collect::<Vec<_>>(),
        "points": list("active").iter().filter(|active| active["mountPoint"].is_string()).count(),
        "system": list("system").iter().map(|mount| json!([mount["type"], texts(&mount["options"]).len()])).collect::<Vec<_>>(),
        "labels": info["labels"],
    })
}

#[test]
fn a_file_system_in_a_file_and_an_overlay_on_it_are_activated_as_by_containerd() {
    let lab = Lab::new();
    let lower = lab.path("lower");
    std::fs::create_dir_all(&lower).expect("make a directory");
    std::fs::write(lower.join("below"), "text").expect("write a file");
    let sides = [Side::new(&lab, Peer::Gantry), Side::new(&lab, Peer::Containerd)];
    let answers = sides.each_ref().map(|side| {
        let labels = json!({"mine": "1"});
        let wanted = json!({"name": "a/b", "mounts": side.stack(&lower), "labels": labels});
        let activated = mounts(&side.wire, "Activate", &wanted).expect("activated")["info"].clone();
        let again = mounts(&side.wire, "Activate", &wanted).expect_err("the name is taken");
        let temporary = json!({"name": "t", "temporary": true, "mounts": [
            {"type": "bind", "source": lower, "options": ["rbind", "ro"]},
        ]});
        let temporary = mounts(&side.wire, "Activate", &temporary).expect("activated")["info"].clone();
        assert!(Path::new(temporary["system"][0]["source"].as_str().expect("a source")).join("below").exists());
        let shown = mounts(&side.wire, "Info", &json!({"name": "a/b"})).expect("shown")["info"].clone();
        let codes = [
            ("Activate", json!({"name": "plain", "mounts": [{"type": "bind", "source": lower, "options": ["rbind"]}]})),
            ("Activate", json!({"name": "o", "mounts": [{"type": "format/bind", "source": "{{ mount 4 }}"}]})),
            ("Activate", json!({"name": "f", "mounts": [{"type": "mkfs/ext4", "source": side.root.join("x")}]})),
            (
                "Activate",
                json!({"name": "d", "mounts": [{"type": "mkdir/bind", "options": ["X-containerd.mkdir.path=/etc/x"]}]}),
            ),
            (
                "Activate",
                json!({"name": "m", "mounts": [{"type": "mkdir/bind", "options": ["X-containerd.mkdir.mode=1"]}]}),
            ),
            ("Info", json!({"name": "nobody"})),
            ("Update", json!({"info": {"name": "a/b"}})),
            ("Deactivate", json!({"name": "a/b"})),
            ("Deactivate", json!({"name": "a/b"})),
            ("Deactivate", json!({"name": "t"})),
        ];
        let codes: Vec<_> = codes.iter().map(|(method, message)| mounts(&side.wire, method, message).err()).collect();
        assert_eq!(side.mounted(), 0, "{:?}", census::mounts(&side.daemon.state()));
        let listed = mounts(&side.wire, "List", &json!({})).expect("listed");
        json!([shape(&activated), again, shape(&temporary), shape(&shown), codes, listed])
    });
    assert_eq!(answers[0], answers[1], "ours: {:#}\ncontainerd: {:#}", answers[0], answers[1]);
    let mode = std::fs::metadata(sides[0].root.join("disk.img")).expect("the disk").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn an_activation_outlives_the_daemon_and_goes_with_its_lease() {
    let lab = Lab::new();
    let lower = lab.path("lower");
    std::fs::create_dir_all(&lower).expect("make a directory");
    let mut side = Side::new(&lab, Peer::Gantry);
    let wanted = json!({"name": "kept", "mounts": side.stack(&lower)});
    mounts(&side.wire, "Activate", &wanted).expect("activated");
    side.daemon.crash();
    side.daemon.launch();
    assert_eq!(side.mounted(), 1);
    let shown = mounts(&side.wire, "Info", &json!({"name": "kept"})).expect("still there");
    assert_eq!(shown["info"]["system"].as_array().map(Vec::len), Some(1), "{shown}");
    // What lives as long as something that is not there goes with the next collection, as what has no lease does.
    let gone = json!({"name": "gone", "mounts": [{"type": "mkfs/ext4", "source": side.root.join("disk.img"),
        "options": ["X-containerd.mkfs.size=16MiB", "loop"]}, {"type": "format/bind", "source": "{{ mount 0 }}"}],
        "labels": {"containerd.io/gc.bref.container": "nobody"}});
    call(&side.wire, "mounts.v1.Mounts/Activate", None, &gone).expect("activated");
    assert_eq!(side.mounted(), 2);
    let dry = side.daemon.gctr(&["gc", "--dry-run", "--kept"]);
    let line = |of: &[&str]| dry.stdout.lines().any(|line| of.iter().all(|part| line.contains(part)));
    assert!(line(&["would go", " mount ", " gone "]), "{dry}");
    assert!(line(&["stays", " mount ", " kept ", "lease keeper → mount kept"]), "{dry}");
    call(&side.wire, "leases.v1.Leases/Create", None, &json!({"id": "other"})).expect("a lease");
    call(&side.wire, "leases.v1.Leases/Delete", None, &json!({"id": "other", "sync": true})).expect("collected");
    assert_eq!(mounts(&side.wire, "Info", &json!({"name": "gone"})), Err("NotFound".into()));
    assert_eq!(side.mounted(), 1);
    call(&side.wire, "leases.v1.Leases/Delete", None, &json!({"id": "keeper", "sync": true})).expect("collected");
    assert_eq!(side.mounted(), 0);
    side.daemon.stop_clean();
}

#[test]
fn what_was_unmounted_while_the_daemon_was_away_is_forgotten() {
    let lab = Lab::new();
    let lower = lab.path("lower");
    std::fs::create_dir_all(&lower).expect("make a directory");
    let mut side = Side::new(&lab, Peer::Gantry);
    let wanted = json!({"name": "lost", "mounts": side.stack(&lower)});
    mounts(&side.wire, "Activate", &wanted).expect("activated");
    side.daemon.crash();
    for point in census::mounts(&side.daemon.state()) {
        gantry_integration::lab::run("umount", &[&point]);
    }
    side.daemon.launch();
    assert_eq!(mounts(&side.wire, "Info", &json!({"name": "lost"})), Err("NotFound".into()));
    let left = std::fs::read_dir(side.daemon.state().join("mounts")).expect("a directory").count();
    assert_eq!(left, 0);
    mounts(&side.wire, "Activate", &wanted).expect("the name is free");
    mounts(&side.wire, "Deactivate", &json!({"name": "lost"})).expect("ended");
    side.daemon.stop_clean();
}
