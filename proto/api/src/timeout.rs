//! How much time a client gives: the header `grpc-timeout` (gRPC over HTTP/2, "Requests").

use std::time::Duration;

use tonic::metadata::MetadataMap;

const NAME: &str = "grpc-timeout";

/// What the headers say; none where they say nothing, or nonsense.
pub fn of(headers: &MetadataMap) -> Option<Duration> {
    headers.get(NAME).and_then(|value| value.to_str().ok()).and_then(parse)
}

/// Reads up to eight digits and a unit.
pub fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_timeout_is_known_and_nonsense_means_none() {
        let cases = [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5), ("6000000n", 6)];
        for (text, milliseconds) in cases {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "S", "1", "-1S", "123456789S", "1ä", "1X"] {
            assert_eq!(parse(text), None, "{text}");
        }
        let mut headers = MetadataMap::new();
        assert_eq!(of(&headers), None);
        headers.insert(NAME, "7S".parse().unwrap());
        assert_eq!(of(&headers), Some(Duration::from_secs(7)));
    }
}
