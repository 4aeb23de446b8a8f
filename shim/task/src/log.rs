//! One line a warning on stderr, which is the bundle's `log` fifo; lines nobody reads are dropped.

use std::fmt::Display;
use std::io::Write;

/// Says that something went wrong which no caller can be told.
pub fn warning(what: &str, detail: &dyn Display) {
    let detail = detail.to_string();
    // The fifo does not block; if the daemon does not read, the line is lost, which beats waiting.
    let _ = std::io::stderr().write_all(format!("level=warning msg={what:?} error={detail:?}\n").as_bytes());
}
