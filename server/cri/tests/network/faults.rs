//! A daemon that dies in the midst of something: whatever it began, the next one can undo.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gantry_cri::network::{PodNetwork, Stage};
use serde_json::json;

use crate::lab::{Lab, links, on_a_host};

/// The test binary runs itself as the daemon that dies: this test does nothing unless it is asked to.
#[test]
fn helper_that_attaches_and_detaches_a_pod() {
    let Ok(root) = std::env::var("NETWORK_HELPER_LAB") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let point = std::env::var("NETWORK_HELPER_POINT").unwrap();
    fail::cfg_callback(point, || {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    })
    .unwrap();
    runtime.block_on(async {
        let config =
            serde_json::from_str::<PodNetwork>(&fs::read_to_string(format!("{root}/pod.json")).unwrap()).unwrap();
        let lab = Lab::at(&root);
        let networks = lab.networks().await;
        networks.attach(config).await.unwrap();
        networks.detach("one").await.unwrap();
    });
}

fn die_at(lab: &Lab, pod: &PodNetwork, point: &str) {
    fs::write(lab.path("pod.json"), serde_json::to_vec(pod).unwrap()).unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "faults::helper_that_attaches_and_detaches_a_pod", "--nocapture"]);
    helper.env("NETWORK_HELPER_LAB", lab.path("")).env("NETWORK_HELPER_POINT", point);
    let ended = helper.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert_eq!(ended.signal(), Some(9), "{point}: {ended}");
}

#[test]
fn a_daemon_killed_at_any_step_leaves_nothing_that_the_next_cannot_undo() {
    let with_plugins = |lab: &Lab| {
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true,
             "ipam": {"type": "host-local", "dataDir": lab.path("ipam"), "subnet": "10.88.0.0/24"}},
            {"type": "tuning"}]});
        fs::create_dir_all(lab.path("net.d")).unwrap();
        fs::write(lab.path("net.d/10.conflist"), conf.to_string()).unwrap();
    };
    for plugins in [false, true] {
        for point in ["recorded", "after-plugin", "attached", "detached"] {
            if !plugins && point == "after-plugin" {
                continue;
            }
            on_a_host(move |lab| async move {
                if plugins {
                    with_plugins(&lab);
                }
                let pod = lab.pod("one").await;
                die_at(&lab, &pod, &format!("cri::network-{point}"));
                let networks = lab.networks().await;
                let left = networks.attachments();
                assert_eq!(left.len(), 1, "{point}");
                assert!(!matches!(left[0].stage, Stage::Attached(_)), "{point}: {:?}", left[0].stage);
                networks.detach("one").await.unwrap();
                // And the kubelet's next try succeeds.
                networks.attach(pod).await.unwrap();
                lab.finish(&networks).await;
                let addresses = fs::read_dir(lab.path("ipam/net")).into_iter().flatten().flatten();
                let held = addresses.filter(|f| f.file_name().to_string_lossy().starts_with('1')).count();
                assert_eq!(held, 0, "{point}: an address is held");
                assert!(!links().iter().any(|l| l.starts_with("veth")), "{point}: {:?}", links());
            });
        }
    }
}

#[test]
fn a_plugin_that_outlived_its_daemon_is_killed_before_its_work_is_undone() {
    on_a_host(|lab| async move {
        fs::create_dir_all(lab.path("bin")).unwrap();
        fs::create_dir_all(lab.path("net.d")).unwrap();
        let text = format!(
            "#!/bin/sh\ncd {}\n[ $CNI_COMMAND = DEL ] && {{ rm -f held; exit 0; }}\necho $$ >pid\nsleep 3\ntouch held\n",
            lab.path("").display()
        );
        fs::write(lab.path("bin/slow"), text).unwrap();
        fs::set_permissions(lab.path("bin/slow"), fs::Permissions::from_mode(0o755)).unwrap();
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "slow"}]});
        fs::write(lab.path("net.d/10.conflist"), conf.to_string()).unwrap();
        let pod = lab.pod("one").await;
        fs::write(lab.path("pod.json"), serde_json::to_vec(&pod).unwrap()).unwrap();
        let mut helper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::helper_that_attaches_and_detaches_a_pod"])
            .env("NETWORK_HELPER_LAB", lab.path(""))
            .env("NETWORK_HELPER_POINT", "never")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(lab.path("pid")).is_ok_and(|pid| pid.ends_with('\n')) {
            assert!(Instant::now() < until, "the plug-in was never called");
            std::thread::sleep(Duration::from_millis(10));
        }
        helper.kill().unwrap();
        helper.wait().unwrap();
        let networks = lab.networks().await;
        let pid = fs::read_to_string(lab.path("pid")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "it runs on: {stat}");
        networks.detach("one").await.unwrap();
        std::thread::sleep(Duration::from_secs(3));
        assert!(!lab.path("held").exists(), "it went on after it was undone");
        lab.finish(&networks).await;
    });
}

#[test]
fn a_damaged_record_is_set_aside_and_costs_no_start() {
    on_a_host(|lab| async move {
        let dir = lab.path("root/attachments");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("torn.json"), "{\"pod\":").unwrap();
        fs::write(dir.join("half.new"), "").unwrap();
        let networks = lab.networks().await;
        assert!(networks.attachments().is_empty());
        assert!(dir.join("torn.damaged").exists() && !dir.join("half.new").exists());
        lab.attach(&networks, "one").await;
        networks.detach("one").await.unwrap();
    });
}
