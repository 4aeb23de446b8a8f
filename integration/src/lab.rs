//! A laboratory: private namespaces and a directory that everything under test lives in.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::watch::Watch;

/// One test's world. The calling thread and all it spawns live in mount and network namespaces of their own, so
/// fixed ports and mounts of two laboratories never meet. Dropping it removes the directory.
pub struct Lab {
    dir: tempfile::TempDir,
    tag: String,
    _watch: Watch,
}

impl Lab {
    /// Moves the calling thread into a new laboratory.
    ///
    /// # Panics
    /// When namespaces cannot be made: these tests need root.
    pub fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("private namespaces need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make the mount tree private");
        run("ip", &["link", "set", "lo", "up"]);
        let tag = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Short, because unix socket paths end at 107 bytes.
        let dir = tempfile::Builder::new().prefix("gl-").tempdir_in("/tmp").expect("a temporary directory");
        let _watch = Watch::over(dir.path(), &tag);
        Lab { dir, tag, _watch }
    }

    /// Puts a fresh journaled ext4 under the laboratory's directory, which must still be empty: what is measured on the
    /// machine's own file system depends on what was done to it before. It goes with the namespace.
    ///
    /// It lies in memory where that has room for it, since a disk that is lent by the second, as virtual machines have
    /// them, slows down with what was written before. The kernel keeps in memory what is in that file system, and not a
    /// second time what is in the file below it.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    pub fn on_fresh_disk(&self, gibibytes: u32) {
        let in_memory = has_memory(u64::from(gibibytes) + SPARE);
        let image = match in_memory {
            true => Path::new("/dev/shm").join(self.dir().file_name().expect("a name")).with_extension("img"),
            false => self.dir().with_extension("img"),
        };
        let mut file = std::fs::File::create(&image).expect("make an image file");
        file.set_len(u64::from(gibibytes) << 30).expect("size the image file");
        if in_memory {
            // All of it is written: to have it allocated does not touch it, and a page that is new to a virtual machine
            // comes from its host. Disks that became slow where that was missing made pulls take half as long again.
            let zeros = vec![0; 1 << 20];
            (0..gibibytes << 10).for_each(|_| file.write_all(&zeros).expect("fill the image file"));
        }
        let text = image.to_string_lossy().into_owned();
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", &text]);
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &text]);
        let mounted = Command::new("mount").args([device.trim(), &self.dir().to_string_lossy()]).status();
        // The file system holds the device from now on, and that the file.
        run("losetup", &["--detach", device.trim()]);
        assert!(mounted.is_ok_and(|status| status.success()), "mount {device} at {:?}", self.dir());
        std::fs::remove_file(&image).expect("remove the image's name");
    }

    /// Makes a directory of the laboratory that lies in memory, as `/run` does, where daemons keep their state by default.
    /// It goes with the namespace.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    pub fn in_memory(&self, name: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("make a directory");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("mount a tmpfs");
    }

    /// The laboratory's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// An id that no other laboratory uses, so that the census can tell whose cgroups and processes it sees.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.tag)
    }

    /// What all of this laboratory's ids end in.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// Memory that a disk in memory leaves to those that are measured, GiB.
const SPARE: u64 = 8;

/// Whether the machine has so many GiB of memory that nobody uses, also for files in memory.
fn has_memory(gibibytes: u64) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available: u64 = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0);
    let files = nix::sys::statvfs::statvfs("/dev/shm").map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
    available >> 20 >= gibibytes && files >> 30 >= gibibytes
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

/// The top of the source tree.
pub fn source_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("integration lies in the source tree").to_owned()
}

/// A binary of ours. `GANTRY_BIN` names the directory; else the debug build, and for the shim its own static build
/// where there is one.
pub fn our_binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source_root().join("target"), PathBuf::from);
    let mut places = vec![
        target.join("x86_64-unknown-linux-musl/shim").join(name),
        target.join("debug").join(name),
        target.join("release").join(name),
    ];
    if let Some(dir) = std::env::var_os("GANTRY_BIN") {
        places.insert(0, PathBuf::from(dir).join(name));
    }
    let found = places.iter().find(|p| p.exists());
    found.unwrap_or_else(|| panic!("{name} is not built; looked at {places:?}; run integration/test")).clone()
}

/// A pinned peer's binary, or none where `integration/tools/install` has not run.
pub fn peer_binary(name: &str) -> PathBuf {
    let path = source_root().join("integration/tools/bin").join(name);
    assert!(path.exists(), "{name} is not installed: run integration/tools/install (needs Go)");
    path
}

/// Runs a program and insists that it succeeds; its standard output.
///
/// # Panics
/// When it cannot be started or fails, with what it said.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
