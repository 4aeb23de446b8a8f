//! Published escapes from containers, as regression tests. Others are beside what they concern: leaked descriptors
//! (CVE-2024-21626), masked paths (CVE-2025-31133) and forged terminals in `features`, the overwritten runtime
//! (CVE-2019-5736) in `cli`, hostile checkpoints in `checkpoint`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use common::{Bundle, wait};
use gantry_runtime::Stdio;
use serde_json::json;

/// Without the tmpfs that usually covers the image's own `/dev`.
fn with_the_images_dev(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev");
    bundle
}

/// CVE-2025-52565: the terminal's bind mount on `/dev/console` is redirected by a link of the image.
#[test]
fn the_console_is_not_mounted_through_a_link_of_the_image() {
    let mut bundle = with_the_images_dev(&["sleep", "100"]);
    bundle.config["process"]["terminal"] = json!(true);
    symlink("/proc/sysrq-trigger", bundle.root().join("dev/console")).unwrap();
    match bundle.create(Stdio::Console(None)) {
        Err(error) => assert!(error.to_string().contains("terminal"), "{error}"),
        Ok(mut container) => {
            let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", container.pid())).unwrap();
            assert!(!table.contains("sysrq-trigger - devpts") && !table.contains(" /proc/sysrq-trigger rw"), "{table}");
            container.delete(true).unwrap();
            wait(container.pid());
        }
    }
    assert!(bundle.leftovers().is_empty());
}

/// CVE-2025-52881: what the runtime writes below `/proc` lands in a file of somebody else's choice.
#[test]
fn sysctls_are_written_to_the_real_procfs_whatever_covers_it() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    let fake = bundle.directory.path().join("fake");
    std::fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    std::fs::write(fake.join("sys/net/ipv4/ip_forward"), "fake").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/proc");
    mounts.push(json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"]}));
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    let mut container = bundle.create(Stdio::Null).unwrap();
    assert_eq!(std::fs::read_to_string(fake.join("sys/net/ipv4/ip_forward")).unwrap(), "fake");
    let pid = container.pid().to_string();
    let read = ["-t", &pid, "-n", "cat", "/proc/sys/net/ipv4/ip_forward"];
    let output = Command::new("nsenter").args(read).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "in the container's own namespace");
    container.delete(true).unwrap();
    wait(container.pid());
}

/// Makes a name of a directory a link and a directory again, until it is dropped, and not for ever.
struct Changer(std::process::Child);

impl Changer {
    fn new(directory: &std::path::Path) -> Changer {
        let change = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); rm -rf x; ln -s / x; rm x; ln -s ../../../../../.. x; \
                      rm x; mkdir -p x/y; done 2>/dev/null";
        let null = std::process::Stdio::null;
        let mut command = Command::new("busybox");
        command.args(["sh", "-c", change]).current_dir(directory).stdin(null()).stdout(null()).stderr(null());
        Changer(command.spawn().unwrap())
    }
}

impl Drop for Changer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CVE-2021-30465: a mount target in a shared volume turns into a link between the check and the mount.
#[test]
fn a_mount_target_that_changes_meanwhile_leads_nowhere_else() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    let (volume, secret) = (bundle.directory.path().join("volume"), bundle.directory.path().join("secret"));
    std::fs::create_dir(&volume).unwrap();
    std::fs::create_dir(&secret).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}));
    mounts.push(json!({"destination": "/volume/x/y", "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"]}));
    mounts.push(json!({"destination": "/volume/x", "type": "bind", "source": secret, "options": ["rbind"]}));
    let changer = Changer::new(&volume);
    let create = || -> bool {
        // A target that vanishes is an error; one that leads out of the root must not be mounted on.
        let Ok(mut container) = bundle.create(Stdio::Null) else { return false };
        let seen = std::fs::metadata(format!("/proc/{}/root/bin/busybox", container.pid())).unwrap();
        let own = std::fs::metadata(bundle.root().join("bin/busybox")).unwrap();
        assert_eq!((seen.dev(), seen.ino()), (own.dev(), own.ino()), "its root is its own");
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", container.pid())).unwrap();
        let parents = table.lines().filter_map(|line| line.split(' ').nth(1)).collect::<Vec<_>>();
        let ids = table.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>();
        assert_eq!(parents.iter().filter(|id| !ids.contains(id)).count(), 1, "all are below the root: {table}");
        container.delete(true).unwrap();
        wait(container.pid());
        true
    };
    for _ in 0..40 {
        create();
    }
    drop(changer);
    let _ = std::fs::remove_file(volume.join("x"));
    std::fs::create_dir_all(volume.join("x/y")).unwrap();
    assert!(create(), "in peace it can be made");
    assert!(bundle.leftovers().is_empty(), "{:?}", bundle.leftovers());
}
