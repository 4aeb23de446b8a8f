//! Options as fstab(5), containerd and the OCI runtime specification spell them, sorted into what the kernel's calls take.

use gantry_types::{ErrorKind, HasKind};

use crate::idmap::{IdMap, InvalidIdMap};
use crate::sys;

/// Whether a mount is a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Only the mount that holds the source (`bind`).
    One,
    /// It and all mounts below (`rbind`).
    Recursive,
}

/// Where mount events travel (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// `libc::MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// Also for all mounts below (`rshared` …).
    pub recursive: bool,
}

/// `MOUNT_ATTR_*` bits to set and to clear; the last spelling wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear. Holds `MOUNT_ATTR__ATIME` whenever an access time mode is set.
    pub clear: u64,
}

impl Attributes {
    /// Whether nothing is to change.
    pub fn is_empty(self) -> bool {
        self == Attributes::default()
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Change::Clear(bit) => {
                self.set &= !bit;
                self.clear |= bit;
            }
            Change::AccessTime(mode) => {
                self.set = (self.set & !sys::MOUNT_ATTR__ATIME) | mode;
                self.clear |= sys::MOUNT_ATTR__ATIME;
            }
        }
    }
}

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// `remount`: change an existing mount.
    pub remount: bool,
    /// Of this mount: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, …
    pub attributes: Attributes,
    /// Of this mount and all below: `rro`, `rnosuid`, …
    pub recursive: Attributes,
    /// In the order given.
    pub propagation: Vec<Propagation>,
    /// Superblock flags by name for `FSCONFIG_SET_FLAG`, in the order given: `sync`, `dirsync`, `lazytime`, `mand`, …
    pub superblock: Vec<&'static str>,
    /// `tmpcopyup`: a tmpfs is to start with the content it covers (the caller's work).
    pub copy_up: bool,
    /// `idmap` (false) or `ridmap` (true).
    pub idmap: Option<bool>,
    /// `uidmap=`.
    pub uid_map: Option<IdMap>,
    /// `gidmap=`.
    pub gid_map: Option<IdMap>,
    /// `loop`: the source is a file to be put behind a loop device.
    pub loop_device: bool,
    /// Everything else, for the file system: key and value.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Sorts `options`. An unknown word is data for the file system.
    ///
    /// # Errors
    /// [`InvalidOption`] for NUL bytes, malformed id maps, and words meant for others (`X-containerd.…`).
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Options, InvalidOption> {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option.as_ref())?;
        }
        Ok(parsed)
    }

    /// Whether the mount itself is to be read-only.
    pub fn read_only(&self) -> bool {
        (self.attributes.set | self.recursive.set) & sys::MOUNT_ATTR_RDONLY != 0
    }

    fn add(&mut self, option: &str) -> Result<(), InvalidOption> {
        let invalid = |reason| InvalidOption { option: option.chars().take(200).collect(), reason };
        if option.contains('\0') {
            return Err(invalid("it holds a NUL byte"));
        }
        if option.starts_with("X-containerd.") {
            return Err(invalid("it is an instruction to a mount manager, not to the kernel"));
        }
        let map = |text: &str| IdMap::parse(text).map_err(|error: InvalidIdMap| invalid(error.reason));
        match option {
            "" | "defaults" | "auto" | "noauto" | "silent" | "loud" | "iversion" | "noiversion" | "norelatime"
            | "nostrictatime" | "rnorelatime" | "rnostrictatime" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(Bind::One)),
            "rbind" => self.bind = Some(Bind::Recursive),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "loop" => self.loop_device = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            _ if let Some(propagation) = propagation(option) => self.propagation.push(propagation),
            _ if let Some(flag) = superblock_flag(option) => self.superblock.push(flag),
            _ if let Some(change) = change(option) => self.attributes.apply(change),
            _ if let Some(change) = option.strip_prefix('r').and_then(change) => self.recursive.apply(change),
            _ => match option.split_once('=') {
                Some(("uidmap", value)) => self.uid_map = Some(map(value)?),
                Some(("gidmap", value)) => self.gid_map = Some(map(value)?),
                Some((key, value)) => self.data.push((key.to_owned(), Some(value.to_owned()))),
                None => self.data.push((option.to_owned(), None)),
            },
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
}

