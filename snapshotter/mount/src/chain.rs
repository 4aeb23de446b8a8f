//! Lists of mounts of which later ones name earlier ones, as containerd's block snapshotters give them: `format/overlay`
//! with `lowerdir={{ overlay 0 2 }}` is an overlay of the three mounts before it.
//!
//! Here all of them are made detached: the earlier ones are mounted nowhere and live on as layers of the last. Known are
//! the words before a type `format`, `mkdir` (directories right below an earlier mount) and `mkfs` (the file system must
//! be there already; making one takes a mount manager), and the functions `mount N` and `overlay FROM TO`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use gantry_types::Mount;
use nix::sys::stat::Mode;

use crate::detach::detached_one;
use crate::error::{Error, Step};
use crate::options::InvalidOption;

const TRANSFORMS: [&str; 3] = ["format/", "mkdir/", "mkfs/"];
const MKDIR: &str = "X-containerd.mkdir.path=";
const MKFS: &str = "X-containerd.mkfs.";

/// Whether some of `mounts` are only there for others to name.
pub(crate) fn is_chain(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| TRANSFORMS.iter().any(|transform| mount.kind.starts_with(transform)))
}

/// The last of `mounts`, which stands on the others.
pub(crate) fn detached(mounts: &[Mount]) -> Result<OwnedFd, Error> {
    let mut made: Vec<OwnedFd> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let plain = prepared(mount, &made)?;
        let tree = detached_one(&plain, None).map_err(|error| too_old(error, &made))?;
        made.push(tree);
    }
    made.pop().ok_or(Error::Empty)
}

/// A detached mount as part of another.
fn too_old(error: Error, parts: &[OwnedFd]) -> Error {
    match error {
        Error::Call { step: Step::Create | Step::OpenTree, ref error, .. }
            if !parts.is_empty() && error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Error::Unsupported { what: "stack mounts that are mounted nowhere", since: "6.15" }
        }
        other => other,
    }
}

/// The mount without the words before its type, which have been followed.
fn prepared(mount: &Mount, before: &[OwnedFd]) -> Result<Mount, Error> {
    let mut plain = mount.clone();
    while let Some(transform) = TRANSFORMS.iter().find(|transform| plain.kind.starts_with(**transform)) {
        plain.kind.drain(..transform.len());
        match *transform {
            "format/" => {
                plain.source = filled(&plain.source, before)?;
                plain.options = plain.options.iter().map(|o| filled(o, before)).collect::<Result<_, _>>()?;
            }
            "mkdir/" => {
                let (asked, options): (Vec<_>, _) = plain.options.into_iter().partition(|o| o.starts_with(MKDIR));
                plain.options = options;
                asked.iter().try_for_each(|option| make_directory(option, before))?;
            }
            _ => plain.options.retain(|option| !option.starts_with(MKFS)),
        }
    }
    Ok(plain)
}

/// `text` with its templates filled in.
fn filled(text: &str, before: &[OwnedFd]) -> Result<String, Error> {
    let invalid = |reason| Error::from(InvalidOption { option: text.chars().take(200).collect(), reason });
    let point = |index: usize| before.get(index).map(|tree| format!("/proc/self/fd/{}", tree.as_raw_fd()));
    let (mut result, mut rest) = (String::new(), text);
    while let Some((plain, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| invalid("a template is not closed"))?;
        let words: Vec<&str> = action.split_whitespace().collect();
        let number = |word: &str| word.parse::<usize>().ok();
        let value = match words.as_slice() {
            ["mount", index] => number(index).and_then(point),
            ["overlay", from, to] => number(from).zip(number(to)).and_then(|(from, to)| {
                let range: Vec<usize> = if from > to { (to..=from).rev().collect() } else { (from..=to).collect() };
                range.into_iter().map(point).collect::<Option<Vec<_>>>().map(|points| points.join(":"))
            }),
            _ => None,
        };
        result.push_str(plain);
        result.push_str(&value.ok_or_else(|| invalid("a template that names no earlier mount"))?);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

/// Makes the directory that `option` asks for; one that is there is kept as it is.
fn make_directory(option: &str, before: &[OwnedFd]) -> Result<(), Error> {
    let invalid = |reason| Error::from(InvalidOption { option: option.chars().take(200).collect(), reason });
    let mut parts = option.strip_prefix(MKDIR).unwrap_or_default().split(':');
    let path = parts.next().unwrap_or_default();
    let mode = parts.next().map_or(Some(0o700), |mode| u32::from_str_radix(mode, 8).ok());
    let mode = mode.and_then(Mode::from_bits).ok_or_else(|| invalid("the mode must be octal"))?;
    let below = |tree: &&OwnedFd| {
        let name = path.strip_prefix(&format!("/proc/self/fd/{}/", tree.as_raw_fd()))?;
        (!name.is_empty() && !name.contains('/') && name != "." && name != "..").then_some(name)
    };
    let found = before.iter().find_map(|tree| below(&tree).map(|name| (tree, name)));
    let (tree, name) = found.ok_or_else(|| invalid("a directory can be made right below an earlier mount only"))?;
    match nix::sys::stat::mkdirat(tree.as_fd(), name, mode) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(Error::call(Step::Resolve, error.into())),
    }
}
