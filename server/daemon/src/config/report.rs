//! What a reader of configuration has to say: mistakes, which stop the daemon, and notices, which do not.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where in a file something is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    file: Arc<Path>,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
}

impl Place {
    pub(super) fn new(file: &Arc<Path>, line: usize) -> Place {
        Place { file: Arc::clone(file), line }
    }

    /// The file as a whole.
    pub(super) fn of_file(path: &Path) -> Place {
        Place { file: path.into(), line: 0 }
    }

    /// Of what no file says.
    pub(super) fn nowhere() -> Place {
        Place::of_file(Path::new(""))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 if self.file.as_os_str().is_empty() => f.write_str("the defaults"),
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// A value that stops the daemon from starting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{place}: {text}")]
pub struct Mistake {
    place: Place,
    text: String,
}

/// A value that has no effect, or not the whole one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Collects what there is to say, with the names on the way to the value being read.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notices: Vec<Notice>,
    path: Vec<String>,
}

impl Report {
    /// Runs `read` with these names behind the present ones.
    pub(super) fn within(&mut self, names: &[&str], read: impl FnOnce(&mut Report)) {
        let depth = self.path.len();
        self.path.extend(names.iter().map(|name| (*name).to_owned()));
        read(self);
        self.path.truncate(depth);
    }

    /// The present value's name, quoted where a part of it needs that.
    pub(super) fn name(&self) -> String {
        dotted(&self.path)
    }

    /// The present value must be something else.
    pub(super) fn must(&mut self, place: &Place, expected: &str) {
        self.mistake(place, format!("`{}` must be {expected}", self.name()));
    }

    pub(super) fn mistake(&mut self, place: &Place, text: impl Into<String>) {
        self.mistakes.push(Mistake { place: place.clone(), text: text.into() });
    }

    pub(super) fn notice(&mut self, place: &Place, text: impl Into<String>) {
        self.notices.push(Notice { place: place.clone(), text: text.into(), known: true });
    }

    pub(super) fn unknown(&mut self, place: &Place, text: impl Into<String>) {
        self.notices.push(Notice { place: place.clone(), text: text.into(), known: false });
    }

    /// The notices, or all mistakes, each list in the order of files and lines.
    pub(super) fn close(mut self) -> Result<Vec<Notice>, Vec<Mistake>> {
        self.mistakes.sort();
        self.notices.sort();
        if self.mistakes.is_empty() { Ok(self.notices) } else { Err(self.mistakes) }
    }
}

/// A name as a file would have it: `plugins."io.containerd.gc.v1.scheduler".schedule_delay`.
pub(super) fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let part = |part: &S| match part.as_ref() {
        part if !part.is_empty() && part.chars().all(bare) => part.to_owned(),
        part => format!("\"{part}\""),
    };
    path.iter().map(part).collect::<Vec<_>>().join(".")
}

/// The one of `names` that differs from `name` by a slip or two.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = names.filter_map(|known| {
        let distance = distance(known, name);
        (distance <= 2 && distance < known.len().min(name.len())).then_some((distance, known))
    });
    near.min().map(|(_, name)| name)
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_dots_is_quoted() {
        assert_eq!(dotted(&["plugins", "a.b.v1", "x"]), "plugins.\"a.b.v1\".x");
    }

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        let names = || ["address", "uid", "gid"].into_iter();
        assert_eq!(nearest("adress", names()), Some("address"));
        assert_eq!(nearest("path", names()), None);
    }

    proptest! {
        #[test]
        fn the_distance_is_symmetric_and_zero_only_for_equals(a in "[abc]{0,6}", b in "[abc]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}
