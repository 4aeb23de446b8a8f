//! What a task's processes are and which step is legal next: a state machine without effects.
//!
//! ```text
//!           start          exit            delete
//! created ────────▶ running ────▶ stopped ────────▶ (gone)
//!    │        pause │ ▲  resume      ▲
//!    │              ▼ │              │
//!    │             paused ───────────┤ exit
//!    └──────────────────────────────┘ exit (a created init can die; an execution that failed has no exit)
//! ```
//! Each legal step yields one [`Notice`], so that what is announced follows from what happened.

use std::collections::BTreeMap;

use gantry_types::ErrorKind;

use crate::Error;

/// A moment in wall-clock time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: i32,
}

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Moment { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
    }
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status, or 128 + the signal.
    pub status: u32,
    /// When.
    pub at: Moment,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for start.
    Created,
    /// Its program runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped(Exit),
}

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Where it is.
    pub phase: Phase,
    /// Its id on the host; 0 before it has one.
    pub pid: i32,
}

impl Process {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A task: the container's first process and those executed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    init: Process,
    execs: BTreeMap<String, Process>,
    deleted: bool,
}

/// A step. An empty `exec` means the first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The program runs, as this process.
    Start {
        /// Which process.
        exec: &'a str,
        /// Its id on the host (known already for the first process).
        pid: i32,
    },
    /// A further process is wanted.
    Exec {
        /// Its name.
        exec: &'a str,
    },
    /// All is frozen.
    Pause,
    /// All is thawed.
    Resume,
    /// A process ended.
    Exit {
        /// Which process.
        exec: &'a str,
        /// How.
        exit: Exit,
    },
    /// A process is forgotten.
    Delete {
        /// Which process.
        exec: &'a str,
    },
}

/// What is announced about a step: which process, and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Notice {
    /// The first process runs.
    Started { pid: i32 },
    /// A further process is known.
    ExecAdded { exec: String },
    /// A further process runs.
    ExecStarted { exec: String, pid: i32 },
    /// The task is frozen.
    Paused,
    /// The task is thawed.
    Resumed,
    /// A process ended.
    Exited { exec: String, pid: i32, exit: Exit },
    /// The first process is forgotten, and the task with it.
    Deleted { pid: i32, exit: Exit },
    /// A further process is forgotten; nobody is told.
    ExecDeleted,
}

impl Task {
    /// A task whose first process was just made.
    pub fn created(pid: i32) -> Task {
        Task { init: Process { phase: Phase::Created, pid }, execs: BTreeMap::new(), deleted: false }
    }

