//! Users and groups by name, as the image's own `/etc/passwd` and `/etc/group` have them.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_client::pb::containerd::types::Mount;

use crate::error::Error;

/// Largest such file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Numeric ids of `USER[:GROUP]`; names are looked up in the layers behind `mounts`, topmost first, without mounting.
pub fn resolve(text: &str, mounts: &[Mount]) -> Result<(u32, u32), Error> {
    let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
    let passwd = || read(mounts, "etc/passwd");
    let (uid, own_gid) = match user.parse::<u32>() {
        Ok(uid) => {
            (uid, entry(&passwd(), |f| f.get(2) == Some(&user)).and_then(|f| f.get(3)?.parse().ok()).unwrap_or(0))
        }
        Err(_) => {
            let found = entry(&passwd(), |f| f.first() == Some(&user));
            let ids = found.and_then(|f| Some((f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?)));
            ids.ok_or_else(|| Error::Usage(format!("the image knows no user {user:?}; give a number")))?
        }
    };
    let gid = match group {
        None | Some("") => own_gid,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => entry(&read(mounts, "etc/group"), |f| f.first() == Some(&group))
                .and_then(|f| f.get(2)?.parse().ok())
                .ok_or_else(|| Error::Usage(format!("the image knows no group {group:?}; give a number")))?,
        },
    };
    Ok((uid, gid))
}

/// The fields of the first line that is `wanted`.
fn entry(text: &str, wanted: impl Fn(&[&str]) -> bool) -> Option<Vec<String>> {
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.into_iter().find(|f| wanted(f)).map(|f| f.into_iter().map(str::to_owned).collect())
}

/// The topmost version of a file. Only plain files in plain directories are read: a link in an image must not lead out.
fn read(mounts: &[Mount], name: &str) -> String {
    directories(mounts).iter().find_map(|dir| plain(dir, name)).unwrap_or_default()
}

fn plain(dir: &Path, name: &str) -> Option<String> {
    let mut path = dir.to_owned();
    for part in name.split('/') {
        path.push(part);
        if fs::symlink_metadata(&path).ok()?.is_symlink() {
            return None;
        }
    }
    let meta = fs::symlink_metadata(&path).ok()?;
    (meta.is_file() && meta.len() <= MAX_FILE).then(|| fs::read_to_string(&path).ok()).flatten()
}

/// The directories that a snapshot's mounts lay over one another, topmost first.
fn directories(mounts: &[Mount]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts {
        let option = |name: &str| mount.options.iter().find_map(|o| o.strip_prefix(name));
        found.extend(option("upperdir=").map(PathBuf::from));
        found.extend(option("lowerdir=").into_iter().flat_map(|l| l.split(':')).map(PathBuf::from));
        if mount.r#type.contains("bind") || mount.options.iter().any(|o| o.contains("bind")) {
            found.push(PathBuf::from(&mount.source));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[(&str, &str)]) -> (PathBuf, Vec<Mount>) {
        let dir =
            std::env::temp_dir().join(format!("gctr-user-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::create_dir_all(dir.join("etc")).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let mount = Mount { r#type: "bind".into(), source: dir.to_string_lossy().into(), ..Default::default() };
        (dir, vec![mount])
    }

    #[test]
    fn names_come_from_the_images_files_and_numbers_pass() {
        let (dir, mounts) = image(&[("etc/passwd", "root:x:0:0::/:\nweb:x:33:34::/:\n"), ("etc/group", "adm:x:4:\n")]);
        assert_eq!(resolve("web", &mounts).unwrap(), (33, 34));
        assert_eq!(resolve("web:adm", &mounts).unwrap(), (33, 4));
        assert_eq!(resolve("33", &mounts).unwrap(), (33, 34));
        assert_eq!(resolve("7:8", &mounts).unwrap(), (7, 8));
        assert!(resolve("nobody-here", &mounts).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_link_in_the_image_is_not_followed_out_of_it() {
        let (dir, mounts) = image(&[]);
        std::os::unix::fs::symlink("/etc/passwd", dir.join("etc/passwd")).unwrap();
        assert!(resolve("root", &mounts).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
