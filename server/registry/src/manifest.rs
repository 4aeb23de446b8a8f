//! Resolving references and fetching manifests: small objects, checked whole.

use bytes::Bytes;
use gantry_types::{Descriptor, Digest, Hasher, media_type};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::hosts::Endpoint;
use crate::repository::{Call, Need, Repository};
use crate::transport::{body, length, media_type as type_of};
use crate::{Error, Reason, Stage};

/// What we understand, in the order of preference.
const ACCEPT: [&str; 5] = [
    media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
    media_type::DOCKER_INDEX,
    media_type::DOCKER_MANIFEST,
    "*/*;q=0.1",
];

/// What a reference stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Media type, digest and size of the manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, where they had to be fetched to know; checked.
    pub body: Option<Bytes>,
    /// The host that answered.
    pub host: String,
}

/// What the object by the tag or digest of the repository's reference is.
pub(crate) async fn resolve(repository: &Repository) -> Result<Resolved, Error> {
    let digest = repository.digest();
    let need = if digest.is_some() { Need::Pull } else { Need::Resolve };
    let name = digest.map(Digest::as_str).or(repository.tag());
    let name = name.ok_or_else(|| {
        repository.error(Stage::Resolve, None, Reason::Request("the reference has neither a tag nor a digest"))
    })?;
    let mut attempts = repository.attempts(need, Stage::Resolve, digest);
    while let Some(endpoint) = attempts.next().await {
        let request = Request { repository, endpoint: &endpoint, name, patience: attempts.patience() };
        match request.resolve(digest).await {
            Ok((descriptor, body)) => {
                attempts.worked();
                return Ok(Resolved { descriptor, body, host: endpoint.host.clone() });
            }
            Err(reason) => attempts.failed(reason),
        }
    }
    Err(attempts.give_up())
}

/// The bytes of a manifest or another small object.
pub(crate) async fn fetch(repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    let refuse = |reason| repository.error(Stage::FetchManifest, Some(&descriptor.digest), reason);
    let limit = repository.shared.config.manifest_limit();
    if descriptor.size > limit {
        return Err(refuse(Reason::TooBig { what: "manifest", limit }));
    }
    refuse_schema1(&descriptor.media_type).map_err(refuse)?;
    let by_manifest = media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type);
    if !by_manifest {
        return small_blob(repository, descriptor).await;
    }
    let mut attempts = repository.attempts(Need::Pull, Stage::FetchManifest, Some(&descriptor.digest));
    while let Some(endpoint) = attempts.next().await {
        let name = descriptor.digest.as_str();
        let request = Request { repository, endpoint: &endpoint, name, patience: attempts.patience() };
        match request.get(Some(&descriptor.digest), Some(descriptor.size)).await {
            Ok((_, bytes)) => {
                attempts.worked();
                return Ok(bytes);
            }
            Err(reason) => attempts.failed(reason),
        }
    }
    Err(attempts.give_up())
}

/// A configuration or another small blob, in memory.
async fn small_blob(repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    use futures::TryStreamExt;
    let blob = crate::fetch::blob(repository.clone(), descriptor, 0..descriptor.size).await?;
    let host = blob.host().to_owned();
    let bytes: bytes::BytesMut = blob.try_collect::<Vec<_>>().await?.into_iter().flatten().collect();
    match check(&bytes, Some(&descriptor.digest), Some(descriptor.size)) {
        Ok(_) => Ok(bytes.freeze()),
        Err(reason) => Err(Error::new(repository.subject(Some(&descriptor.digest)), host, Stage::FetchBlob, reason)),
    }
}

struct Request<'a> {
    repository: &'a Repository,
    endpoint: &'a Endpoint,
    name: &'a str,
    patience: std::time::Duration,
}

impl Request<'_> {
    async fn resolve(&self, digest: Option<&Digest>) -> Result<(Descriptor, Option<Bytes>), Reason> {
        if let Some(descriptor) = self.head(digest).await? {
            return Ok((descriptor, None));
        }
        let (descriptor, bytes) = self.get(digest, None).await?;
        Ok((descriptor, Some(bytes)))
    }

    fn call(&self, method: Method) -> Result<Call, Reason> {
        let url = self.repository.url(self.endpoint, &format!("manifests/{}", self.name))?;
        Ok(Call::new(method, url, self.repository.scope("pull"), self.patience).accept(&ACCEPT))
    }

    /// The descriptor by the headers alone; none where they do not tell, and GET must.
    async fn head(&self, digest: Option<&Digest>) -> Result<Option<Descriptor>, Reason> {
        let answer = self.repository.send(self.endpoint, self.call(Method::HEAD)?).await?;
        match answer.status() {
            StatusCode::OK => described(answer.response.headers(), digest, self.limit()),
            // These are final, or GET would fare no better; everything else may be a dislike of HEAD.
            StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS => Err(not_ok(answer).await),
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => Err(not_ok(answer).await),
            _ => Ok(None),
        }
    }

    /// The whole object, checked.
    async fn get(&self, digest: Option<&Digest>, size: Option<u64>) -> Result<(Descriptor, Bytes), Reason> {
        let answer = self.repository.send(self.endpoint, self.call(Method::GET)?).await?;
        let response = answer.expect(&[StatusCode::OK]).await?;
        let headers = response.headers().clone();
        let bytes = body(response, self.limit(), "manifest", self.repository.pace()).await?;
        let announced = content_digest(&headers);
        let found = check(&bytes, digest.or(announced.as_ref()), size)?;
        let kind = kind(&headers, &bytes, self.repository.shared.config.max_entries)?;
        Ok((Descriptor::new(kind, found, bytes.len() as u64), bytes))
    }

    fn limit(&self) -> u64 {
        self.repository.shared.config.manifest_limit()
    }
}

