//! Points in time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

use super::InvalidMessage;

const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// What a `Timestamp` may say: the years 1 to 9999. Go's zero time is its beginning.
const SECONDS: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;

/// Understands a point in time.
///
/// # Errors
/// [`InvalidMessage::Time`] outside the years 1 to 9999, or when the nanoseconds are not within a second.
pub fn time_from_wire(time: Timestamp) -> Result<SystemTime, InvalidMessage> {
    let invalid = InvalidMessage::Time { seconds: time.seconds, nanos: time.nanos };
    if !SECONDS.contains(&time.seconds) || !(0..NANOS_PER_SECOND).contains(&time.nanos) {
        return Err(invalid);
    }
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let second = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|s| s.checked_add(Duration::from_nanos(time.nanos.unsigned_abs().into()))).ok_or(invalid)
}

/// A point in time as labels carry it: RFC 3339, whole seconds, UTC.
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp { nanos: 0, ..time.into() }.to_string()
}

/// Encodes a point in time.
pub fn time_to_wire(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_in_labels_have_whole_seconds() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(86_400_500)), "1970-01-02T00:00:00Z");
    }

    proptest! {
        #[test]
        fn a_time_comes_back_from_the_wire(seconds in SECONDS, nanos in 0..NANOS_PER_SECOND) {
            let sent = Timestamp { seconds, nanos };
            prop_assert_eq!(time_from_wire(sent).map(time_to_wire), Ok(sent));
        }
    }

    #[test]
    fn refuses_what_no_clock_shows() {
        for (seconds, nanos) in [(0, -1), (0, NANOS_PER_SECOND), (SECONDS.start - 1, 0), (SECONDS.end, 0)] {
            assert!(time_from_wire(Timestamp { seconds, nanos }).is_err(), "{seconds} s {nanos} ns");
        }
    }
}
