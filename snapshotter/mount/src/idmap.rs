//! Id maps and the user namespaces that carry them into `mount_setattr(2)`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use gantry_types::{ErrorKind, HasKind};

use crate::error::{Error, Step};
use crate::sys;

/// The kernel's limit (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// `length` ids from `container` on (as seen inside) are those from `host` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many; not 0.
    pub length: u32,
}

impl Range {
    fn is_sound(self) -> bool {
        self.length > 0
            && self.container.checked_add(self.length - 1).is_some()
            && self.host.checked_add(self.length - 1).is_some()
    }

    fn overlaps(self, other: Range) -> bool {
        let meet = |a: u32, b: u32| a <= b + (other.length - 1) && b <= a + (self.length - 1);
        meet(self.container, other.container) || meet(self.host, other.host)
    }
}

/// A map of user or group ids: 1 to 340 ranges that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

impl IdMap {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`InvalidIdMap`] when there is none or too many, one is empty, runs over, or overlaps another.
    pub fn new(ranges: Vec<Range>) -> Result<IdMap, InvalidIdMap> {
        let map = IdMap(ranges);
        match map.mistake() {
            None => Ok(map),
            Some(reason) => Err(InvalidIdMap { text: map.lines().chars().take(200).collect(), reason }),
        }
    }

    fn mistake(&self) -> Option<&'static str> {
        let ranges = &self.0;
        if ranges.is_empty() {
            Some("it has no range")
        } else if ranges.len() > MAX_RANGES {
            Some("it has more than 340 ranges")
        } else if !ranges.iter().all(|range| range.is_sound()) {
            Some("a range is empty or runs over")
        } else if ranges.iter().enumerate().any(|(i, a)| ranges[..i].iter().any(|b| a.overlaps(*b))) {
            Some("two ranges overlap")
        } else {
            None
        }
    }

    /// Parses `CONTAINER:HOST:LENGTH[,…]`, as containerd's labels and mount options have it.
    ///
    /// # Errors
    /// As [`IdMap::new`].
    pub fn parse(text: &str) -> Result<IdMap, InvalidIdMap> {
        let invalid = |reason| InvalidIdMap { text: text.chars().take(200).collect(), reason };
        let range = |part: &str| -> Option<Range> {
            let mut numbers = part.split(':').map(|number| number.parse::<u32>().ok());
            let (container, host, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
            numbers.next().is_none().then_some(Range { container, host, length })
        };
        let parts = text.split(',').take(MAX_RANGES + 1);
        let ranges = parts.map(range).collect::<Option<Vec<_>>>();
        IdMap::new(ranges.ok_or_else(|| invalid("it is not CONTAINER:HOST:LENGTH[,…]"))?)
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The id outside of `container`, if mapped.
    pub fn to_host(&self, container: u32) -> Option<u32> {
        let range = self.0.iter().find(|r| container >= r.container && container - r.container < r.length)?;
        Some(range.host + (container - range.container))
    }

    /// As `/proc/PID/uid_map` takes it.
    fn lines(&self) -> String {
        self.0.iter().map(|r| format!("{} {} {}\n", r.container, r.host, r.length)).collect()
    }
}

impl std::fmt::Display for IdMap {
    /// As [`IdMap::parse`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}:{}:{}", r.container, r.host, r.length)?;
        }
        Ok(())
    }
}

/// A new user namespace with these maps, held by nothing but the descriptor. Made by a child that lives for
/// some hundred microseconds and sends no `SIGCHLD`.
///
/// # Errors
/// [`Error::Call`] with step `UserNamespace`.
pub fn user_namespace(uids: &IdMap, gids: &IdMap) -> Result<OwnedFd, Error> {
    let make = || -> io::Result<OwnedFd> {
        let child = sys::UserNamespaceChild::start()?;
        write_map(child.pid(), "uid_map", uids)?;
        write_map(child.pid(), "gid_map", gids)?;
        File::open(format!("/proc/{}/ns/user", child.pid())).map(OwnedFd::from)
    };
    make().map_err(|error| Error::call(Step::UserNamespace, error))
}

fn write_map(pid: i32, file: &str, map: &IdMap) -> io::Result<()> {
    // The kernel takes a map in one write only.
    File::options().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(map.lines().as_bytes())
}

/// Not an id map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid id map {text:?}: {reason}")]
pub struct InvalidIdMap {
    /// The map.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl HasKind for InvalidIdMap {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_map_is_read_and_written_the_same() {
        for text in ["0:100000:65536", "0:1:1,1:0:1", "4294967295:0:1"] {
            assert_eq!(IdMap::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn unsound_maps_are_refused() {
        let many = (0..341).map(|i| format!("{i}:{i}:1")).collect::<Vec<_>>().join(",");
        let texts =
            ["", "0:0", "0:0:0", "a:0:1", "0:0:1:1", "-1:0:1", "4294967295:0:2", "0:0:2,1:9:1", "0:5:2,9:6:1", &many];
        for text in texts {
            assert!(IdMap::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn mapping_agrees_with_a_search_through_all_ids(
            ranges in proptest::collection::vec((0u32..40, 0u32..40, 0u32..8), 0..5),
            id in 0u32..60,
        ) {
            let ranges: Vec<_> =
                ranges.into_iter().map(|(container, host, length)| Range { container, host, length }).collect();
            let pairs: Vec<_> =
                ranges.iter().flat_map(|r| (0..r.length).map(|i| (r.container + i, r.host + i))).collect();
            let unique = |mut ids: Vec<u32>| { let n = ids.len(); ids.sort(); ids.dedup(); ids.len() == n };
            let sound = !ranges.is_empty() && ranges.iter().all(|r| r.length > 0)
                && unique(pairs.iter().map(|p| p.0).collect()) && unique(pairs.iter().map(|p| p.1).collect());
            let map = IdMap::new(ranges);
            prop_assert_eq!(map.is_ok(), sound);
            if let Ok(map) = map {
                prop_assert_eq!(map.to_host(id), pairs.iter().find(|p| p.0 == id).map(|p| p.1));
            }
        }
    }

    #[test]
    fn a_user_namespace_outlives_the_child_that_made_it() {
        let map = IdMap::parse("0:100000:65536").unwrap();
        let namespace = File::from(user_namespace(&map, &map).unwrap());
        let own = std::fs::metadata("/proc/self/ns/user").unwrap();
        assert_ne!(namespace.metadata().unwrap().ino(), own.ino());
    }
}
