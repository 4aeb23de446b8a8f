//! The daemon's own score with the kernel's out-of-memory killer (proc_pid_oom_score_adj(5)).

use std::{fs, io};

const SELF: &str = "/proc/self/oom_score_adj";

/// Sets the score, −1000 to 1000. Lowering it needs `CAP_SYS_RESOURCE`; where that is refused, the score stays as it
/// is. Gives the score that now holds.
///
/// # Errors
/// When the kernel's file cannot be read or written for another reason.
pub fn set_score(wanted: i32) -> io::Result<i32> {
    match fs::write(SELF, wanted.clamp(-1000, 1000).to_string()) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    let now = fs::read_to_string(SELF)?;
    now.trim().parse().map_err(|_| io::Error::other(format!("{SELF} holds {now:?}")))
}
