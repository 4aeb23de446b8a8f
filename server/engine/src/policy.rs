//! Which images are let in: an operator's file says by registry and repository whether an image needs a signature, and by
//! which keys. Asked at each pull before anything is fetched, and when a container is made.
//!
//! ```toml
//! default = "accept"                      # or "reject", for what no entry fits
//!
//! [[entry]]
//! match = "registry.example/team/*"       # HOST, HOST/PATH or HOST/PATH/*; the longest that fits counts
//! require = "signature"                   # or "accept", "reject"
//! keys = ["/etc/gantry/keys/team.pub"]    # PEM; one good signature by one of them is enough
//! identity = "repository"                 # the name in the signature must be the image's; or "any"
//! ```
//!
//! Signatures are those that cosign makes with a key: payloads of simple signing at the tag `sha256-….sig` or as referrers,
//! and sigstore bundles (v0.3) as referrers. File and keys are read anew each time; what cannot be read lets nothing in.

mod evidence;
mod file;
mod key;
mod look_up;

use std::path::{Path, PathBuf};

use gantry_metadata::Db;
use gantry_registry::{Access, Registry};
use gantry_types::{Digest, ErrorKind, HasKind, Namespace, Reference};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::{Error, Result};

use file::{Entry, Identity, Policy, Require};
use key::Key;

/// Where it is kept, by digest, which signatures were seen.
const COLLECTION: &str = "signatures";

/// Why the policy keeps an image out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The file or a key cannot be used.
    #[error("signature policy {path}: {reason}; nothing is let in until that is mended", path = .path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry, or the default, keeps all such images out.
    #[error("signature policy {path}, {entry}: {image} is rejected", path = .path.display())]
    Rejected {
        /// The policy's file.
        path: PathBuf,
        /// Which part of it.
        entry: String,
        /// The image.
        image: String,
    },
    /// No good signature was found.
    #[error(
        "signature policy {path}, {entry}: {image} ({digest}) has no good signature by {keys}: {found}",
        path = .path.display()
    )]
    Unsigned {
        /// The policy's file.
        path: PathBuf,
        /// Which entry of it.
        entry: String,
        /// The image.
        image: String,
        /// Its digest.
        digest: Digest,
        /// The keys that would do.
        keys: String,
        /// What was found instead.
        found: String,
    },
}

impl HasKind for Refused {
    fn kind(&self) -> ErrorKind {
        match self {
            Refused::Unusable { .. } => ErrorKind::FailedPrecondition,
            Refused::Rejected { .. } | Refused::Unsigned { .. } => ErrorKind::PermissionDenied,
        }
    }
}

/// A good signature that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// The key's fingerprint.
    key: String,
    /// The repository that the signature names, if it names one.
    repository: Option<String>,
}

/// What an image needs.
struct Demand {
    path: PathBuf,
    entry: Entry,
    keys: Vec<Key>,
}

/// What the policy at `path` asks of an image; none where it is let in as it is.
fn demand(path: &Path, image: &Reference) -> Result<Option<Demand>> {
    let unusable = |reason: String| Refused::Unusable { path: path.to_owned(), reason };
    let policy = Policy::read(path).map_err(unusable)?;
    let rejected =
        |entry: &str| Refused::Rejected { path: path.to_owned(), entry: entry.to_owned(), image: image.to_string() };
    let Some(entry) = policy.entry(image) else {
        return if policy.accepts_others() { Ok(None) } else { Err(rejected("default").into()) };
    };
    match entry.require {
        Require::Accept => Ok(None),
        Require::Reject => Err(rejected(&entry.title()).into()),
        Require::Signature => {
            let keys = entry.keys.iter().map(|path| Key::read(path)).collect::<std::result::Result<Vec<_>, _>>();
            let keys = keys.map_err(|error| unusable(format!("{}: {error}", entry.title())))?;
            Ok(Some(Demand { path: path.to_owned(), entry: entry.clone(), keys }))
        }
    }
}

