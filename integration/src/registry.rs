//! A real registry on loopback: Debian's `docker-registry`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// A running docker-registry in the laboratory's network namespace.
pub struct DockerRegistry {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl DockerRegistry {
    /// Starts one on `127.0.0.1:5000`, storing below the laboratory's directory.
    ///
    /// # Panics
    /// When it is not installed (`integration/tools/install`) or does not answer.
    pub fn start(lab: &Lab) -> DockerRegistry {
        let (store, config, log) = (lab.path("registry"), lab.path("registry.yml"), lab.path("registry.log"));
        let port = 5000;
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            store.display()
        );
        std::fs::write(&config, text).expect("write the registry's configuration");
        let out = std::fs::File::create(&log).expect("make the registry's log");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a descriptor"))
            .stderr(out)
            .spawn()
            .expect("docker-registry is not installed: run integration/tools/install");
        let mut registry = DockerRegistry { child, port, log };
        registry.wait_until_it_answers();
        registry
    }

    /// `HOST:PORT`, the first part of references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How requests for a blob's bytes were answered so far: status and number of bytes.
    pub fn answers(&self, digest: &str) -> Vec<(u16, u64)> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let of_blob = log.lines().filter(|line| line.contains("\"GET ") && line.contains(&format!("/blobs/{digest} ")));
        // Its access log ends the quoted request with status and bytes.
        let answer = |line: &str| {
            let mut words = line.split("\" ").nth(1)?.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        of_blob.filter_map(answer).collect()
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait().ok().flatten();
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "docker-registry ended with {ended:?}:\n{}", log());
            assert!(start.elapsed() < Duration::from_secs(15), "docker-registry does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
