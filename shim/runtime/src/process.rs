//! The part of a plan that init and executed processes share: streams, labels, scheduling, user, capabilities, seccomp,
//! program.

use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use crate::capabilities::{self, Sets};
use crate::container::Stdio;
use crate::error::{Error, Result};
use crate::plan::{CArray, Exec, Op, SchedAttr, c_string};
use crate::seccomp::Program;
use crate::spec::{Process, Scheduler, User};
use crate::sys::{self, Fd};

/// What a process gets beside its own description.
pub(crate) struct Settings<'a> {
    pub(crate) process: &'a Process,
    pub(crate) stdio: Stdio<'a>,
    pub(crate) preserve_fds: u32,
    pub(crate) seccomp: Option<Program>,
    /// For the init: held back until start, by this fifo if there is one.
    pub(crate) gate: Option<Option<Fd>>,
    /// The host's null device.
    pub(crate) null: Arc<Fd>,
    /// The home directory, should the environment lack it.
    pub(crate) home: Option<String>,
}

/// The operations from the finished mounts to the program.
pub(crate) fn operations(settings: Settings<'_>) -> Result<Vec<Op>> {
    let Settings { process, stdio, preserve_fds, seccomp, gate, null, home } = settings;
    let mut ops = vec![streams(stdio, process, null, gate.is_some())];
    // Before any filter, which may not know the call; what is opened later closes at exec by itself.
    ops.push(Op::CloseFrom(3 + preserve_fds));
    ops.extend(labels(process)?);
    ops.extend(scheduling(process)?);
    let (late, early) = match (seccomp, process.no_new_privileges) {
        (Some(program), true) => (Some(program), None),
        (program, _) => (None, program),
    };
    if process.no_new_privileges {
        ops.push(Op::NoNewPrivileges);
    }
    // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so it comes before the capabilities go.
    ops.extend(early.map(Op::Seccomp));
    let directory = c_string(&process.cwd)?;
    ops.push(Op::WorkingDirectory { path: directory.clone(), late: false });
    let (held, known) = capabilities::held();
    let sets = process.capabilities.as_ref().map_or(Sets::default(), |names| Sets::new(names, held));
    ops.push(Op::Bounding { drop: known & !sets.bounding });
    ops.push(become_user(&process.user));
    ops.push(Op::Capabilities(sets));
    ops.push(Op::WorkingDirectory { path: directory, late: true });
    ops.push(Op::Find);
    ops.extend(gate.map(|fifo| Op::Gate { fifo }));
    ops.extend(late.map(Op::Seccomp));
    ops.push(Op::Exec(program(process, home)?));
    Ok(ops)
}

/// The host's null device, for a container that has none.
pub(crate) fn null() -> Result<Arc<Fd>> {
    let null = sys::openat(libc::AT_FDCWD, c"/dev/null", libc::O_RDWR);
    let null = null.map_err(|errno| Error::file("open", "/dev/null", std::io::Error::from_raw_os_error(errno)))?;
    Ok(Arc::new(null))
}

fn streams(stdio: Stdio<'_>, process: &Process, null: Arc<Fd>, bind: bool) -> Op {
    let owner = process.user.uid;
    match stdio {
        Stdio::Null => Op::Stdio { fds: [-1; 3], owner, null },
        Stdio::Fds(fds) => Op::Stdio { fds: fds.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())), owner, null },
        Stdio::Console(size) => {
            let size = size.or(process.console_size).map(|size| (size.height, size.width));
            Op::Console { size: size.filter(|size| *size != (0, 0)), bind, owner }
        }
    }
}

fn become_user(user: &User) -> Op {
    Op::User { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone(), umask: user.umask, set_groups: true }
}

fn labels(process: &Process) -> Result<Vec<Op>> {
    let mut ops = Vec::new();
    if !process.selinux_label.is_empty() {
        ops.push(Op::Label { file: c"self/attr/exec", value: c_string(&process.selinux_label)? });
    }
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" {
        if !std::path::Path::new("/sys/kernel/security/apparmor").exists()
            && std::fs::read("/sys/module/apparmor/parameters/enabled").map_or(true, |text| !text.starts_with(b"Y"))
        {
            let what = format!("AppArmor profile {:?}: AppArmor is not enabled here", process.apparmor_profile);
            return Err(Error::Unsupported { what });
        }
        let own = std::path::Path::new("/proc/self/attr/apparmor/exec").exists();
        let file = if own { c"self/attr/apparmor/exec" } else { c"self/attr/exec" };
        ops.push(Op::Label { file, value: c_string(&format!("exec {}", process.apparmor_profile))? });
    }
    Ok(ops)
}

