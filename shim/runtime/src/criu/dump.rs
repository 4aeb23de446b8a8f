//! A running container into images.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::rpc::{ExternalMount, Features, Kind, Options, PageServer, Request};
use super::swrk::{Notice, Setup, Swrk};
use super::{CriuOptions, DESCRIPTORS, Directories, make};
use crate::container::{Container, Status};
use crate::error::{Error, Result};
use crate::plan::{Target, c_path};
use crate::spec::{Mount, NamespaceKind, Spec};
use crate::sys;

const LOG: &str = "dump.log";

/// See [`Container::checkpoint`].
pub(crate) fn checkpoint(container: &Container, options: &CriuOptions) -> Result<()> {
    match container.status() {
        Status::Running | Status::Paused => {}
        other => return Err(container.refuse("checkpoint", other)),
    }
    let version = options.check_program()?;
    // The bundle has what the container's own copy was spared.
    let spec = Spec::load(&container.record.bundle)?;
    make(&options.images)?;
    check_parent(options)?;
    let directories = Directories::open(options)?;
    let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
    if options.pre_dump || options.lazy_pages {
        check_features(options)?;
    }
    let mut asked = dump_options(container, options, &spec, &directories, version)?;
    if kind == Kind::Dump {
        asked.external_mounts = external_mounts(container, &spec)?;
        write_descriptors(container, &options.images)?;
    }
    let request = Request { kind: kind as i32, options: Some(Box::new(asked)), ..Request::default() };
    let none = [None; 3];
    let mut swrk = Swrk::spawn(Setup { program: &options.program, stdio: none, descriptors: &[], root: None })?;
    swrk.call(&request, &mut |notice| ready(options, &notice)).map_err(|error| directories.explain(error, LOG))?;
    swrk.finish(kind)
}

/// Pages can be fetched now: whoever waits at the status descriptor is told.
fn ready(options: &CriuOptions, notice: &Notice<'_>) -> Result<()> {
    if let ("status-ready", Some(fd)) = (notice.script, options.status_fd) {
        let failed = |errno| Error::system("write to the status descriptor", std::io::Error::from_raw_os_error(errno));
        sys::write_once(fd, b"\0").map_err(failed)?;
    }
    Ok(())
}

fn check_parent(options: &CriuOptions) -> Result<()> {
    let Some(parent) = &options.parent else { return Ok(()) };
    if parent.is_absolute() {
        return Err(Error::invalid("parent-path", "must be relative to the image path"));
    }
    let path = options.images.join(parent);
    if !path.is_dir() {
        return Err(Error::invalid("parent-path", format!("{} is not a directory", path.display())));
    }
    Ok(())
}

/// What the kernel must be able to do for a pre-dump or for lazy pages.
fn check_features(options: &CriuOptions) -> Result<()> {
    let wanted =
        Features { mem_track: options.pre_dump.then_some(true), lazy_pages: options.lazy_pages.then_some(true) };
    let request = Request { kind: Kind::FeatureCheck as i32, features: Some(wanted), ..Request::default() };
    let none = [None; 3];
    let mut swrk = Swrk::spawn(Setup { program: &options.program, stdio: none, descriptors: &[], root: None })?;
    let has = swrk.call(&request, &mut |_| Ok(()))?.features.unwrap_or_default();
    for (name, wanted, has) in
        [("memory tracking", options.pre_dump, has.mem_track), ("lazy pages", options.lazy_pages, has.lazy_pages)]
    {
        if wanted && has != Some(true) {
            return Err(Error::Unsupported { what: format!("checkpoint with {name}: CRIU cannot do it here") });
        }
    }
    Ok(())
}

fn dump_options(
    container: &Container,
    options: &CriuOptions,
    spec: &Spec,
    directories: &Directories,
    version: i32,
) -> Result<Options> {
    let bundle = &container.record.bundle;
    let root = spec.root.as_ref().map(|root| bundle.join(&root.path)).unwrap_or_default();
    let mut asked = options.common(directories, LOG, spec);
    asked.pid = Some(container.record.pid);
    asked.root = Some(root.display().to_string());
    asked.leave_running = Some(options.leave_running);
    asked.tcp_skip_in_flight = Some(options.tcp_skip_in_flight);
    asked.link_remap = Some(options.link_remap);
    asked.parent_img = options.parent.as_ref().map(|path| path.display().to_string());
    asked.track_mem = options.parent.is_some().then_some(true);
    asked.page_server = options
        .page_server
        .as_ref()
        .map(|(address, port)| PageServer { address: Some(address.clone()), port: Some(*port) });
    // From 3.15 on a notice tells of the same.
    asked.status_fd = options.status_fd.filter(|_| options.lazy_pages && version < 31_500);
    let freezer = container.record.cgroup.freezer();
    asked.freeze_cgroup = freezer.map(|path| path.display().to_string());
    for kind in [NamespaceKind::Network, NamespaceKind::Pid] {
        asked.external.extend(external_namespace(spec, kind)?);
    }
    Ok(asked)
}