async fn not_ok(answer: crate::repository::Answer) -> Reason {
    answer.expect(&[]).await.err().unwrap_or(Reason::Invalid("no status".into()))
}

/// A descriptor by the headers of an answer to HEAD.
fn described(headers: &HeaderMap, wanted: Option<&Digest>, limit: u64) -> Result<Option<Descriptor>, Reason> {
    let kind = type_of(headers).unwrap_or_default();
    refuse_schema1(kind)?;
    let known = media_type::is_index(kind) || media_type::is_manifest(kind);
    let (Some(digest), Some(size), true) = (content_digest(headers), length(headers), known) else { return Ok(None) };
    if size == 0 {
        return Ok(None);
    }
    if size > limit {
        return Err(Reason::TooBig { what: "manifest", limit });
    }
    match wanted {
        // Another algorithm than the one asked for proves nothing; the body will.
        Some(wanted) if wanted.algorithm() != digest.algorithm() => Ok(None),
        Some(wanted) if *wanted != digest => Err(Reason::WrongDigest { expected: wanted.clone(), found: digest }),
        _ => Ok(Some(Descriptor::new(kind, digest, size))),
    }
}

pub(crate) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// The digest of `bytes`, which must be the one expected, as must their number.
fn check(bytes: &[u8], expected: Option<&Digest>, size: Option<u64>) -> Result<Digest, Reason> {
    let offered = bytes.len() as u64;
    if let Some(expected) = size.filter(|size| *size != offered) {
        return Err(Reason::WrongLength { expected, offered });
    }
    let Some(expected) = expected else { return Ok(Digest::of(bytes)) };
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *expected { Ok(found) } else { Err(Reason::WrongDigest { expected: expected.clone(), found }) }
}

/// What tells kinds of manifests apart, and how many entries they have. Entries are counted, not kept.
#[derive(Deserialize)]
struct Outline {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<Vec<IgnoredAny>>,
    layers: Option<Vec<IgnoredAny>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// The media type of a manifest: by its own word, else by its header, else by its shape. A body that has the shape of
/// both kinds is refused, since two readers could take it for different images.
fn kind(headers: &HeaderMap, bytes: &[u8], max_entries: usize) -> Result<String, Reason> {
    let header = type_of(headers).unwrap_or_default();
    refuse_schema1(header)?;
    let outline: Outline =
        serde_json::from_slice(bytes).map_err(|e| Reason::Invalid(format!("not the JSON of a manifest: {e}")))?;
    if outline.schema_version == Some(1) || outline.fs_layers.is_some() {
        return Err(Reason::Schema1);
    }
    let own = outline.media_type.unwrap_or_default();
    let known = |kind: &str| media_type::is_index(kind) || media_type::is_manifest(kind);
    let kind = match (known(&own), known(header), &outline.manifests) {
        (true, _, _) => own,
        (_, true, _) => header.to_owned(),
        (_, _, Some(_)) => media_type::OCI_INDEX.to_owned(),
        _ if outline.layers.is_some() => media_type::OCI_MANIFEST.to_owned(),
        _ => return Err(Reason::Invalid(format!("neither a manifest nor an index (Content-Type {header:?})"))),
    };
    if outline.manifests.is_some() && outline.layers.is_some() {
        return Err(Reason::Invalid("both a manifest and an index".into()));
    }
    let entries = outline.manifests.map_or(0, |m| m.len()) + outline.layers.map_or(0, |l| l.len());
    if entries > max_entries {
        return Err(Reason::TooBig { what: "list of entries", limit: max_entries as u64 });
    }
    Ok(kind)
}

fn refuse_schema1(kind: &str) -> Result<(), Reason> {
    if kind.starts_with("application/vnd.docker.distribution.manifest.v1+") { Err(Reason::Schema1) } else { Ok(()) }
}
