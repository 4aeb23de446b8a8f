//! Who a container's process is: names of users and groups are looked up in the container's own files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd;

use gantry_api::pb::runtime::v1 as wire;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::{Deserialize, Serialize};
use wire::SupplementalGroupsPolicy;

use crate::{Error, Result};

/// Largest file of users or groups that is read, in bytes.
const MAX_FILE: u64 = 8 << 20;
/// Symbolic links leave the container's root for nowhere but within it.
const WITHIN: ResolveFlag = ResolveFlag::RESOLVE_IN_ROOT.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Numeric identities of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the primary one first.
    pub(crate) groups: Vec<u32>,
}

/// A container's own users and groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them below an open directory. What is missing is empty; what is too large is cut.
    pub(crate) fn read(root: impl AsFd) -> Accounts {
        Accounts { passwd: text(&root, "etc/passwd"), group: text(&root, "etc/group") }
    }

    fn users(&self) -> impl Iterator<Item = (&str, u32, u32)> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
            Some((name, uid.parse().ok()?, gid.parse().ok()?))
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }

    /// Groups of which a user is a member by name.
    fn memberships(&self, name: &str) -> Vec<u32> {
        let member = |members: &str| members.split(',').any(|member| member == name);
        self.groups().filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid).collect()
    }

    fn gid(&self, text: &str) -> Option<u32> {
        text.parse().ok().or_else(|| self.groups().find(|(name, ..)| *name == text).map(|(_, gid, _)| gid))
    }
}

fn text(root: &impl AsFd, path: &str) -> String {
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(WITHIN);
    let Ok(file) = openat2(root.as_fd(), path, how) else { return String::new() };
    let mut bytes = Vec::new();
    let file = File::from(file);
    if !file.metadata().is_ok_and(|known| known.is_file()) || file.take(MAX_FILE).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The identity that a security context and the image ask for.
///
/// # Errors
/// [`Error::Invalid`] for ids out of range and a group without a user; [`Error::State`] for a name that the container
/// does not know.
pub(crate) fn identity(
    security: &wire::LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Identity> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let id = |name: &str, value: i64| {
        u32::try_from(value).map_err(|_| Error::invalid(field(name), format!("{value} is not an id")))
    };
    let (user, group) = asked_user(security, image_user)?;
    let unknown = |what: &str, name: &str| Error::State(format!("no {what} {name:?} in the container's files"));
    let (name, uid, default_gid) = match user.parse::<u32>() {
        Ok(uid) => match accounts.users().find(|(_, known, _)| *known == uid) {
            Some((name, _, gid)) => (Some(name), uid, gid),
            None => (None, uid, 0),
        },
        Err(_) => {
            let found = accounts.users().find(|(name, ..)| *name == user);
            let (name, uid, gid) = found.ok_or_else(|| unknown("user", &user))?;
            (Some(name), uid, gid)
        }
    };
    let gid = match group.as_deref() {
        Some(text) => accounts.gid(text).ok_or_else(|| unknown("group", text))?,
        None => default_gid,
    };
    let mut groups = vec![gid];
    if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge {
        groups.extend(name.map(|name| accounts.memberships(name)).unwrap_or_default());
    }
    for group in &security.supplemental_groups {
        groups.push(id("supplemental_groups", *group)?);
    }
    let mut seen = BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    Ok(Identity { uid, gid, groups })
}

/// User and group as texts: numbers or names.
fn asked_user(security: &wire::LinuxContainerSecurityContext, image_user: &str) -> Result<(String, Option<String>)> {
    let number = |name: &str, value: Option<&wire::Int64Value>| match value {
        None => Ok(None),
        Some(value) => u32::try_from(value.value).map(Some).map_err(|_| {
            Error::invalid(format!("config.linux.security_context.{name}"), format!("{} is not an id", value.value))
        }),
    };
    let uid = number("run_as_user", security.run_as_user.as_ref())?;
    let gid = number("run_as_group", security.run_as_group.as_ref())?.map(|gid| gid.to_string());
    if let Some(uid) = uid {
        return Ok((uid.to_string(), gid));
    }
    if !security.run_as_username.is_empty() {
        return Ok((security.run_as_username.clone(), gid));
    }
    if gid.is_some() {
        let field = "config.linux.security_context.run_as_group";
        return Err(Error::invalid(field, "user group is specified without user"));
    }
    let (user, group) = image_user.split_once(':').map_or((image_user, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    Ok((user.to_owned(), group.filter(|group| !group.is_empty()).map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/sh\nbad line\n".into(),
            group: "root:x:0:\nwww:x:34:\nextra:x:50:other,web\nmore:x:51:web\n".into(),
        }
    }

    fn security() -> wire::LinuxContainerSecurityContext {
        wire::LinuxContainerSecurityContext::default()
    }

    fn value(value: i64) -> Option<wire::Int64Value> {
        Some(wire::Int64Value { value })
    }

    #[test]
    fn groups_of_the_image_are_merged_unless_the_policy_is_strict() {
        let mut security =
            wire::LinuxContainerSecurityContext { run_as_user: value(33), supplemental_groups: vec![99], ..security() };
        assert_eq!(identity(&security, "", &accounts()).unwrap().groups, [34, 50, 51, 99]);
        security.set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
        assert_eq!(identity(&security, "", &accounts()).unwrap().groups, [34, 99]);
    }

    #[test]
    fn the_images_user_may_be_a_name_with_a_group() {
        assert_eq!(identity(&security(), "web:extra", &accounts()).unwrap().gid, 50);
        assert_eq!(
            identity(&security(), "web", &accounts()).unwrap(),
            identity(&security(), "33", &accounts()).unwrap()
        );
        assert_eq!(identity(&security(), "", &accounts()).unwrap(), Identity { uid: 0, gid: 0, groups: vec![0] });
        assert!(matches!(identity(&security(), "nobody", &accounts()), Err(Error::State(_))));
    }

    #[test]
    fn a_group_needs_a_user_and_ids_must_fit() {
        let group = wire::LinuxContainerSecurityContext { run_as_group: value(5), ..security() };
        assert!(
            matches!(identity(&group, "", &accounts()), Err(Error::Invalid { field, .. }) if field.ends_with("run_as_group"))
        );
        let huge = wire::LinuxContainerSecurityContext { run_as_user: value(1 << 40), ..security() };
        assert!(matches!(identity(&huge, "", &accounts()), Err(Error::Invalid { .. })));
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/../../../etc/passwd", directory.path().join("etc/group")).unwrap();
        std::fs::write(directory.path().join("etc/passwd"), "a:x:1:2:::").unwrap();
        let accounts = Accounts::read(File::open(directory.path()).unwrap());
        assert_eq!(accounts.passwd, accounts.group);
    }
}