    /// A process; empty `exec` for the first.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn process(&self, exec: &str) -> Result<&Process, Error> {
        match exec {
            "" => Ok(&self.init),
            _ => self
                .execs
                .get(exec)
                .ok_or_else(|| refuse(ErrorKind::NotFound, format!("process does not exist {exec}: not found"))),
        }
    }

    /// Every process that has been executed, with its name.
    pub fn execs(&self) -> impl Iterator<Item = (&str, &Process)> {
        self.execs.iter().map(|(name, process)| (name.as_str(), process))
    }

    /// Whether a signal can be sent to a process.
    ///
    /// # Errors
    /// `NotFound` when it has ended or is unknown, `FailedPrecondition` when it was never started.
    pub fn check_kill(&self, exec: &str) -> Result<(), Error> {
        match (self.process(exec)?.phase, exec) {
            (Phase::Stopped(_), _) => Err(refuse(ErrorKind::NotFound, "process already finished")),
            (Phase::Created, exec) if !exec.is_empty() => {
                Err(refuse(ErrorKind::FailedPrecondition, "process not created"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a step is legal now.
    ///
    /// # Errors
    /// The refusal; `Unknown` where containerd's shim answers so and clients depend on it.
    pub fn check(&self, step: Step<'_>) -> Result<(), Error> {
        match step {
            Step::Start { exec, .. } => self.check_start(exec),
            Step::Exec { exec } => self.check_exec(exec),
            Step::Pause if self.init.phase == Phase::Running => Ok(()),
            Step::Pause => Err(self.cannot("pause", "container")),
            Step::Resume if self.init.phase == Phase::Paused => Ok(()),
            Step::Resume => Err(self.cannot("resume", "process")),
            Step::Exit { exec, .. } => match (self.process(exec)?.phase, exec) {
                (Phase::Stopped(_), _) => Err(refuse(ErrorKind::FailedPrecondition, "process ended already")),
                (Phase::Created, exec) if !exec.is_empty() => {
                    Err(refuse(ErrorKind::FailedPrecondition, "process was never started"))
                }
                _ => Ok(()),
            },
            Step::Delete { exec } => self.check_delete(exec),
        }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// As [`Task::check`]; the task is then unchanged.
    pub fn step(&mut self, step: Step<'_>) -> Result<Notice, Error> {
        self.check(step)?;
        Ok(match step {
            Step::Start { exec: "", pid } => {
                self.init = Process { phase: Phase::Running, pid };
                Notice::Started { pid: self.init.pid }
            }
            Step::Start { exec, pid } => {
                self.execs.insert(exec.to_owned(), Process { phase: Phase::Running, pid });
                Notice::ExecStarted { exec: exec.to_owned(), pid }
            }
            Step::Exec { exec } => {
                self.execs.insert(exec.to_owned(), Process { phase: Phase::Created, pid: 0 });
                Notice::ExecAdded { exec: exec.to_owned() }
            }
            Step::Pause => {
                self.init.phase = Phase::Paused;
                Notice::Paused
            }
            Step::Resume => {
                self.init.phase = Phase::Running;
                Notice::Resumed
            }
            Step::Exit { exec, exit } => self.exited(exec, exit),
            Step::Delete { exec: "" } => {
                self.deleted = true;
                let exit = self.init.exit().unwrap_or(Exit { status: 255, at: Moment::default() });
                Notice::Deleted { pid: self.init.pid, exit }
            }
            Step::Delete { exec } => {
                self.execs.remove(exec);
                Notice::ExecDeleted
            }
        })
    }

    fn exited(&mut self, exec: &str, exit: Exit) -> Notice {
        let process = match exec {
            "" => Some(&mut self.init),
            _ => self.execs.get_mut(exec),
        };
        let pid = process.map_or(0, |process| {
            process.phase = Phase::Stopped(exit);
            process.pid
        });
        Notice::Exited { exec: exec.to_owned(), pid, exit }
    }

    fn check_start(&self, exec: &str) -> Result<(), Error> {
        match (self.process(exec)?.phase, exec, self.init.phase) {
            (Phase::Created, "", _) | (Phase::Created, _, Phase::Running) => Ok(()),
            (Phase::Created, _, _) => Err(self.cannot("exec in", "state")),
            (Phase::Running | Phase::Paused, ..) => Err(refuse(ErrorKind::Unknown, "cannot start a running process")),
            (Phase::Stopped(_), ..) => Err(refuse(ErrorKind::Unknown, "cannot start a stopped process")),
        }
    }

    fn check_exec(&self, exec: &str) -> Result<(), Error> {
        if exec.is_empty() {
            return Err(refuse(ErrorKind::InvalidArgument, "an execution needs an id"));
        }
        if self.execs.contains_key(exec) {
            return Err(refuse(ErrorKind::AlreadyExists, format!("id {exec}: already exists")));
        }
        match self.init.phase {
            Phase::Created | Phase::Running => Ok(()),
            Phase::Paused | Phase::Stopped(_) => Err(self.cannot("exec in", "state")),
        }
    }

    fn check_delete(&self, exec: &str) -> Result<(), Error> {
        if self.deleted {
            return Err(refuse(ErrorKind::NotFound, "the task is deleted"));
        }
        match (self.process(exec)?.phase, exec) {
            (Phase::Stopped(_), _) => Ok(()),
            (Phase::Created, exec) if !exec.is_empty() => Ok(()),
            (phase, _) => {
                Err(refuse(ErrorKind::FailedPrecondition, format!("cannot delete a {} process", name(phase))))
            }
        }
    }

    /// In the words of containerd's shim, which clients show.
    fn cannot(&self, what: &str, noun: &str) -> Error {
        refuse(ErrorKind::Unknown, format!("cannot {what} a {} {noun}", name(self.init.phase)))
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Stopped(_) => "stopped",
    }
}

fn refuse(kind: ErrorKind, text: impl Into<String>) -> Error {
    Error::refused(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_types::HasKind;
    use proptest::prelude::*;

    const EXIT: Exit = Exit { status: 0, at: Moment { seconds: 1, nanos: 0 } };

    fn steps() -> impl Strategy<Value = Vec<Step<'static>>> {
        let exec = prop::sample::select(vec!["", "a", "b"]);
        let step = (0..6usize, exec).prop_map(|(kind, exec)| match kind {
            0 => Step::Start { exec, pid: 7 },
            1 => Step::Exec { exec },
            2 => Step::Pause,
            3 => Step::Resume,
            4 => Step::Exit { exec, exit: EXIT },
            _ => Step::Delete { exec },
        });
        prop::collection::vec(step, 0..60)
    }

    /// The order containerd demands, per process, as a word over letters.
    fn letter(notice: &Notice, of: &str) -> Option<char> {
        match notice {
            Notice::Started { .. } if of.is_empty() => Some('s'),
            Notice::Deleted { .. } if of.is_empty() => Some('d'),
            Notice::Paused if of.is_empty() => Some('p'),
            Notice::Resumed if of.is_empty() => Some('r'),
            Notice::Exited { exec, .. } if exec == of => Some('x'),
            Notice::ExecAdded { exec } if exec == of => Some('a'),
            Notice::ExecStarted { exec, .. } if exec == of => Some('s'),
            _ => None,
        }
    }

    /// Start, pauses in pairs, one exit, one delete: at any prefix.
    fn init_order(word: &str) -> bool {
        let mut state = 'c';
        word.chars().all(|c| {
            let next = match (state, c) {
                ('c', 's') | ('p', 'r') => 'r',
                ('r', 'p') => 'p',
                ('c' | 'r' | 'p', 'x') => 'x',
                ('x', 'd') => 'd',
                _ => return false,
            };
            state = next;
            true
        })
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_announcements_are_in_order(steps in steps()) {
            let mut task = Task::created(5);
            let notices: Vec<Notice> = steps.iter().filter_map(|&step| task.step(step).ok()).collect();
            let word = |of: &str| notices.iter().filter_map(|notice| letter(notice, of)).collect::<String>();
            prop_assert!(init_order(&word("")), "{}", word(""));
            for exec in ["a", "b"] {
                // An execution's name may be used again once it was deleted; a created one may be deleted unstarted.
                let lives = word(exec).replace("asx", "").replace("as", ".").replace('a', "");
                prop_assert!(lives.is_empty() || lives == ".", "{}", word(exec));
            }
        }

        #[test]
        fn a_refused_step_changes_nothing(steps in steps()) {
            let mut task = Task::created(5);
            for step in steps {
                let before = task.clone();
                if task.step(step).is_err() {
                    prop_assert_eq!(&task, &before);
                }
            }
        }
    }

    #[test]
    fn refusals_carry_the_codes_clients_expect() {
        let mut task = Task::created(5);
        let kind = |result: Result<Notice, Error>| result.unwrap_err().kind();
        assert_eq!(kind(task.step(Step::Pause)), ErrorKind::Unknown);
        assert_eq!(kind(task.step(Step::Delete { exec: "" })), ErrorKind::FailedPrecondition);
        assert_eq!(kind(task.step(Step::Start { exec: "no", pid: 1 })), ErrorKind::NotFound);
        task.step(Step::Exec { exec: "a" }).unwrap();
        assert_eq!(kind(task.step(Step::Exec { exec: "a" })), ErrorKind::AlreadyExists);
        assert_eq!(task.check_kill("a").unwrap_err().kind(), ErrorKind::FailedPrecondition);
        task.step(Step::Exit { exec: "", exit: EXIT }).unwrap();
        assert_eq!(kind(task.step(Step::Start { exec: "", pid: 0 })), ErrorKind::Unknown);
        assert_eq!(task.check_kill("").unwrap_err().kind(), ErrorKind::NotFound);
        task.step(Step::Delete { exec: "" }).unwrap();
        assert_eq!(kind(task.step(Step::Delete { exec: "" })), ErrorKind::NotFound);
    }
}
