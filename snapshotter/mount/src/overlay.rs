//! Overlay superblocks: any number of lower layers, id maps, long paths.
//!
//! One string holds 255 bytes in `fsconfig(2)` and a page in `mount(2)`; `lowerdir+` (Linux 6.8) takes one layer at a time, and
//! descriptors (Linux 6.13) take paths of any length and layers that are mounted nowhere (Linux 6.15). What a kernel lacks
//! is done in a mount namespace of its own, which is gone when the overlay is made.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Step, c_path};
use crate::options::{Attributes, Options};
use crate::superblock::{self, Context, Cover, MAX_VALUE};
use crate::{detach, sys};

/// A lower layer, and whether it holds data only (after `::`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lower {
    path: String,
    data_only: bool,
}

impl Lower {
    fn key(&self) -> &'static str {
        if self.data_only { "datadir+" } else { "lowerdir+" }
    }
}

/// An overlay as a detached mount; with a user namespace, its lower layers appear with ids mapped through it.
pub(crate) fn mount(source: &str, options: &Options, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Error> {
    match user_namespace {
        Some(namespace) => match mapped(source, options, namespace) {
            Err(Error::Unsupported { .. }) => covered(source, options, namespace),
            result => result,
        },
        None if is_short(options) => superblock::mount("overlay", source, options),
        None => match layer_by_layer(source, options) {
            Err(error) if is_unknown_parameter(&error) => compact(source, options, Vec::new()),
            result => result,
        },
    }
}

fn is_short(options: &Options) -> bool {
    options.data.iter().all(|(_, value)| value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE))
}

fn is_unknown_parameter(error: &Error) -> bool {
    matches!(error, Error::Call { step: Step::Configure | Step::Open, error, .. }
        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)))
}

fn layer_by_layer(source: &str, options: &Options) -> Result<OwnedFd, Error> {
    let context = Context::open("overlay", source, options)?;
    for (key, value) in &options.data {
        match value.as_deref() {
            Some(value) if key == "lowerdir" => {
                layers(value).iter().try_for_each(|layer| directory(&context, layer.key(), &layer.path))?;
            }
            Some(path) if is_directory(key) => directory(&context, key, path)?,
            value => context.data(key, value)?,
        }
    }
    context.mount(options)
}

fn is_directory(key: &str) -> bool {
    matches!(key, "upperdir" | "workdir" | "lowerdir+" | "datadir+")
}

fn directory(context: &Context, key: &str, path: &str) -> Result<(), Error> {
    if path.len() <= MAX_VALUE {
        return context.string(key, path);
    }
    let opened = open(sys::CWD, Path::new(path))?;
    context.fd(key, opened.as_fd())
}

fn open(dir: std::os::fd::RawFd, path: &Path) -> Result<OwnedFd, Error> {
    sys::open_path(dir, &c_path(path)?).map_err(|error| Error::call(Step::Resolve, error).at(path))
}

fn lowers(options: &Options) -> Vec<Lower> {
    let lowers = options.data.iter().filter(|(key, _)| key == "lowerdir").filter_map(|(_, value)| value.as_deref());
    lowers.flat_map(layers).collect()
}

/// For kernels that know only the one string: lower layers relative to the directory they share.
fn compact(source: &str, options: &Options, covers: Vec<Cover>) -> Result<OwnedFd, Error> {
    let lowers = lowers(options);
    let Some(shared) = shared_directory(&lowers) else {
        return superblock::legacy("overlay", source, options, None, covers);
    };
    let mut options = options.clone();
    options.data.retain(|(key, _)| key != "lowerdir");
    options.data.push(("lowerdir".into(), Some(join_below(&lowers, &shared))));
    superblock::legacy("overlay", source, &options, shared.to_str(), covers)
}

/// Lower layers as descriptors below one id-mapped mount of the directory they share.
fn mapped(source: &str, options: &Options, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let context = Context::open("overlay", source, options)?;
    // The kernel takes the layers only while the mapped mounts exist.
    let mut mounts = Vec::new();
    for (key, value) in &options.data {
        match value.as_deref() {
            Some(value) if key == "lowerdir" => mounts.extend(mapped_layers(&context, &layers(value), namespace)?),
            Some(path) if is_directory(key) => directory(&context, key, path)?,
            value => context.data(key, value)?,
        }
    }
    context.mount(options).map_err(too_old_for_detached_layers)
}

