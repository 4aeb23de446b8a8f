//! Credential helpers: programs that docker's tools ask for credentials (docker-credential-helpers, "get").

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{Ask, Credential, Credentials, CredentialsError};
use crate::Secret;

/// Longest a helper may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes that are read of its answer.
const MAX_ANSWER: u64 = 64 << 10;

/// A helper program and the name it knows the registry by.
pub(crate) struct Helper {
    program: String,
    server: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Secret,
}

impl Helper {
    /// `name`: a path, or NAME of `docker-credential-NAME` in the search path.
    pub(crate) fn new(name: &str, server: &str) -> Helper {
        let program = if name.starts_with('/') { name.to_owned() } else { format!("docker-credential-{name}") };
        Helper { program, server: server.to_owned() }
    }

    async fn run(&self) -> Result<Option<Credential>, CredentialsError> {
        if self.program[1..].contains('/') && !self.program.starts_with('/') {
            return Err(self.failed("its name has a slash, but it is not an absolute path"));
        }
        let mut child = self.spawn().map_err(|e| self.failed(e))?;
        let (mut input, output) = (child.stdin.take(), child.stdout.take());
        if let Some(input) = &mut input {
            // A helper that does not read is found out by its answer.
            let _ = input.write_all(self.server.as_bytes()).await;
        }
        drop(input);
        let mut text = Vec::new();
        if let Some(output) = output {
            output.take(MAX_ANSWER).read_to_end(&mut text).await.map_err(|e| self.failed(e))?;
        }
        let status = child.wait().await.map_err(|e| self.failed(e))?;
        self.answer(status.success(), &text)
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.kill_on_drop(true).spawn()
    }

    fn answer(&self, success: bool, text: &[u8]) -> Result<Option<Credential>, CredentialsError> {
        if !success {
            let said = String::from_utf8_lossy(text).to_lowercase();
            let unknown = said.contains("not found") || said.contains("no credentials");
            return if unknown { Ok(None) } else { Err(self.failed("it failed")) };
        }
        let answer: Answer = serde_json::from_slice(text).map_err(|_| self.failed("its answer is not a credential"))?;
        Ok(Credential::from_pair(&answer.username, answer.secret))
    }

    fn failed(&self, why: impl ToString) -> CredentialsError {
        CredentialsError::Helper { helper: self.program.clone(), why: why.to_string() }
    }
}

#[async_trait]
impl Credentials for Helper {
    async fn get(&self, _: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        match tokio::time::timeout(TIMEOUT, self.run()).await {
            Ok(answer) => answer,
            Err(_) => Err(self.failed(format!("no answer within {TIMEOUT:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(script: &str) -> Result<Option<Credential>, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper");
        // Written by a process of its own: a program that this one has open for writing cannot be run.
        let write = ["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""];
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(write).arg(&path).arg(script).status().unwrap().success());
        let helper = Helper::new(path.to_str().unwrap(), "r.example");
        helper.get(Ask { host: "r.example", reference: "", challenges: &[] }).await
    }

    #[tokio::test]
    async fn a_helper_is_told_the_host_and_its_answer_is_used() {
        let script = r#"read host; echo "{\"ServerURL\":\"$host\",\"Username\":\"$1-$host\",\"Secret\":\"s3cr3t\"}""#;
        let expected = Credential::Basic { username: "get-r.example".into(), password: Secret::new("s3cr3t") };
        assert_eq!(ask(script).await.unwrap(), Some(expected));
        let token = ask(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap();
        assert_eq!(token, Some(Credential::Refresh(Secret::new("t"))));
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_is_no_error_and_a_broken_one_is() {
        assert_eq!(ask("echo 'credentials not found in native keychain'; exit 1").await.unwrap(), None);
        assert!(ask("echo oops; exit 1").await.is_err());
        assert!(ask("echo '{'").await.is_err());
        let missing = Helper::new("gantry-test-missing", "x");
        assert!(missing.get(Ask { host: "x", reference: "", challenges: &[] }).await.is_err());
    }
}
