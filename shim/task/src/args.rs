//! The command line that daemons use: `[-flag value]… [start|delete]`, as Go's `flag` package reads it.

use std::path::PathBuf;

use crate::Error;

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verb {
    /// Make a serving shim and print its address.
    Start,
    /// The same in one process, for a daemon that knows this shim: it prints its address and serves on.
    Stay,
    /// Clear up after a container whose shim is gone.
    Delete,
    /// Serve, on the listening socket at descriptor 3.
    #[default]
    Serve,
    /// Print what this runtime is.
    Info,
    /// Print the version.
    Version,
    /// Be another shim's logging program: arguments as key and value (`log PATH max-line BYTES`, in any order).
    Log,
}

/// The command line, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub verb: Verb,
    /// `-id`: the container.
    pub id: String,
    /// `-namespace`: its namespace.
    pub namespace: String,
    /// `-address`: the daemon's gRPC socket.
    pub address: String,
    /// `-publish-binary`: the daemon's program; events travel over its socket instead.
    pub publish_binary: String,
    /// `-bundle`: the bundle's directory, given to `delete` only.
    pub bundle: Option<PathBuf>,
    /// `-socket`: where to serve; informative, the socket itself is inherited.
    pub socket: String,
    /// `-debug`.
    pub debug: bool,
    /// `log`: the file of a logging program.
    pub log: PathBuf,
    /// `max-line`: its longest line, as it came.
    pub max_line: String,
}

impl Args {
    /// Reads a command line without its program name.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown flag or verb, or a missing value; start, delete and serve need id and namespace.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args, Error> {
        let mut args = Args::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.strip_prefix('-') {
                Some(flag) => args.flag(flag.strip_prefix('-').unwrap_or(flag), &mut words)?,
                None if matches!(word.as_str(), "log" | "max-line") => args.logging(&word, words.next())?,
                None => {
                    args.verb = verb(&word)?;
                    break;
                }
            }
        }
        args.check()
    }

    fn flag(&mut self, flag: &str, words: &mut impl Iterator<Item = String>) -> Result<(), Error> {
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let on = |value: Option<String>| value.is_none_or(|value| matches!(value.as_str(), "1" | "t" | "true"));
        match name {
            "debug" => self.debug = on(inline),
            "v" | "version" => self.verb = Verb::Version,
            "info" => self.verb = Verb::Info,
            _ => {
                let value = inline.or_else(|| words.next());
                let value = value.ok_or_else(|| Error::usage(format!("flag needs an argument: -{name}")))?;
                self.set(name, value)?;
            }
        }
        Ok(())
    }

    fn logging(&mut self, key: &str, value: Option<String>) -> Result<(), Error> {
        self.verb = Verb::Log;
        let value = value.ok_or_else(|| Error::usage(format!("{key} needs a value")))?;
        match key {
            "log" => self.log = PathBuf::from(value),
            _ => self.max_line = value,
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Error> {
        match name {
            "id" => self.id = value,
            "namespace" => self.namespace = value,
            "address" => self.address = value,
            "publish-binary" => self.publish_binary = value,
            "socket" => self.socket = value,
            "bundle" => self.bundle = Some(PathBuf::from(value)),
            _ => return Err(Error::usage(format!("flag provided but not defined: -{name}"))),
        }
        Ok(())
    }

    fn check(self) -> Result<Args, Error> {
        if matches!(self.verb, Verb::Info | Verb::Version) {
            return Ok(self);
        }
        if self.verb == Verb::Log {
            return if self.log.is_absolute() { Ok(self) } else { Err(Error::usage("log needs an absolute path")) };
        }
        if self.id.is_empty() {
            return Err(Error::usage("-id is missing"));
        }
        if self.namespace.is_empty() {
            return Err(Error::usage("-namespace is missing"));
        }
        // Both become parts of paths.
        let valid = |text: &str| text.parse::<gantry_types::Id>().map_err(|error| Error::usage(error.to_string()));
        valid(&self.id)?;
        valid(&self.namespace)?;
        Ok(self)
    }
}

fn verb(word: &str) -> Result<Verb, Error> {
    match word {
        "start" => Ok(Verb::Start),
        "stay" => Ok(Verb::Stay),
        "delete" => Ok(Verb::Delete),
        _ => Err(Error::usage(format!("unknown verb {word:?}: start, stay and delete are known"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Error> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_daemons_command_lines_are_understood() {
        let start = "-namespace k8s.io -address /run/g.sock -publish-binary /usr/bin/gantryd -id c1 -debug start";
        let args = parse(start).unwrap();
        assert_eq!((args.verb, args.id.as_str(), args.namespace.as_str()), (Verb::Start, "c1", "k8s.io"));
        assert!(args.debug);
        let delete = parse("--namespace=x --id=c --bundle=/b -socket s delete").unwrap();
        assert_eq!((delete.verb, delete.bundle), (Verb::Delete, Some(PathBuf::from("/b"))));
        assert_eq!(parse("-namespace x -id c stay").unwrap().verb, Verb::Stay);
        assert_eq!(parse("-namespace x -id c").unwrap().verb, Verb::Serve);
        assert_eq!(parse("-info").unwrap().verb, Verb::Info);
        assert_eq!(parse("-v").unwrap().verb, Verb::Version);
        let log = parse("max-line 80 log /var/log/x").unwrap();
        assert_eq!((log.verb, log.log, log.max_line.as_str()), (Verb::Log, PathBuf::from("/var/log/x"), "80"));
    }

    #[test]
    fn nonsense_and_names_that_could_climb_are_refused() {
        for line in [
            "",
            "-id",
            "-id c start",
            "-namespace x -id ../c start",
            "-wat 1",
            "-namespace x -id c wat",
            "log x",
            "log",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