fn change(word: &str) -> Option<Change> {
    Some(match word {
        "ro" => Change::Set(sys::MOUNT_ATTR_RDONLY),
        "rw" => Change::Clear(sys::MOUNT_ATTR_RDONLY),
        "nosuid" => Change::Set(sys::MOUNT_ATTR_NOSUID),
        "suid" => Change::Clear(sys::MOUNT_ATTR_NOSUID),
        "nodev" => Change::Set(sys::MOUNT_ATTR_NODEV),
        "dev" => Change::Clear(sys::MOUNT_ATTR_NODEV),
        "noexec" => Change::Set(sys::MOUNT_ATTR_NOEXEC),
        "exec" => Change::Clear(sys::MOUNT_ATTR_NOEXEC),
        "nodiratime" => Change::Set(sys::MOUNT_ATTR_NODIRATIME),
        "diratime" => Change::Clear(sys::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => Change::Set(sys::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Change::Clear(sys::MOUNT_ATTR_NOSYMFOLLOW),
        "relatime" | "atime" => Change::AccessTime(sys::MOUNT_ATTR_RELATIME),
        "noatime" => Change::AccessTime(sys::MOUNT_ATTR_NOATIME),
        "strictatime" => Change::AccessTime(sys::MOUNT_ATTR_STRICTATIME),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<Propagation> {
    let (recursive, word) = match word.strip_prefix('r') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let kind = match word {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

fn superblock_flag(word: &str) -> Option<&'static str> {
    ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"].into_iter().find(|flag| *flag == word)
}

/// An option that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid mount option {option:?}: {reason}")]
pub struct InvalidOption {
    /// The option.
    pub option: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl HasKind for InvalidOption {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Options {
        Options::parse(&text.split(',').collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_last_spelling_of_a_flag_wins() {
        let options = parse("ro,nosuid,rw,suid,nosuid");
        assert_eq!(options.attributes.set, sys::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attributes.clear, sys::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn an_access_time_mode_replaces_the_whole_field() {
        let options = parse("noatime,strictatime");
        assert_eq!(options.attributes.set, sys::MOUNT_ATTR_STRICTATIME);
        assert_eq!(options.attributes.clear, sys::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn recursive_flags_are_kept_apart() {
        let options = parse("rbind,rro,rnosuid,nodev,rshared,rslave");
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert_eq!(options.recursive.set, sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attributes.set, sys::MOUNT_ATTR_NODEV);
        assert_eq!(
            options.propagation,
            [
                Propagation { kind: libc::MS_SHARED, recursive: true },
                Propagation { kind: libc::MS_SLAVE, recursive: true }
            ]
        );
    }

    #[test]
    fn relatime_is_not_taken_for_a_recursive_word() {
        assert!(parse("relatime").recursive.is_empty());
        assert_eq!(parse("rrelatime").recursive.clear, sys::MOUNT_ATTR__ATIME);
        assert_eq!(parse("rbind,bind").bind, Some(Bind::Recursive));
    }

    #[test]
    fn id_maps_are_parsed_and_the_rest_is_data() {
        let options = parse("uidmap=0:1000:10,gidmap=0:1000:10,mode=1777,volatile,lowerdir=/a=b:/c");
        assert_eq!(options.uid_map, Some(IdMap::parse("0:1000:10").unwrap()));
        assert_eq!(options.gid_map, options.uid_map);
        let data: Vec<_> = options.data.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
        assert_eq!(data, [("mode", Some("1777")), ("volatile", None), ("lowerdir", Some("/a=b:/c"))]);
    }

    #[test]
    fn words_for_a_mount_manager_and_broken_maps_are_refused() {
        for option in ["X-containerd.mkdir.path=/x", "uidmap=0", "gidmap=", "a\0b"] {
            assert!(Options::parse(&[option]).is_err(), "{option}");
        }
    }

    proptest! {
        #[test]
        fn no_option_is_ever_lost_or_panics(words in proptest::collection::vec("[a-z=:,]{0,12}", 0..8)) {
            if let Ok(options) = Options::parse(&words) {
                prop_assert!(options.data.len() <= words.len());
                prop_assert_eq!(options.attributes.set & options.attributes.clear & !sys::MOUNT_ATTR__ATIME, 0);
            }
        }
    }
}
