//! Asking an operator's programs whether an image may be pulled (containerd's image verifiers).
//!
//! Each program of a directory, by name, is called as `PROGRAM -name NAME -digest DIGEST -stdin-media-type TYPE` with
//! the image's descriptor as JSON at standard input. Exit status 0 means yes; what it prints is the reason. A program
//! that cannot be run, or does not answer in time, means no.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use gantry_types::Descriptor;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::config::ImageVerifier;
use crate::{Error, Result};

/// How much of what a program says is told.
const MAX_WORDS: u64 = 32 << 10;

/// What the programs get at standard input.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";

/// Asks all programs, one after the other.
///
/// # Errors
/// [`Error::Verifier`] for the first that says no.
pub(crate) async fn verify(verifier: &ImageVerifier, name: &str, image: &Descriptor) -> Result<()> {
    let most = usize::try_from(verifier.max_verifiers).unwrap_or(usize::MAX);
    let programs = programs(&verifier.bin_dir)?;
    if programs.len() > most {
        tracing::warn!(directory = %verifier.bin_dir.display(), most, there = programs.len(), "image verifiers are passed over");
    }
    for program in programs.iter().take(most) {
        let no = |reason: String| Error::Verifier { program: program.clone(), image: name.to_owned(), reason };
        match ask(&verifier.bin_dir.join(program), verifier.timeout, name, image).await {
            Ok((true, reason)) => tracing::debug!(program, name, reason, "image verified"),
            Ok((false, reason)) => return Err(no(reason)),
            Err(error) => return Err(no(error.to_string())),
        }
    }
    Ok(())
}

/// The names of the programs; none where there is no directory.
fn programs(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether one program agrees, and why.
async fn ask(program: &Path, limit: Duration, name: &str, image: &Descriptor) -> std::io::Result<(bool, String)> {
    let mut command = Command::new(program);
    command.args(["-name", name, "-digest", image.digest.as_str(), "-stdin-media-type", DESCRIPTOR]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn()?;
    let _group = Group::of(&child);
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer in {limit:?}"));
    tokio::time::timeout(limit, converse(&mut child, image)).await.map_err(|_| late())?
}

async fn converse(child: &mut Child, image: &Descriptor) -> std::io::Result<(bool, String)> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // A program need not read it.
            let _ = stdin.write_all(&serde_json::to_vec(image).unwrap_or_default()).await;
        }
    };
    let hear = async {
        let mut words = Vec::new();
        let Some(mut stdout) = stdout else { return Ok(words) };
        (&mut stdout).take(MAX_WORDS).read_to_end(&mut words).await?;
        // The rest is read too, so that the program does not die of it.
        tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
        Ok::<_, std::io::Error>(words)
    };
    let ((), words) = tokio::join!(tell, hear);
    let words = String::from_utf8_lossy(&words?).trim().to_owned();
    let status = child.wait().await?;
    Ok((status.success(), if words.is_empty() { status.to_string() } else { words }))
}

/// Ends a program with all that it has started.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly there is nobody left.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use gantry_types::Digest;

    use super::*;

    fn verifier(programs: &[(&str, &str)]) -> (tempfile::TempDir, ImageVerifier) {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let verifier =
            ImageVerifier { bin_dir: folder.path().into(), max_verifiers: -1, timeout: Duration::from_secs(5) };
        (folder, verifier)
    }

    async fn outcome(verifier: &ImageVerifier) -> std::result::Result<(), String> {
        let image = Descriptor::new(
            "application/vnd.oci.image.manifest.v1+json",
            format!("sha256:{}", "a".repeat(64)).parse::<Digest>().unwrap(),
            1,
        );
        verify(verifier, "r.example/a:1", &image).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn programs_are_asked_by_name_until_one_says_no() {
        let (folder, verifier) = verifier(&[
            ("10-yes", "cat > \"$0.stdin\"; echo \"$@\" > \"$0.args\"; echo fine"),
            ("20-no", "echo not signed; exit 3"),
            ("30-unasked", "touch \"$0.asked\""),
        ]);
        let refused = outcome(&verifier).await.unwrap_err();
        assert!(
            refused.contains("20-no") && refused.contains("not signed") && refused.contains("r.example/a:1"),
            "{refused}"
        );
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("10-yes.args").starts_with("-name r.example/a:1 -digest sha256:"), "{}", read("10-yes.args"));
        assert!(read("10-yes.stdin").contains("\"digest\":\"sha256:"), "{}", read("10-yes.stdin"));
        assert!(!folder.path().join("30-unasked.asked").exists());
    }

    #[tokio::test]
    async fn no_directory_means_no_check_and_a_bound_is_kept() {
        let (folder, mut verifier) = verifier(&[("a", "exit 0"), ("b", "exit 1")]);
        assert!(outcome(&verifier).await.is_err());
        verifier.max_verifiers = 1;
        assert_eq!(outcome(&verifier).await, Ok(()));
        verifier.bin_dir = folder.path().join("none");
        assert_eq!(outcome(&verifier).await, Ok(()));
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_cannot_run_means_no() {
        let (folder, mut verifier) = verifier(&[("a", "sleep 600 & sleep 600")]);
        verifier.timeout = Duration::from_millis(200);
        let began = Instant::now();
        assert!(outcome(&verifier).await.unwrap_err().contains("no answer"));
        assert!(began.elapsed() < Duration::from_secs(60));
        std::fs::set_permissions(folder.path().join("a"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(outcome(&verifier).await.is_err());
    }
}
