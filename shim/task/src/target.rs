//! Where a stream leads, as a request says it: nowhere, a fifo or file, a program, a container's log, whoever attaches.

use std::path::PathBuf;

use crate::Error;

/// Longest stream address.
const MAX_URI: usize = 4096;
/// Longest line of a log before it is split, unless the address says otherwise.
pub const MAX_LINE: usize = 16 << 10;
/// The most an address may say.
const LONGEST_LINE: usize = 1 << 20;

/// Where one stream leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Null,
    /// A path: a fifo, or else a file to append to.
    Path(PathBuf),
    /// A file to append to, made if missing (`file://`).
    File(PathBuf),
    /// A program that takes it (`binary://`, `binary-v2://`).
    Program(Program),
    /// A log in Kubernetes' format, kept by this shim (`gantry-log://PATH?max-line=BYTES`); stdout and stderr together.
    Log(Log),
    /// Whoever attaches (`gantry-attach://`): a stdin that stays open until somebody ends it.
    Attach,
}

/// A container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Its file; none to keep nothing.
    pub path: Option<PathBuf>,
    /// Longest text of a record, bytes.
    pub max_line: usize,
}

/// A logging program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its path.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Whether it says by a byte that it is ready.
    pub wants_byte: bool,
}

impl Target {
    /// Reads a stream's address.
    ///
    /// # Errors
    /// [`Error::Invalid`] for relative paths, unknown schemes and malformed ones.
    pub fn parse(text: &str) -> Result<Target, Error> {
        let invalid = |reason| Error::Invalid { what: "stream", value: text.chars().take(200).collect(), reason };
        if text.is_empty() {
            return Ok(Target::Null);
        }
        if text.len() > MAX_URI || text.contains('\0') {
            return Err(invalid("it is too long, or contains NUL"));
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let named = matches!(scheme, "" | "fifo" | "file" | "binary" | "binary-v2") || !path.is_empty();
        if scheme != "gantry-attach" && named && !rest.starts_with('/') {
            return Err(invalid("its path is not absolute"));
        }
        match scheme {
            "" => Ok(Target::Path(text.into())),
            "fifo" => Ok(Target::Path(rest.into())),
            "file" => Ok(Target::File(decode(path).ok_or_else(|| invalid("bad escape"))?.into())),
            "binary" | "binary-v2" => Ok(Target::Program(Program {
                path: decode(path).ok_or_else(|| invalid("bad escape"))?,
                args: arguments(query).ok_or_else(|| invalid("bad escape"))?,
                wants_byte: scheme == "binary-v2",
            })),
            "gantry-log" => Ok(Target::Log(Log {
                path: Some(decode(path).ok_or_else(|| invalid("bad escape"))?)
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
                max_line: max_line(query).ok_or_else(|| invalid("max-line is no number of bytes"))?,
            })),
            "gantry-attach" => Ok(Target::Attach),
            _ => Err(invalid("the schemes are fifo, file, binary, binary-v2, gantry-log and gantry-attach")),
        }
    }
}

/// The limit that a query sets, within bounds.
pub fn max_line(query: &str) -> Option<usize> {
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("max-line=")) else { return Some(MAX_LINE) };
    text.parse().ok().filter(|&bytes| bytes > 0).map(|bytes: usize| bytes.min(LONGEST_LINE))
}

/// `k=v&k2` becomes `k v k2`: empty values are left out.
fn arguments(query: &str) -> Option<Vec<String>> {
    let words = query.split('&').filter(|pair| !pair.is_empty()).flat_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        [key, value]
    });
    words.filter(|word| !word.is_empty()).map(|word| decode(&word.replace('+', " "))).collect()
}

/// Undoes percent encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let value = digit(rest.first()?)? * 16 + digit(rest.get(1)?)?;
        bytes.push(u8::try_from(value).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_addresses_are_read_as_the_clients_write_them() {
        let parse = |text: &str| Target::parse(text).unwrap();
        assert_eq!(parse(""), Target::Null);
        assert_eq!(parse("/run/x/stdout"), Target::Path("/run/x/stdout".into()));
        assert_eq!(parse("file:///var/log/a%20b"), Target::File("/var/log/a b".into()));
        let Target::Program(program) = parse("binary:///bin/nerdctl?_X=/var/lib&k2&k3=a%26b") else { panic!() };
        assert_eq!(program.args, ["_X", "/var/lib", "k2", "k3", "a&b"]);
        assert!(!program.wants_byte);
        let log = |path: &str, max_line| Target::Log(Log { path: Some(path.into()), max_line });
        assert_eq!(parse("gantry-log:///var/log/0.log"), log("/var/log/0.log", 16 << 10));
        assert_eq!(parse("gantry-log:///a%3Fb?max-line=80"), log("/a?b", 80));
        assert_eq!(parse("gantry-log://?max-line=80"), Target::Log(Log { path: None, max_line: 80 }));
        assert_eq!(parse("gantry-attach://"), Target::Attach);
        for bad in [
            "gantry-log://x",
            "gantry-log:///x?max-line=0",
            "relative",
            "file://host/x",
            "http:///x",
            "binary:///x?%zz",
            "file:///%00",
            "ttrpc+unix:///s",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
