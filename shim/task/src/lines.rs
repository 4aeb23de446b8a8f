//! Kubernetes' log format: `TIMESTAMP stdout|stderr F|P TEXT`, one record a line; a line longer than the limit is split
//! into partial records (`P`), the last of which is full (`F`). Output that ends without a newline ends partial.

use crate::task::Moment;

/// Which stream a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and whatever a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Makes records of one stream's bytes.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    max: usize,
    /// The beginning of a line whose end has not come; at most `max` bytes between two calls.
    pending: Vec<u8>,
}

/// Capacity that an emptied buffer may keep.
const KEPT: usize = 1024;

impl Lines {
    /// Records of `stream`, of at most `max` bytes of text each (at least one).
    pub fn new(stream: Stream, max: usize) -> Lines {
        Lines { stream, max: max.max(1), pending: Vec::new() }
    }

    /// Takes bytes that came at `stamp`, and appends the records that are complete to `out`.
    pub fn feed(&mut self, bytes: &[u8], stamp: &str, out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(text) if self.pending.is_empty() && text.len() <= self.max => {
                    record(self.stream, 'F', text.strip_suffix(b"\r").unwrap_or(text), stamp, out);
                }
                Some(text) => {
                    self.pending.extend_from_slice(text);
                    if self.pending.last() == Some(&b'\r') {
                        self.pending.pop();
                    }
                    self.split(stamp, out);
                    self.flush('F', stamp, out);
                }
                None => {
                    self.pending.extend_from_slice(piece);
                    self.split(stamp, out);
                }
            }
        }
    }

    /// The stream has ended: what is left becomes a partial record.
    pub fn end(&mut self, stamp: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.flush('P', stamp, out);
        }
    }

    fn split(&mut self, stamp: &str, out: &mut Vec<u8>) {
        let mut from = 0;
        while self.pending.len() - from > self.max {
            record(self.stream, 'P', &self.pending[from..from + self.max], stamp, out);
            from += self.max;
        }
        self.pending.drain(..from);
    }

    fn flush(&mut self, tag: char, stamp: &str, out: &mut Vec<u8>) {
        record(self.stream, tag, &self.pending, stamp, out);
        self.pending.clear();
        self.pending.shrink_to(KEPT);
    }
}

fn record(stream: Stream, tag: char, text: &[u8], stamp: &str, out: &mut Vec<u8>) {
    out.reserve(stamp.len() + text.len() + 12);
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag as u8, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// A moment as records have it: RFC 3339 in UTC, with nanoseconds.
pub fn stamp(at: Moment) -> String {
    let (days, second) = (at.seconds.div_euclid(86_400), at.seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", at.nanos)
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar. Years begin in March here, so that the
/// leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(max: usize, pieces: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(Stream::Stdout, max), Vec::new());
        pieces.iter().for_each(|piece| lines.feed(piece, "T", &mut out));
        lines.end("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_become_full_records_whatever_the_pieces_they_come_in() {
        assert_eq!(records(100, &[b"a\nb", b"c\n\n"]), "T stdout F a\nT stdout F bc\nT stdout F \n");
    }

    #[test]
    fn long_lines_are_split_and_an_unfinished_one_stays_partial() {
        assert_eq!(records(3, &[b"abcdefgh\n"]), "T stdout P abc\nT stdout P def\nT stdout F gh\n");
        assert_eq!(records(3, &[b"abc\nab"]), "T stdout F abc\nT stdout P ab\n");
    }

    #[test]
    fn a_terminals_carriage_returns_are_no_text() {
        assert_eq!(records(9, &[b"a\r\n", b"b\r", b"\n\r\n"]), "T stdout F a\nT stdout F b\nT stdout F \n");
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_invented_and_no_text_is_too_long(
            pieces in prop::collection::vec("[a-c\n]{0,20}", 0..20),
            max in 1..12usize,
        ) {
            let all: String = pieces.concat();
            let bytes: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let mut text = String::new();
            for line in records(max, &bytes).lines() {
                let (tag, part) = line.strip_prefix("T stdout ").unwrap().split_at(2);
                prop_assert!(part.len() <= max);
                text.push_str(part);
                if tag == "F " {
                    text.push('\n');
                }
            }
            prop_assert_eq!(text, all);
        }
    }

    #[test]
    fn moments_are_written_as_kubernetes_reads_them() {
        let at = |seconds, nanos| stamp(Moment { seconds, nanos });
        assert_eq!(at(0, 5), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_827_696, 0), "2000-02-29T12:34:56.000000000Z");
        assert_eq!(at(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z");
    }
}
