//! The policy's file.

use std::path::{Path, PathBuf};

use gantry_types::Reference;
use serde::Deserialize;

/// Largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    default: Others,
    #[serde(default)]
    entry: Vec<Entry>,
}

/// What becomes of images that no entry fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Others {
    Accept,
    Reject,
}

/// What an entry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Require {
    Accept,
    Reject,
    Signature,
}

/// Which image a signature must be for, beside its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Identity {
    /// The repository that the signature names, where it names one, is the image's.
    #[default]
    Repository,
    Any,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(rename = "match")]
    pattern: String,
    pub(super) require: Require,
    #[serde(default)]
    pub(super) keys: Vec<PathBuf>,
    #[serde(default)]
    pub(super) identity: Identity,
}

impl Policy {
    /// Reads and checks a file; else says what is wrong with it.
    pub(super) fn read(path: &Path) -> Result<Policy, String> {
        let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        if size > MAX_SIZE {
            return Err(format!("it has {size} bytes, more than {MAX_SIZE}"));
        }
        Policy::parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
    }

    fn parse(text: &str) -> Result<Policy, String> {
        let policy: Policy = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        for (number, entry) in policy.entry.iter().enumerate() {
            entry.check()?;
            if policy.entry[..number].iter().any(|other| other.pattern == entry.pattern) {
                return Err(format!("{}: there twice", entry.title()));
            }
        }
        Ok(policy)
    }

    /// The entry that counts for an image.
    pub(super) fn entry(&self, image: &Reference) -> Option<&Entry> {
        let name = super::repository(image);
        let fitting = self.entry.iter().filter(|entry| entry.fits(&name));
        // An exact name is longer than any pattern that fits it, for this purpose.
        fitting.max_by_key(|entry| (!entry.pattern.ends_with("/*") && entry.pattern == name, entry.pattern.len()))
    }

    pub(super) fn accepts_others(&self) -> bool {
        self.default == Others::Accept
    }
}

impl Entry {
    pub(super) fn title(&self) -> String {
        format!("entry {:?}", self.pattern)
    }

    fn fits(&self, name: &str) -> bool {
        let below = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        match self.pattern.strip_suffix("/*") {
            Some(prefix) => below(prefix),
            None if self.pattern.contains('/') => name == self.pattern,
            None => below(&self.pattern),
        }
    }

    fn check(&self) -> Result<(), String> {
        let bad = |reason: &str| Err(format!("{}: {reason}", self.title()));
        let body = self.pattern.strip_suffix("/*").unwrap_or(&self.pattern);
        let parses = if body.contains('/') { body.to_owned() } else { format!("{body}/any") };
        if parses.parse::<Reference>().is_ok_and(|r| r.tag().is_none() && r.digest().is_none()) {
            match self.require {
                Require::Signature if self.keys.is_empty() => bad("a signature is required, but no keys are named"),
                Require::Accept | Require::Reject if !self.keys.is_empty() => {
                    bad("keys do nothing without `signature`")
                }
                _ if self.keys.iter().any(|key| !key.is_absolute()) => bad("keys are absolute paths"),
                _ => Ok(()),
            }
        } else {
            bad("`match` is HOST, HOST/PATH or HOST/PATH/*")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "default = 'reject'\n\
        [[entry]]\nmatch = 'r.example'\nrequire = 'accept'\n\
        [[entry]]\nmatch = 'r.example/team/*'\nrequire = 'signature'\nkeys = ['/k']\n\
        [[entry]]\nmatch = 'r.example/team/open'\nrequire = 'accept'\n\
        [[entry]]\nmatch = 'r.example:5000/team/*'\nrequire = 'reject'\n";

    #[test]
    fn the_longest_entry_that_fits_counts() {
        let policy = Policy::parse(POLICY).unwrap();
        let pattern = |image: &str| policy.entry(&image.parse().unwrap()).map(|entry| entry.pattern.as_str());
        assert_eq!(pattern("r.example/other:1"), Some("r.example"));
        assert_eq!(pattern("r.example/team/a/b:1"), Some("r.example/team/*"));
        assert_eq!(pattern("r.example/team/open:1"), Some("r.example/team/open"));
        assert_eq!(pattern("r.example/team/open/deep"), Some("r.example/team/*"));
        assert_eq!(pattern("r.example/teams:1"), Some("r.example"));
        assert_eq!(pattern("r.example:5000/team/a"), Some("r.example:5000/team/*"));
        assert_eq!(pattern("other.example/team/a"), None);
        assert!(!policy.accepts_others());
    }

    #[test]
    fn a_file_that_means_nothing_is_refused_with_its_reason() {
        let wrong = [
            ("", "missing field `default`"),
            ("default = 'maybe'", "maybe"),
            ("default = 'accept'\nmore = 1", "more"),
            ("default = 'accept'\n[[entry]]\nmatch = 'r.example'\nrequire = 'signature'", "no keys are named"),
            ("default = 'accept'\n[[entry]]\nmatch = 'r.example/a:1'\nrequire = 'accept'", "HOST/PATH"),
            ("default = 'accept'\n[[entry]]\nmatch = 'r.example'\nrequire = 'signature'\nkeys = ['k']", "absolute"),
            (
                "default = 'accept'\n[[entry]]\nmatch = 'r'\nrequire = 'accept'\n[[entry]]\nmatch = 'r'\nrequire = 'reject'",
                "twice",
            ),
        ];
        for (text, reason) in wrong {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
