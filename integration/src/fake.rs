//! The fake registry in a laboratory's network namespace, and tar archives that no honest tool would write.

use std::ops::Deref;

use gantry_registry::fake::{Fake, Options};
use gantry_registry::image::{Builder, busybox};
use tokio::runtime::Runtime;

use crate::lab::Lab;

/// A registry that misbehaves as told. Its threads live in the laboratory of the thread that started it.
pub struct FakeRegistry {
    fake: Fake,
    _runtime: Runtime,
}

impl FakeRegistry {
    /// Starts one on a free port of loopback. `_lab` must be the laboratory that the calling thread is in.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(_lab: &Lab) -> FakeRegistry {
        let builder = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = builder.expect("a runtime");
        let fake = runtime.block_on(Fake::start(Options::default())).expect("listen on loopback");
        FakeRegistry { fake, _runtime: runtime }
    }
}

impl Deref for FakeRegistry {
    type Target = Fake;

    fn deref(&self) -> &Fake {
        &self.fake
    }
}

/// The first layer of a small image that runs: a static busybox and a few of its applets.
pub fn busybox_layer() -> Builder {
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| std::fs::read(path).ok());
    busybox(&program.expect("busybox is not installed: run integration/prepare"), &["sh", "echo", "cat", "sleep"])
}

/// A tar archive written field by field (POSIX.1-2017, pax, "ustar Interchange Format"), whatever they are.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An archive without entries.
    pub fn new() -> Tar {
        Tar::default()
    }

    /// An entry of type `flag`, with as much of `name` and `link` as a header holds.
    #[must_use]
    pub fn entry(self, flag: u8, name: &str, link: &str, content: &[u8]) -> Tar {
        self.announced(flag, name, link, content.len() as u64, content)
    }

    /// An entry that announces another size than it has.
    #[must_use]
    pub fn announced(mut self, flag: u8, name: &str, link: &str, size: u64, content: &[u8]) -> Tar {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, b"0000755\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[flag]);
        put(157, &link.as_bytes()[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Tar {
        self.entry(b'0', name, "", content)
    }

    /// A directory.
    #[must_use]
    pub fn directory(self, name: &str) -> Tar {
        self.entry(b'5', name, "", b"")
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(b'2', name, target, b"")
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Tar {
        self.entry(b'1', name, target, b"")
    }

    /// Extended header records for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut content = Vec::new();
        for (key, value) in records {
            // The length of a record counts its own digits.
            let rest = key.len() + value.len() + 3;
            let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).unwrap_or(rest);
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(b'x', "pax", "", &content)
    }

    /// Changes the header of the latest entry without mending its sum.
    #[must_use]
    pub fn spoiled(mut self) -> Tar {
        if let Some(byte) = self.0.iter_mut().rev().nth(511) {
            *byte ^= 0x55;
        }
        self
    }

    /// The archive as it is, without an end.
    pub fn cut(self) -> Vec<u8> {
        self.0
    }

    /// The archive with its end marker.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