/// A namespace that is joined by path is not the container's: CRIU leaves it out and expects it at the restore.
fn external_namespace(spec: &Spec, kind: NamespaceKind) -> Result<Option<String>> {
    let Some(path) = spec.namespace(kind).map(|entry| &entry.path).filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let inode = std::fs::metadata(path).map_err(|source| Error::file("open namespace", path, source))?.ino();
    let name = if kind == NamespaceKind::Network { "net" } else { "pid" };
    Ok(Some(format!("{name}[{inode}]:{}", super::restore::external_key(kind))))
}

/// Mounts whose content is not the container's: binds, devices bound in, and the files that hide others.
fn external_mounts(container: &Container, spec: &Spec) -> Result<Vec<ExternalMount>> {
    let root = format!("/proc/{}/root", container.record.pid);
    let root = sys::openat(libc::AT_FDCWD, &c_path(Path::new(&root))?, libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|errno| Error::file("open", &root, std::io::Error::from_raw_os_error(errno)))?;
    let mut all = Vec::new();
    for place in outside(spec, &container.record.cgroup) {
        let place = inside(root.0, &place)?;
        all.push(ExternalMount { key: place.clone(), value: place });
    }
    for path in &spec.linux.masked_paths {
        let target = Target::new(path)?;
        let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
        let Ok(fd) = sys::openat2(root.0, &target.path, libc::O_PATH, resolve) else { continue };
        let directory = sys::fstat(fd.0).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
        if !directory {
            all.push(ExternalMount { key: inside(root.0, path)?, value: "/dev/null".to_owned() });
        }
    }
    Ok(all)
}

/// Where content from outside is mounted.
pub(super) fn outside(spec: &Spec, cgroup: &crate::cgroups::Cgroup) -> Vec<String> {
    let binds = spec.mounts.iter().filter(|mount| is_bind(mount)).map(|mount| mount.destination.clone());
    let devices = super::restore::bound_devices(spec).into_iter();
    binds.chain(cgroup_binds(spec, cgroup).into_iter().map(|(place, _)| place)).chain(devices).collect()
}

/// The container's own v1 directories, bound in where it has no cgroup namespace: place and source.
pub(super) fn cgroup_binds(spec: &Spec, cgroup: &crate::cgroups::Cgroup) -> Vec<(String, std::path::PathBuf)> {
    if spec.namespace(NamespaceKind::Cgroup).is_some() {
        return Vec::new();
    }
    let mounts = spec.mounts.iter().filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"));
    mounts
        .flat_map(|mount| {
            let v1 = cgroup.views().iter();
            let binds = v1.map(|view| (format!("{}/{}", mount.destination, view.mount_name()), view.path.clone()));
            let v2 = cgroup.unified.as_ref().filter(|_| cgroup.is_v2());
            binds.chain(v2.map(|path| (mount.destination.clone(), path.clone()))).collect::<Vec<_>>()
        })
        .collect()
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// A place as the container's mount table has it: links on the way followed within the root.
pub(super) fn inside(root: i32, place: &str) -> Result<String> {
    let target = Target::new(place)?;
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    let Ok(fd) = sys::openat2(root, &target.path, libc::O_PATH, resolve) else { return Ok(target.display()) };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.0));
    Ok(path.ok().and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| target.display()))
}

/// The names of the streams the container was made with, where runc looks for them too.
fn write_descriptors(container: &Container, images: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = images.join(DESCRIPTORS);
    let bytes = serde_json::to_vec(&container.record.descriptors)
        .map_err(|error| Error::invalid("descriptors", error.to_string()))?;
    let mut file = std::fs::File::options();
    file.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    file.open(&path).and_then(|mut file| file.write_all(&bytes)).map_err(|source| Error::file("write", &path, source))
}