impl Demand {
    fn is_met_by(&self, seen: &Seen, image: &Reference) -> bool {
        let named = seen.repository.as_deref().is_none_or(|named| named == repository(image));
        self.keys.iter().any(|key| key.fingerprint == seen.key) && (named || self.entry.identity == Identity::Any)
    }

    fn unsigned(&self, image: &Reference, digest: &Digest, found: String) -> Refused {
        let keys: Vec<String> = self.entry.keys.iter().map(|path| path.display().to_string()).collect();
        Refused::Unsigned {
            path: self.path.clone(),
            entry: self.entry.title(),
            image: image.to_string(),
            digest: digest.clone(),
            keys: keys.join(", "),
            found,
        }
    }
}

/// `HOST/PATH` of a reference.
fn repository(image: &Reference) -> String {
    format!("{}/{}", image.host(), image.path())
}

/// Whether an image of a registry may be pulled: its signatures are looked for where it is, and what was seen is kept for
/// when containers are made of it.
///
/// # Errors
/// [`Refused`]; what the registry says.
pub(crate) async fn at_pull(core: &Core, image: &Reference, digest: &Digest, access: &Access) -> Result<()> {
    let Some(path) = &core.config.signature_policy else { return Ok(()) };
    match demand(path, image)? {
        Some(demand) => look_for(&core.db, &core.registry.get(), &demand, image, digest, access).await,
        None => Ok(()),
    }
}

/// Whether a container may be made of an image that is here, by one of its names. The signatures that a pull has seen count
/// as long as their keys do; for others its registry is asked.
///
/// # Errors
/// As [`at_pull`].
pub(crate) async fn at_creation(core: &Core, namespace: &Namespace, name: &str) -> Result<()> {
    let Some(path) = &core.config.signature_policy else { return Ok(()) };
    if name.is_empty() {
        // Made of no image.
        return Ok(());
    }
    let Ok(reference) = name.parse::<Reference>() else {
        let reason = format!("{name:?} names no registry and repository, so that no entry of it can fit");
        return Err(Refused::Unusable { path: path.clone(), reason }.into());
    };
    let Some(demand) = demand(path, &reference)? else { return Ok(()) };
    let digest = match core.db.images(namespace).get(name) {
        Ok(image) => image.target.digest,
        Err(_) => {
            let reason = format!("image {name:?} is not here, so that nobody can tell what the container is made of");
            return Err(Error::Precondition { what: "container", name: name.to_owned(), reason });
        }
    };
    if seen(&core.db, &digest).iter().any(|seen| demand.is_met_by(seen, &reference)) {
        return Ok(());
    }
    look_for(&core.db, &core.registry.get(), &demand, &reference, &digest, &Access::default()).await
}

async fn look_for(
    db: &Db,
    registry: &Registry,
    demand: &Demand,
    image: &Reference,
    digest: &Digest,
    access: &Access,
) -> Result<()> {
    let mut found = Vec::new();
    let look_up = look_up::LookUp { registry, image, digest, access };
    for evidence in look_up.all().await? {
        match evidence.verify(&demand.keys, digest) {
            Ok(seen) if demand.is_met_by(&seen, image) => return keep(db, digest, seen).await,
            Ok(seen) => found.push(format!("a signature for {}", seen.repository.unwrap_or_default())),
            Err(reason) => found.push(reason),
        }
    }
    found.dedup();
    let found = if found.is_empty() { "none at all was found".to_owned() } else { found.join("; ") };
    Err(demand.unsigned(image, digest, found).into())
}

fn seen(db: &Db, digest: &Digest) -> Vec<Seen> {
    let kept = db.documents(None, COLLECTION).get(digest.as_str());
    kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

async fn keep(db: &Db, digest: &Digest, new: Seen) -> Result<()> {
    let mut all = seen(db, digest);
    if !all.contains(&new) {
        all.push(new);
        let bytes = serde_json::to_vec(&all).unwrap_or_default();
        db.documents(None, COLLECTION).put(digest.as_str(), bytes).await?;
    }
    Ok(())
}
