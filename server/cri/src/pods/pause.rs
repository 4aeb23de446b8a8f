//! The pause image: what holds a pod's namespaces where its runtime class says that an image's program is to do so.
//! The image is `pinned_images.sandbox` of the configuration.

use gantry_api::pb::runtime::v1 as wire;
use gantry_engine::spec::oci_spec::runtime::Spec;
use gantry_engine::spec::{IdRange, SpecBuilder};
use gantry_types::Mount;

use super::{Pod, security_of, user_ranges};
use crate::config::RuntimeHandler;
use crate::images::Image;
use crate::{Cri, Error, Result};

/// Key of the configuration's pinned images.
const ROLE: &str = "sandbox";
/// Labels by which a snapshotter maps ids into a user namespace.
const MAPPING: [&str; 2] = ["containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"];

/// A pause image that is here, for one pod.
pub(super) struct Pause {
    image: Image,
    /// The snapshot that it is unpacked to, and where.
    top: String,
    pub(super) snapshotter: String,
    /// User and group of its program.
    ids: (u32, u32),
}

impl Cri {
    /// The pause image of a pod, pulled where it is missing; none where its handler needs none.
    pub(super) async fn pause_of(&self, pod: &Pod, handler: &RuntimeHandler) -> Result<Option<Pause>> {
        if !handler.pause_image {
            return Ok(None);
        }
        let name = self.config.images.pinned_images.get(ROLE).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::State("no pause image: `pinned_images.sandbox` is not set".into()))?;
        let of_handler = pod.facts().handler;
        let image = match self.image(name).await? {
            Some(image) => image,
            None if handler.disable_pause_image_pull => {
                return Err(Error::NotFound { what: "pause image", id: name.clone() });
            }
            None => self.pull_pause(name, &of_handler).await?,
        };
        let unpack = self.unpack_for(&of_handler);
        let top = self.unpacked(&image, &unpack).await?;
        let snapshotter = match unpack.snapshotter.as_str() {
            "" => self.engine.snapshots.default_name(),
            snapshotter => snapshotter,
        };
        let ids = ids(&security_of(&pod.config()), &image.user())?;
        Ok(Some(Pause { top, snapshotter: snapshotter.to_owned(), ids, image }))
    }

    async fn pull_pause(&self, name: &str, handler: &str) -> Result<Image> {
        let spec =
            wire::ImageSpec { image: name.to_owned(), runtime_handler: handler.to_owned(), ..Default::default() };
        self.pull_image(wire::PullImageRequest { image: Some(spec), ..Default::default() }).await?;
        self.image(name).await?.ok_or_else(|| Error::NotFound { what: "pause image", id: name.to_owned() })
    }

    /// The root file system of a pod's pause program. The pod's record must name its snapshot by now.
    pub(super) async fn pause_root(&self, pod: &Pod, pause: &Pause) -> Result<Vec<Mount>> {
        let users = user_ranges("config.linux.security_context.namespace_options", &pod.namespaces())?;
        let labels = mapping(users.map(|(uids, _)| uids).as_deref());
        Ok(self.engine.snapshots.prepare(&self.scope, &pause.snapshotter, &pod.id, &pause.top, labels).await?)
    }
}

/// Labels that have a snapshot shown with mapped ids.
pub(crate) fn mapping(ranges: Option<&[IdRange]>) -> gantry_types::Labels {
    let pairs = ranges.into_iter().flatten().flat_map(|range| {
        let text = format!("{}:{}:{}", range.container, range.host, range.size);
        MAPPING.map(|key| (key.to_owned(), text.clone()))
    });
    pairs.collect()
}

impl Pause {
    /// Name of the image.
    pub(super) fn name(&self) -> String {
        self.image.names.iter().find(|name| !name.starts_with("sha256:")).cloned().unwrap_or_default()
    }

    /// The image's program, in its root file system that nobody writes to.
    ///
    /// # Errors
    /// An image without a command.
    pub(super) fn build(&self, builder: SpecBuilder) -> Result<Spec> {
        let builder = match self.image.facts.config.config() {
            Some(config) => builder.image(config, &[]),
            None => builder,
        };
        let builder = builder.user(self.ids.0, self.ids.1, &[]).no_new_privileges(true).readonly_root();
        Ok(builder.build()?)
    }
}

/// User and group by number: what the pod asks for, else the image's.
fn ids(security: &wire::LinuxSandboxSecurityContext, image_user: &str) -> Result<(u32, u32)> {
    let asked = |name: &str, value: &Option<wire::Int64Value>| match value {
        None => Ok(None),
        Some(id) => u32::try_from(id.value).map(Some).map_err(|_| {
            Error::invalid(format!("config.linux.security_context.{name}"), format!("{} is not an id", id.value))
        }),
    };
    let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let number = |text: &str| match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| Error::State(format!("user {image_user:?} of the pause image is no number"))),
    };
    let uid = asked("run_as_user", &security.run_as_user)?;
    let gid = asked("run_as_group", &security.run_as_group)?;
    Ok((uid.map_or_else(|| number(user), Ok)?, gid.map_or_else(|| number(group), Ok)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_user_counts_before_the_images_which_is_a_number() {
        let none = wire::LinuxSandboxSecurityContext::default();
        let asked = |value| wire::LinuxSandboxSecurityContext {
            run_as_user: Some(wire::Int64Value { value }),
            ..Default::default()
        };
        assert_eq!(ids(&none, "65535:65535").unwrap(), (65535, 65535));
        assert_eq!(ids(&none, "").unwrap(), (0, 0));
        assert_eq!(ids(&asked(7), "pause").unwrap(), (7, 0));
        assert!(matches!(ids(&asked(-1), ""), Err(Error::Invalid { .. })));
        assert!(matches!(ids(&none, "pause"), Err(Error::State(_))));
    }
}
