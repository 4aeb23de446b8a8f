//! What the labels of a container ask for, and what is to be done about it. Pure.

use gantry_types::Labels;
use serde::Deserialize;

use crate::tasks::{Process, Status};

/// Which state the task shall be in.
pub(super) const STATUS: &str = "containerd.io/restart.status";
const POLICY: &str = "containerd.io/restart.policy";
pub(super) const COUNT: &str = "containerd.io/restart.count";
pub(super) const EXPLICITLY_STOPPED: &str = "containerd.io/restart.explicitly-stopped";
const LOG_URI: &str = "containerd.io/restart.loguri";
/// Not followed since containerd 2.0.
const LOG_PATH: &str = "containerd.io/restart.logpath";

/// What the labels ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    status: Wanted,
    policy: Policy,
    pub(super) explicitly_stopped: bool,
    /// How often it was restarted; none where the label is no number.
    known_count: bool,
    pub(super) count: u64,
    /// URI for the task's output.
    pub(super) output: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    Running,
    Stopped,
    /// Not watched, or a state that the monitor does not bring about.
    #[default]
    Nothing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Policy {
    #[default]
    Always,
    /// At most so often; 0: without bound.
    OnFailure(u64),
    UnlessStopped,
    No,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Start,
    Stop,
}

impl Wish {
    /// What these labels ask for, and what of it is not followed, and why.
    pub(super) fn of(labels: &Labels) -> (Wish, Vec<String>) {
        let get = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
        let mut refused = Vec::new();
        let status = match get(STATUS) {
            "running" => Wanted::Running,
            "stopped" => Wanted::Stopped,
            _ => Wanted::Nothing,
        };
        let policy = policy(get(POLICY)).unwrap_or_else(|reason| {
            refused.push(reason);
            Policy::No
        });
        let output = match get(LOG_URI) {
            "" => None,
            uri => output(uri).map_err(|reason| refused.push(reason)).ok(),
        };
        if !get(LOG_PATH).is_empty() {
            refused.push(format!("{LOG_PATH} is no longer known: use {LOG_URI}"));
        }
        let explicitly_stopped = matches!(get(EXPLICITLY_STOPPED), "1" | "t" | "T" | "true" | "TRUE" | "True");
        let count = if get(COUNT).is_empty() { Some(0) } else { get(COUNT).parse().ok() };
        let known_count = count.is_some();
        (Wish { status, policy, explicitly_stopped, known_count, count: count.unwrap_or(0), output }, refused)
    }

    pub(super) fn is_always(&self) -> bool {
        self.policy == Policy::Always
    }

    fn restarts(&self, exit_status: u32) -> bool {
        match self.policy {
            _ if self.explicitly_stopped => false,
            Policy::Always | Policy::UnlessStopped => true,
            Policy::OnFailure(most) => exit_status != 0 && self.known_count && (most == 0 || self.count < most),
            Policy::No => false,
        }
    }
}

/// What to do with a container whose task is like this. `is_new`: its maker is probably still at work on it.
pub(super) fn decide(wish: &Wish, task: Option<&Process>, is_new: bool) -> Change {
    let status = task.map(|task| task.status);
    match (wish.status, status) {
        (Wanted::Nothing, _) => Change::None,
        (Wanted::Stopped, None | Some(Status::Stopped | Status::Unknown)) => Change::None,
        (Wanted::Stopped, _) => Change::Stop,
        (Wanted::Running, Some(Status::Running | Status::Paused | Status::Pausing)) => Change::None,
        // A silent shim may well hold a running task.
        (Wanted::Running, Some(Status::Unknown)) => Change::None,
        (Wanted::Running, None | Some(Status::Created)) if is_new => Change::None,
        (Wanted::Running, _) if wish.restarts(task.map_or(0, |task| task.exit_status)) => Change::Start,
        (Wanted::Running, _) => Change::None,
    }
}

/// `always`, `unless-stopped`, `no`, `on-failure`, `on-failure:N`; nothing means `always`.
fn policy(text: &str) -> Result<Policy, String> {
    let (name, most) = text.split_once(':').map_or((text, None), |(name, most)| (name, Some(most)));
    let policy = match name {
        "" | "always" => Policy::Always,
        "unless-stopped" => Policy::UnlessStopped,
        "no" => Policy::No,
        "on-failure" => {
            let most = most.unwrap_or("0");
            let bound = most.parse::<i64>().map_err(|_| format!("policy {text:?}: {most:?} is not a number"))?;
            return Ok(Policy::OnFailure(bound.max(0).unsigned_abs()));
        }
        _ => return Err(format!("policy {text:?} is none of no, always, unless-stopped, on-failure[:N]")),
    };
    match most {
        None => Ok(policy),
        Some(_) => Err(format!("policy {text:?}: only on-failure can be bounded")),
    }
}

