//! The log that callers of a runtime read failures from: logrus' text or JSON lines.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where failures are written; nowhere if no file was given or it cannot be opened.
pub(crate) struct Log {
    file: Option<std::fs::File>,
    json: bool,
}

impl Log {
    /// Opens a log for appending.
    pub(crate) fn open(path: Option<&str>, format: Option<&str>) -> Log {
        let file = path.and_then(|path| std::fs::File::options().append(true).create(true).open(path).ok());
        Log { file, json: format == Some("json") }
    }

    /// Writes a failure.
    pub(crate) fn error(&self, text: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let time = rfc3339(seconds);
        let text = serde_json::Value::from(text);
        // A full disk must not hide the failure itself, which is on stderr too.
        let _ = if self.json {
            writeln!(file, r#"{{"level":"error","msg":{text},"time":"{time}"}}"#)
        } else {
            writeln!(file, r#"time="{time}" level=error msg={text}"#)
        };
    }
}

/// A time in seconds since 1970 as RFC 3339, UTC.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(super::rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(super::rfc3339(1_794_000_000), "2026-11-06T21:20:00Z");
    }
}
