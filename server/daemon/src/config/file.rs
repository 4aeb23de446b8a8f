//! Reading a file: every value finds its key, or is reported with its line and what was perhaps meant.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::keys::{KEYS, WITHOUT_EFFECT};

/// Where in a file something is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    file: PathBuf,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// A value that stops the daemon from starting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {text}")]
pub struct Mistake {
    place: Place,
    text: String,
}

impl Mistake {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Mistake {
        Mistake { place: Place { file: path.into(), line: 0 }, text: format!("cannot be read: {error}") }
    }
}

/// A value that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    place: Place,
    text: String,
    /// Whether the key is one of containerd's, rather than nobody's.
    pub known: bool,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Applies every value of `text` to `config`.
pub(super) fn apply(config: &mut Config, path: &Path, text: &str) -> Result<Vec<Notice>, Vec<Mistake>> {
    let place = |span: Range<usize>| Place { file: path.into(), line: line(text, span.start) };
    let table = DeTable::parse(text).map_err(|error| {
        let place = place(error.span().unwrap_or_default());
        vec![Mistake { place, text: error.message().to_owned() }]
    })?;
    let mut leaves = Vec::new();
    flatten(table.get_ref(), &mut Vec::new(), &mut leaves);
    leaves.sort_by_key(|leaf| leaf.span.start);
    let (mut notices, mut mistakes) = (Vec::new(), Vec::new());
    for leaf in leaves {
        match leaf.apply(config) {
            Ok(None) => {}
            Ok(Some((known, text))) => notices.push(Notice { place: place(leaf.span), text, known }),
            Err(text) => mistakes.push(Mistake { place: place(leaf.span), text }),
        }
    }
    if mistakes.is_empty() { Ok(notices) } else { Err(mistakes) }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// A value that is no table, and the names on the way to it.
struct Leaf<'a> {
    path: Vec<&'a str>,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

fn flatten<'a>(table: &'a DeTable<'a>, path: &mut Vec<&'a str>, leaves: &mut Vec<Leaf<'a>>) {
    for (name, value) in table {
        path.push(name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(inner, path, leaves),
            leaf => leaves.push(Leaf { path: path.clone(), span: Spanned::span(name), value: leaf }),
        }
        path.pop();
    }
}

impl Leaf<'_> {
    /// Takes the value over. Otherwise says whether the key is known to containerd, and what there is to say; fails
    /// where the key is known and the value is not what it takes.
    fn apply(&self, config: &mut Config) -> Result<Option<(bool, String)>, String> {
        let name = self.path.join(".");
        if let Some(key) = KEYS.iter().find(|key| self.is(key.path)) {
            let last = self.path.last().copied().unwrap_or_default();
            return match (key.set)(config, last, self.value) {
                Ok(()) => Ok(None),
                Err(expected) => Err(format!("`{name}` must be {expected}")),
            };
        }
        if let Some(close) = self.meant() {
            return Ok(Some((false, format!("unknown key `{name}`; did you mean `{close}`?"))));
        }
        if WITHOUT_EFFECT.iter().any(|path| self.path.starts_with(path)) {
            return Ok(Some((true, format!("`{name}` has no effect here"))));
        }
        Ok(Some((false, format!("unknown key `{name}`"))))
    }

    fn is(&self, path: &[&str]) -> bool {
        path.len() == self.path.len() && path.iter().zip(&self.path).all(|(key, name)| *key == "*" || key == name)
    }

    /// The key of the same section that differs by a slip or two.
    fn meant(&self) -> Option<String> {
        let (last, section) = self.path.split_last()?;
        let near = KEYS.iter().filter_map(|key| {
            let (name, parents) = key.path.split_last()?;
            let distance = if parents == section { distance(name, last) } else { usize::MAX };
            (distance <= 2 && distance < name.len().min(last.len())).then_some((distance, key.path.join(".")))
        });
        near.min().map(|(_, name)| name)
    }
}

