//! PAX extended header records: `LENGTH KEY=VALUE\n` (POSIX.1-2008, pax, "pax Extended Header").

/// The records of an extended header.
pub(super) struct Records<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = record(self.0);
        self.0 = match record {
            Ok((_, _, rest)) => rest,
            Err(_) => &[],
        };
        Some(record.map(|(key, value, _)| (key, value)))
    }
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Key and value of the first record, and what follows it.
fn record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    const BAD: &str = "malformed PAX record";
    let blank = bytes.iter().take(20).position(|&byte| byte == b' ').ok_or(BAD)?;
    let length = usize::try_from(decimal(&bytes[..blank]).ok_or(BAD)?).map_err(|_| BAD)?;
    if length < blank + 3 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return Err(BAD);
    }
    let pair = &bytes[blank + 1..length - 1];
    let equals = pair.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
    if equals == 0 {
        return Err(BAD);
    }
    Ok((&pair[..equals], &pair[equals + 1..], &bytes[length..]))
}

/// A number of decimal digits only.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds and nanoseconds of `[-]SECONDS[.FRACTION]`; what is finer than a nanosecond is cut off.
pub(super) fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, value),
    };
    let dot = value.iter().position(|&byte| byte == b'.').unwrap_or(value.len());
    let seconds = i64::try_from(decimal(&value[..dot])?).ok()?;
    let nanoseconds = fraction(value.get(dot + 1..).unwrap_or(&[]))?;
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

fn fraction(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nine = digits.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    Some(nine.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

/// Appends the record `key=value` to `out`.
pub(super) fn append(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_records_are_refused() {
        let bad: [&[u8]; 9] =
            [b"x", b"5 a=b", b"6 a=bc", b"99 a=b\n", b"0 a=b\n", b"6 =bc\n", b"6 abc\n", b"-6 a=b\n", b"3 \n"];
        for bytes in bad {
            assert!(Records(bytes).any(|record| record.is_err()), "{bytes:?}");
        }
    }

    #[test]
    fn times_keep_nanoseconds_and_sign() {
        assert_eq!(time(b"1"), Some((1, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    proptest! {
        #[test]
        fn records_read_back_as_written(
            pairs in proptest::collection::vec(("[a-zA-Z.]{1,40}", proptest::collection::vec(any::<u8>(), 0..1200)), 0..5)
        ) {
            let mut bytes = Vec::new();
            for (key, value) in &pairs {
                append(&mut bytes, key.as_bytes(), value);
            }
            let read: Vec<_> = Records(&bytes).map(|record| record.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            let expected: Vec<_> = pairs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for record in Records(&bytes) {
                let _ = record;
            }
            let _ = time(&bytes);
        }
    }
}
