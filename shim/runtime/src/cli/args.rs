//! Options as runc takes them: `-name` or `--name`, `=value` or the next word, before the first other word.

use std::collections::BTreeMap;

/// An option a command knows.
#[derive(Clone, Copy)]
pub(crate) struct Flag {
    name: &'static str,
    short: Option<char>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Switch,
    Value,
    Optional,
}

impl Flag {
    /// One that is there or not (`=true` and `=false` are understood).
    pub(crate) const fn switch(name: &'static str) -> Flag {
        Flag { name, short: None, kind: Kind::Switch }
    }

    /// One with a value; may be given several times.
    pub(crate) const fn value(name: &'static str) -> Flag {
        Flag { name, short: None, kind: Kind::Value }
    }

    /// One with a value only after `=`.
    pub(crate) const fn optional(name: &'static str) -> Flag {
        Flag { name, short: None, kind: Kind::Optional }
    }

    /// Its one-letter form.
    pub(crate) const fn short(self, letter: char) -> Flag {
        Flag { short: Some(letter), ..self }
    }

    fn is(&self, word: &str) -> bool {
        let mut letters = word.chars();
        word == self.name || (letters.next() == self.short && self.short.is_some() && letters.next().is_none())
    }
}

/// A wrong command line.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct UsageError {
    pub(crate) reason: String,
}

/// A parsed command line.
pub(crate) struct Args {
    values: BTreeMap<&'static str, Vec<String>>,
    /// What follows the options.
    pub(crate) rest: Vec<String>,
}

impl Args {
    /// Reads options up to the first word that is none, or `--`.
    pub(crate) fn parse(words: &[String], flags: &[Flag]) -> Result<Args, UsageError> {
        let mut values: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next_if(|word| word.starts_with('-') && word.len() > 1) {
            if word == "--" {
                break;
            }
            let (name, inline) = match word.trim_start_matches('-').split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.trim_start_matches('-'), None),
            };
            let Some(flag) = flags.iter().find(|flag| flag.is(name)) else {
                return Err(UsageError { reason: format!("flag provided but not defined: {word}") });
            };
            let value = match (flag.kind, inline) {
                (_, Some(value)) => value,
                (Kind::Switch | Kind::Optional, None) => "true".to_owned(),
                (Kind::Value, None) => words
                    .next()
                    .cloned()
                    .ok_or_else(|| UsageError { reason: format!("flag needs an argument: {word}") })?,
            };
            values.entry(flag.name).or_default().push(value);
        }
        Ok(Args { values, rest: words.cloned().collect() })
    }

    /// Whether a switch is on.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "false")
    }

    /// An option's last value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|all| all.last()).map(String::as_str)
    }

    /// All of an option's values.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// An option's number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, UsageError> {
        let bad = |text: &str| UsageError { reason: format!("invalid value {text:?} for flag -{name}") };
        self.get(name).map(|text| text.parse().map_err(|_| bad(text))).transpose()
    }

    /// The container's id: the first word after the options.
    pub(crate) fn id(&self) -> Result<&str, UsageError> {
        let missing = || UsageError { reason: "a container id is needed".to_owned() };
        self.rest.first().map(String::as_str).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[Flag::switch("all").short('a'), Flag::value("root"), Flag::optional("rootless")];

    fn parse(line: &str) -> Result<Args, UsageError> {
        Args::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), FLAGS)
    }

    #[test]
    fn options_are_understood_in_every_spelling() {
        let args = parse("-a --root /x -root=/y --rootless kill -a").unwrap();
        assert!(args.has("all") && args.has("rootless"));
        assert_eq!(args.get("root"), Some("/y"));
        assert_eq!(args.rest, ["kill", "-a"]);
        assert!(!parse("--all=false x").unwrap().has("all"));
        assert_eq!(parse("-- -a").unwrap().rest, ["-a"]);
    }

    #[test]
    fn unknown_options_and_missing_values_are_refused() {
        assert!(parse("--nope x").is_err());
        assert!(parse("--root").is_err());
        assert!(parse("x").unwrap().id().is_ok());
    }
}