/// For kernels that take only layers that are mounted somewhere: each is covered by itself, mapped.
fn covered(source: &str, options: &Options, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let cover = |lower: Lower| {
        let path = Path::new(&lower.path);
        Ok(Cover { tree: map(path, namespace)?, directory: c_path(path)? })
    };
    let covers: Result<Vec<Cover>, Error> = lowers(options).into_iter().map(cover).collect();
    compact(source, options, covers?)
}

fn too_old_for_detached_layers(error: Error) -> Error {
    match error {
        Error::Call { step: Step::Create, ref error, .. } if error.raw_os_error() == Some(libc::EINVAL) => {
            Error::Unsupported { what: "stack id-mapped layers without mounting them first", since: "6.15" }
        }
        other => other,
    }
}

/// The mapped mounts that the layers lie in.
fn mapped_layers(context: &Context, lowers: &[Lower], namespace: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Error> {
    let mut mounts = Vec::new();
    let shared = match shared_directory(lowers) {
        Some(directory) => Some((map(&directory, namespace)?, directory)),
        None => None,
    };
    for lower in lowers {
        let path = Path::new(&lower.path);
        let below = match &shared {
            Some((tree, directory)) => opened_below(tree, directory, path)?,
            None => None,
        };
        let layer = match below {
            Some(layer) => layer,
            None => map(path, namespace)?,
        };
        match context.fd(lower.key(), layer.as_fd()) {
            Err(error) if is_unknown_parameter(&error) => {
                return Err(Error::Unsupported { what: "stack id-mapped layers", since: "6.13" });
            }
            result => result?,
        }
        mounts.push(layer);
    }
    mounts.extend(shared.map(|(tree, _)| tree));
    Ok(mounts)
}

fn map(path: &Path, namespace: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let tree = detach::clone_tree(sys::CWD, path, false)?;
    let read_only = Attributes { set: sys::MOUNT_ATTR_RDONLY, clear: 0 };
    detach::set_attributes(tree.as_fd(), read_only, None, Some(namespace), false)?;
    Ok(tree)
}

/// The layer as seen through `tree`; none if what is seen there is something else (a mount lies between).
fn opened_below(tree: &OwnedFd, directory: &Path, path: &Path) -> Result<Option<OwnedFd>, Error> {
    let Ok(relative) = path.strip_prefix(directory) else { return Ok(None) };
    let (inside, outside) = (open(tree.as_raw_fd(), relative)?, open(sys::CWD, path)?);
    let identity = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let same = matches!((identity(&inside), identity(&outside)), (Ok(a), Ok(b)) if a == b);
    Ok(same.then_some(inside))
}

/// Splits at `:`, where `\:` and `\\` stand for themselves; after `::` come layers of data.
fn layers(lowerdir: &str) -> Vec<Lower> {
    let mut layers = Vec::new();
    let mut path = String::new();
    let (mut data_only, mut next_data_only) = (false, false);
    let mut bytes = lowerdir.chars().peekable();
    while let Some(c) = bytes.next() {
        match c {
            '\\' => path.extend(bytes.next()),
            ':' => {
                if bytes.next_if_eq(&':').is_some() {
                    next_data_only = true;
                }
                layers.push(Lower { path: std::mem::take(&mut path), data_only });
                data_only = next_data_only;
            }
            c => path.push(c),
        }
    }
    layers.push(Lower { path, data_only });
    layers
}

/// The deepest directory that holds all layers; none if that is the root, or a path is relative.
fn shared_directory(lowers: &[Lower]) -> Option<PathBuf> {
    let mut parents = lowers.iter().map(|lower| Path::new(&lower.path).parent());
    let mut shared = parents.next()??;
    for parent in parents {
        let parent = parent?;
        shared = shared.ancestors().find(|ancestor| parent.starts_with(ancestor))?;
    }
    (shared.is_absolute() && shared.parent().is_some()).then(|| shared.to_owned())
}

fn join_below(lowers: &[Lower], directory: &Path) -> String {
    let mut joined = String::new();
    for lower in lowers {
        let relative = Path::new(&lower.path).strip_prefix(directory).unwrap_or(Path::new(&lower.path));
        if !joined.is_empty() {
            joined.push_str(if lower.data_only { "::" } else { ":" });
        }
        joined.push_str(&relative.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:"));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lower(path: &str) -> Lower {
        Lower { path: path.into(), data_only: false }
    }

    #[test]
    fn layers_are_split_at_colons_that_are_not_escaped() {
        assert_eq!(layers("/a:/b\\:c:/d\\\\"), [lower("/a"), lower("/b:c"), lower("/d\\")]);
        let data = Lower { path: "/data".into(), data_only: true };
        assert_eq!(layers("/a::/data"), [lower("/a"), data]);
    }

    #[test]
    fn the_shared_directory_is_never_the_root() {
        let shared = |paths: &[&str]| shared_directory(&paths.iter().map(|p| lower(p)).collect::<Vec<_>>());
        assert_eq!(shared(&["/s/1/fs", "/s/2/fs"]), Some("/s".into()));
        assert_eq!(shared(&["/s/1/fs"]), Some("/s/1".into()));
        assert_eq!(shared(&["/s/1/fs", "/t/2/fs"]), None);
        assert_eq!(shared(&["a/b", "a/c"]), None);
        assert_eq!(shared(&["/s/12/fs", "/s/1/fs"]), Some("/s".into()));
    }

    proptest! {
        #[test]
        fn joined_layers_split_into_the_same_layers(paths in proptest::collection::vec("/s/[a-z:\\\\,]{1,8}", 1..6)) {
            let lowers: Vec<_> = paths.iter().map(|path| lower(path)).collect();
            let joined = join_below(&lowers, Path::new("/s"));
            let back: Vec<_> = layers(&joined).iter().map(|l| format!("/s/{}", l.path)).collect();
            prop_assert_eq!(back, paths);
        }
    }

    /// A new directory.
    fn made(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_way_for_old_kernels_gives_the_same_overlay() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| made(dir.path(), name);
        let lowers: Vec<_> = (0..130).map(|i| place(&format!("layers/{i}/fs"))).collect();
        std::fs::write(format!("{}/file", lowers[129]), "bottom").unwrap();
        let words = [
            format!("lowerdir={}", lowers.join(":")),
            format!("upperdir={}", place("upper")),
            format!("workdir={}", place("work")),
            "nosuid".to_owned(),
        ];
        let options = Options::parse(&words).unwrap();
        let table = crate::mountinfo::read().unwrap().len();
        for mount in
            [|options: &_| compact("overlay", options, Vec::new()), |options: &_| layer_by_layer("overlay", options)]
        {
            let tree = mount(&options).unwrap();
            let path = format!("/proc/self/fd/{}/file", tree.as_raw_fd());
            assert_eq!(std::fs::read_to_string(path).unwrap(), "bottom");
        }
        assert_eq!(crate::mountinfo::read().unwrap().len(), table);
    }

    #[test]
    fn layers_that_have_to_be_mounted_appear_with_the_same_ids_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| made(dir.path(), name);
        let lowers: Vec<_> = (0..3).map(|i| place(&format!("layers/{i}/fs"))).collect();
        for (owner, lower) in (0..).zip(&lowers) {
            let file = format!("{lower}/{owner}");
            std::fs::write(&file, "").unwrap();
            std::os::unix::fs::chown(&file, Some(owner), Some(owner + 10)).unwrap();
        }
        let (upper, work) = (place("upper"), place("work"));
        let words = [format!("lowerdir={}", lowers.join(":")), format!("upperdir={upper}"), format!("workdir={work}")];
        let options = Options::parse(&words).unwrap();
        let map = crate::idmap::IdMap::parse("0:100000:65536").unwrap();
        let namespace = crate::idmap::user_namespace(&map, &map).unwrap();
        let table = crate::mountinfo::read().unwrap().len();
        for mount in [covered, mapped] {
            let tree = match mount("overlay", &options, namespace.as_fd()) {
                // The other is for newer kernels.
                Err(Error::Unsupported { .. }) => continue,
                tree => tree.unwrap(),
            };
            for owner in 0..3 {
                let path = format!("/proc/self/fd/{}/{owner}", tree.as_raw_fd());
                let found = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).unwrap());
                assert_eq!(found, 100_000 + owner);
                let group = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(&path).unwrap());
                assert_eq!(group, 100_010 + owner);
            }
            std::fs::write(format!("/proc/self/fd/{}/new", tree.as_raw_fd()), "").unwrap();
            assert!(std::fs::exists(format!("{upper}/new")).unwrap());
        }
        assert_eq!(crate::mountinfo::read().unwrap().len(), table);
    }
}