/// How many characters must be inserted, removed or replaced to turn one name into the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tracing::level_filters::LevelFilter;

    use super::*;

    fn parse(text: &str) -> Result<(Config, Vec<String>), Vec<String>> {
        let mut config = Config::default();
        match config.parse(Path::new("config.toml"), text) {
            Ok(notices) => Ok((config, notices.iter().map(ToString::to_string).collect())),
            Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn containerds_versions_two_and_four_mean_the_same() {
        let two = "version = 2\nroot = '/r'\n[grpc]\naddress = '/s'\ngid = 7\n[debug]\nlevel = 'debug'\n";
        let four = "version = 4\nroot = '/r'\n[debug]\nlevel = 'debug'\n\
                    [plugins.'io.containerd.server.v1.grpc']\naddress = '/s'\ngid = 7\n";
        for text in [two, four] {
            let (config, notices) = parse(text).unwrap();
            assert_eq!((config.root.as_path(), config.address.as_path()), (Path::new("/r"), Path::new("/s")));
            assert_eq!((config.owner.gid, config.log_level), (7, LevelFilter::DEBUG));
            assert_eq!(config.ttrpc_address(), Path::new("/s.ttrpc"));
            assert!(notices.is_empty(), "{notices:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_reported_with_its_line_and_what_was_meant() {
        let (_, notices) = parse("rot = '/r'\n\n[grpc]\nadress = '/s'\n[nonsense]\nx = 1\n").unwrap();
        assert_eq!(
            notices,
            [
                "config.toml:1: unknown key `rot`; did you mean `root`?",
                "config.toml:4: unknown key `grpc.adress`; did you mean `grpc.address`?",
                "config.toml:6: unknown key `nonsense.x`",
            ]
        );
    }

    #[test]
    fn old_sections_of_containerd_stop_nothing() {
        let text = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = 'runc'\n\
                    [proxy_plugins]\n[cgroup]\npath = ''\n";
        let (_, notices) = parse(text).unwrap();
        assert_eq!(notices.len(), 3, "{notices:?}");
        assert!(notices.iter().all(|notice| notice.ends_with("has no effect here")), "{notices:?}");
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes = parse("version = 9\nroot = 'relative'\n[debug]\nlevel = 'loud'\n").unwrap_err();
        assert_eq!(
            mistakes,
            [
                "config.toml:1: `version` must be a version from 1 to 4",
                "config.toml:2: `root` must be an absolute path",
                "config.toml:4: `debug.level` must be one of trace, debug, info, warn, error, fatal, panic",
            ]
        );
    }

    #[test]
    fn text_that_is_no_toml_is_told_by_line() {
        let mistakes = parse("version = 2\nroot = \n").unwrap_err();
        assert!(mistakes[0].starts_with("config.toml:2: "), "{mistakes:?}");
    }

    #[test]
    fn our_own_section_is_read() {
        let (config, notices) = parse("[gantry]\ndrain = '2s'\n[gantry.runtimes]\n'a.b.v1' = '/shim'\n").unwrap();
        assert_eq!(config.drain, Duration::from_secs(2));
        assert_eq!(config.runtimes, [("a.b.v1".to_owned(), "/shim".into())]);
        assert!(notices.is_empty(), "{notices:?}");
    }

    #[test]
    fn waits_for_registries_and_limits_of_layers_reach_the_engine() {
        let text = "[gantry.registry]\nanswer_timeout = '2s'\nmax_failures = 3\n[gantry.unpack]\nmax_bytes = 4096\n";
        let (config, notices) = parse(text).unwrap();
        assert!(notices.is_empty(), "{notices:?}");
        let engine = config.engine();
        assert_eq!((engine.registry.answer_timeout, engine.registry.max_failures), (Duration::from_secs(2), 3));
        assert_eq!(engine.unpack.max_bytes, 4096);
    }

    proptest! {
        #[test]
        fn nothing_a_file_can_hold_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn the_distance_is_symmetric_and_zero_only_for_equals(a in "[abc]{0,6}", b in "[abc]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
