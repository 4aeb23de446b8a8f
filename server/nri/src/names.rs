//! Names of plug-ins: two digits, by which they are ordered, a dash, and a name.

/// Index and name of a file such as `10-logger`; none where it is not one.
pub(crate) fn parse(file: &str) -> Option<(&str, &str)> {
    let (index, name) = file.split_once('-')?;
    (is_index(index) && is_name(name)).then_some((index, name))
}

/// Whether a text is an index: two digits.
pub(crate) fn is_index(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a text is a name: letters, digits, `_`, `.`, `~`, `-`.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'~' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_called_by_its_index_and_its_name() {
        assert_eq!(parse("10-device-injector"), Some(("10", "device-injector")));
        for bad in ["logger", "1-logger", "ab-logger", "10-", "10-a/b", "100-x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