/// An output that may be used: `file:///PATH` or `binary:///PATH?ARGUMENTS`, the path absolute, without `..`.
pub(super) fn output(uri: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("{LOG_URI} {:?}: {why}", uri.chars().take(120).collect::<String>()));
    let Some((scheme, rest)) = uri.split_once("://") else { return refuse("it has no scheme") };
    if !matches!(scheme, "file" | "binary") {
        return refuse("only file:///PATH and binary:///PATH are followed");
    }
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    // As the shim will read it: an escaped dot is a dot.
    let Some(path) = unescape(path) else { return refuse("its path is not text") };
    if !path.starts_with('/') {
        return refuse("its path is not absolute");
    }
    if path.len() < 2 || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return refuse("its path is not one of a file");
    }
    Ok(uri.to_owned())
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Whether an OCI configuration asks for a terminal.
pub(super) fn has_terminal(spec: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Spec {
        process: Option<Terminal>,
    }
    #[derive(Deserialize)]
    struct Terminal {
        #[serde(default)]
        terminal: bool,
    }
    serde_json::from_slice::<Spec>(spec).is_ok_and(|spec| spec.process.is_some_and(|process| process.terminal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(labels: &[(&str, &str)]) -> Wish {
        let labels = labels.iter().map(|(key, value)| (format!("containerd.io/restart.{key}"), (*value).to_owned()));
        Wish::of(&labels.collect()).0
    }

    fn task(status: Status, exit_status: u32) -> Process {
        Process {
            container_id: "c".into(),
            exec_id: String::new(),
            pid: 1,
            status,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            terminal: false,
            exit_status,
            exited_at: None,
        }
    }

    #[test]
    fn an_ended_task_is_started_as_its_policy_says() {
        type Case = (&'static [(&'static str, &'static str)], u32, Change);
        let cases: &[Case] = &[
            (&[("status", "running")], 0, Change::Start),
            (&[("status", "running"), ("policy", "always")], 1, Change::Start),
            (&[("status", "running"), ("policy", "unless-stopped")], 0, Change::Start),
            (&[("status", "running"), ("policy", "unless-stopped"), ("explicitly-stopped", "true")], 0, Change::None),
            (&[("status", "running"), ("policy", "always"), ("explicitly-stopped", "true")], 0, Change::None),
            (&[("status", "running"), ("policy", "no")], 1, Change::None),
            (&[("status", "running"), ("policy", "on-failure")], 0, Change::None),
            (&[("status", "running"), ("policy", "on-failure")], 1, Change::Start),
            (&[("status", "running"), ("policy", "on-failure:2"), ("count", "1")], 1, Change::Start),
            (&[("status", "running"), ("policy", "on-failure:2"), ("count", "2")], 1, Change::None),
            (&[("status", "running"), ("policy", "on-failure"), ("count", "x")], 1, Change::None),
            (&[("status", "running"), ("policy", "sometimes")], 1, Change::None),
            (&[("status", "running"), ("policy", "always:3")], 1, Change::None),
            (&[("status", "stopped")], 0, Change::None),
            (&[("status", "paused")], 0, Change::None),
            (&[], 1, Change::None),
        ];
        for (labels, exit, expected) in cases {
            assert_eq!(decide(&wish(labels), Some(&task(Status::Stopped, *exit)), false), *expected, "{labels:?}");
        }
    }

    #[test]
    fn what_runs_is_left_alone_and_ended_only_where_that_is_wished() {
        let (running, stopped) = (wish(&[("status", "running")]), wish(&[("status", "stopped")]));
        for status in [Status::Running, Status::Paused, Status::Pausing, Status::Unknown] {
            assert_eq!(decide(&running, Some(&task(status, 0)), false), Change::None, "{status:?}");
        }
        assert_eq!(decide(&stopped, Some(&task(Status::Running, 0)), false), Change::Stop);
        assert_eq!(decide(&stopped, None, false), Change::None);
        assert_eq!(decide(&running, None, false), Change::Start);
        assert_eq!(decide(&running, None, true), Change::None);
        assert_eq!(decide(&running, Some(&task(Status::Created, 0)), true), Change::None);
        assert_eq!(decide(&running, Some(&task(Status::Stopped, 0)), true), Change::Start);
    }

    #[test]
    fn an_output_is_a_file_or_a_program_by_absolute_path() {
        for good in ["file:///var/log/x", "binary:///usr/bin/logger?id=1", "binary:///usr/local/bin/nerdctl?a=/var"] {
            assert_eq!(output(good).as_deref(), Ok(good));
        }
        for bad in [
            "/var/log/x",
            "file://etc/passwd",
            "file:///../etc/passwd",
            "file:///a/%2e%2e/b",
            "file:///%zz",
            "fifo:///x",
            "http://x/y",
            "binary://sh?-c",
            "file:///",
            "npipe:////x",
            "FILE:///x",
        ] {
            assert!(output(bad).is_err(), "{bad}");
        }
        let labels =
            Labels::from([(LOG_URI.to_owned(), "fifo:///x".to_owned()), (LOG_PATH.to_owned(), "/x".to_owned())]);
        let (wish, refused) = Wish::of(&labels);
        assert_eq!((wish.output, refused.len()), (None, 2));
    }

    #[test]
    fn the_terminal_is_the_configurations() {
        assert!(has_terminal(br#"{"process":{"terminal":true}}"#));
        for without in [&b"{}"[..], br#"{"process":{}}"#, b"", b"no"] {
            assert!(!has_terminal(without));
        }
    }
}