fn scheduling(process: &Process) -> Result<Vec<Op>> {
    let mut ops = Vec::new();
    if let Some(scheduler) = &process.scheduler {
        ops.push(Op::Scheduler(Box::new(scheduler_attributes(scheduler)?)));
    }
    if let Some(priority) = &process.io_priority {
        let class = match priority.class.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" | "" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => return Err(Error::invalid("process.ioPriority", format!("{other:?} is no class"))),
        };
        if !(0..8).contains(&priority.priority) {
            return Err(Error::invalid("process.ioPriority", format!("priority {} is not 0 to 7", priority.priority)));
        }
        ops.push(Op::IoPriority(class << 13 | priority.priority));
    }
    Ok(ops)
}

fn scheduler_attributes(scheduler: &Scheduler) -> Result<SchedAttr> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(Error::invalid("process.scheduler", format!("{other:?} is no policy"))),
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(Error::invalid("process.scheduler", format!("{other:?} is no flag"))),
        };
    }
    Ok(SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority as u32,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

/// A CPU list (`0-3,8`) as a mask.
pub(crate) fn cpu_mask(field: &'static str, list: &str) -> Result<Box<[u64; 16]>> {
    let bad = || Error::invalid(field, format!("{list:?} is no list of numbers"));
    let mut mask = Box::new([0u64; 16]);
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if first > last || last >= 1024 {
            return Err(bad());
        }
        (first..=last).for_each(|cpu| mask[cpu / 64] |= 1 << (cpu % 64));
    }
    Ok(mask)
}

fn program(process: &Process, home: Option<String>) -> Result<Exec> {
    let program = process.args.first().cloned().unwrap_or_default();
    let searched = !program.contains('/');
    let candidates = if searched {
        let path = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or("");
        path.split(':')
            // An empty entry is the working directory, where Go's lookup refuses to find programs.
            .filter(|directory| directory.starts_with('/'))
            .map(|directory| c_string(&format!("{}/{program}", directory.trim_end_matches('/'))))
            .collect::<Result<Vec<_>>>()?
    } else {
        vec![c_string(&program)?]
    };
    let mut env = process.env.iter().map(String::as_str).collect::<Vec<_>>();
    let home = home.map(|home| format!("HOME={home}"));
    env.extend(home.as_deref());
    Ok(Exec {
        program,
        candidates,
        searched,
        argv: CArray::new(&process.args)?,
        envp: CArray::new(&env)?,
        own: own_executable(),
    })
}

/// Device and inode of this process's executable.
fn own_executable() -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    static OWN: OnceLock<(u64, u64)> = OnceLock::new();
    let look = || std::fs::metadata("/proc/self/exe").map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()));
    *OWN.get_or_init(look)
}

/// Why the program cannot run, in the words that clients look for.
pub(crate) fn executable_error(program: &str, searched: bool, errno: i32) -> Error {
    let reason = match errno {
        libc::ENOENT if searched => "executable file not found in $PATH".to_owned(),
        libc::ENOENT | libc::ENOTDIR => format!("stat {program}: no such file or directory"),
        libc::EACCES | libc::EPERM => "permission denied".to_owned(),
        libc::EISDIR => "is a directory".to_owned(),
        libc::ENOEXEC => "exec format error".to_owned(),
        libc::ELOOP => "too many levels of symbolic links".to_owned(),
        other => std::io::Error::from_raw_os_error(other).to_string(),
    };
    Error::Executable { program: program.to_owned(), reason, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_sought_in_the_absolute_entries_of_path() {
        let process = Process {
            args: vec!["true".into()],
            env: vec!["PATH=/nope".into(), "PATH=/bin::rel:/usr/bin/".into()],
            ..Default::default()
        };
        let exec = program(&process, None).unwrap();
        let paths = exec.candidates.iter().map(|c| c.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(paths, ["/bin/true", "/usr/bin/true"]);
    }

    #[test]
    fn cpu_lists_become_masks() {
        assert_eq!(cpu_mask("x", "0-2,65").unwrap()[..2], [7, 2]);
        assert!(cpu_mask("x", "3-1").is_err());
        assert!(cpu_mask("x", "9999").is_err());
    }
}
