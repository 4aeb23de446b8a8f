//! `containerd.services.transfer.v1`: which two ends were named decides what is to be done.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use gantry_api::convert::{any_from_wire, descriptor_to_wire, labels_from_wire, platform_from_wire, unpack};
use gantry_api::pb::containerd::services::transfer::v1::TransferRequest;
use gantry_api::pb::containerd::services::transfer::v1::transfer_server::Transfer;
use gantry_api::pb::containerd::types;
use gantry_api::pb::containerd::types::transfer::{
    AuthRequest, AuthResponse, AuthType, ImageExportStream, ImageImportStream, ImageStore, OciRegistry,
    Progress as ProgressMessage, RegistryResolver,
};
use gantry_engine::transfer::{
    Access, Ask, Credential, Credentials, CredentialsError, Export, ImageReference, Import, Progress, ProgressSink,
    Pull, Push, Scheme, Secret, Unpack,
};
use gantry_types::{Any, Platform, Reference, Scope};
use prost::Name as _;
use tokio::io::AsyncRead;
use tokio::sync::{Mutex, mpsc};
use tonic::{Request, Response, Status};

use super::decode::required;
use super::{Reply, Services};
use crate::streams::Peer;
use crate::{scope, status};

/// How long a client may take to answer for credentials; a person may be typing.
const AUTH_PATIENCE: Duration = Duration::from_secs(120);

/// How long a client that does not read its progress holds up the end of a transfer.
const PROGRESS_PATIENCE: Duration = Duration::from_secs(5);

#[async_trait]
impl Transfer for Services {
    async fn transfer(&self, request: Request<TransferRequest>) -> Reply<()> {
        let scope = scope::of(&request)?;
        let request = request.into_inner();
        let source = any_from_wire(required(request.source, "source")?);
        let destination = any_from_wire(required(request.destination, "destination")?);
        let progress = request.options.unwrap_or_default().progress_stream;
        if progress.is_empty() {
            self.move_image(&scope, source, destination, ProgressSink::default()).await?;
            return Ok(Response::new(()));
        }
        let (sink, told) = ProgressSink::channel();
        let teller = tokio::spawn(tell(self.streams.take(&scope.namespace, &progress)?, told));
        let moved = self.move_image(&scope, source, destination, sink).await;
        // Nobody reads it, or it has ended: neither is an error of the transfer.
        let _ = tokio::time::timeout(PROGRESS_PATIENCE, teller).await;
        moved.map(Response::new)
    }
}

/// One end of a transfer.
enum End {
    Registry(OciRegistry),
    Store(ImageStore),
    Import(ImageImportStream),
    Export(ImageExportStream),
    Other,
}

impl End {
    fn decode(any: &Any) -> Result<End, Status> {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name == OciRegistry::full_name() {
            unpack(any).map(End::Registry)
        } else if name == ImageStore::full_name() {
            unpack(any).map(End::Store)
        } else if name == ImageImportStream::full_name() {
            unpack(any).map(End::Import)
        } else if name == ImageExportStream::full_name() {
            unpack(any).map(End::Export)
        } else {
            Ok(End::Other)
        }
        .map_err(status::of)
    }
}

impl Services {
    async fn move_image(&self, scope: &Scope, from: Any, to: Any, progress: ProgressSink) -> Result<(), Status> {
        match (End::decode(&from)?, End::decode(&to)?) {
            (End::Registry(from), End::Store(to)) => self.pull(scope, from, to, progress).await,
            (End::Store(from), End::Registry(to)) => self.push(scope, from, to, progress).await,
            (End::Import(from), End::Store(to)) => self.import(scope, from, to, progress).await,
            (End::Store(from), End::Export(to)) => self.export(scope, from, to, progress).await,
            (End::Store(from), End::Store(to)) => self.tag(scope, &from.name, to).await,
            (End::Import(from), End::Export(to)) => self.echo(scope, &from, &to).await,
            _ => Err(Status::unimplemented(format!(
                "method Transfer not implemented for {} to {}",
                from.type_url, to.type_url
            ))),
        }
    }

    async fn pull(&self, scope: &Scope, from: OciRegistry, to: ImageStore, sink: ProgressSink) -> Result<(), Status> {
        let pull = Pull {
            reference: reference(&from.reference)?,
            name: to.name.clone(),
            labels: labels_from_wire(to.labels.clone()).map_err(status::of)?,
            platforms: platforms(to.platforms.clone()),
            manifest_limit: to.manifest_limit as usize,
            all_metadata: to.all_metadata,
            unpacks: unpacks(&to),
            discard_layers: false,
            access: self.access(scope, from.resolver)?,
            concurrent_downloads: None,
        };
        let image = self.engine.transfer.pull(scope, pull, sink).await.map_err(status::of)?;
        for name in extra_names(&to, &image.target.digest.to_string()) {
            let labels = extra_labels(&to)?;
            self.engine.transfer.tag(scope, &image.name, &name, labels, true).await.map_err(status::of)?;
        }
        Ok(())
    }

    async fn push(&self, scope: &Scope, from: ImageStore, to: OciRegistry, sink: ProgressSink) -> Result<(), Status> {
        let push = Push {
            name: from.name,
            reference: reference(&to.reference)?,
            platforms: platforms(from.platforms),
            access: self.access(scope, to.resolver)?,
        };
        self.engine.transfer.push(scope, push, sink).await.map_err(status::of)
    }

    async fn import(
        &self,
        scope: &Scope,
        from: ImageImportStream,
        to: ImageStore,
        sink: ProgressSink,
    ) -> Result<(), Status> {
        let archive = Box::new(self.archive(scope, &from)?);
        let import = Import {
            unpacks: unpacks(&to),
            name: to.name,
            labels: labels_from_wire(to.labels).map_err(status::of)?,
            platforms: platforms(to.platforms),
            all_metadata: to.all_metadata,
            references: to.extra_references.into_iter().map(image_reference).collect(),
            force_compress: from.force_compress,
        };
        self.engine.transfer.import(scope, archive, import, sink).await.map(drop).map_err(status::of)
    }

    async fn export(
        &self,
        scope: &Scope,
        from: ImageStore,
        to: ImageExportStream,
        sink: ProgressSink,
    ) -> Result<(), Status> {
        let export = Export {
            names: exported(from)?,
            platforms: platforms(to.platforms),
            all_platforms: to.all_platforms,
            skip_docker_manifest: to.skip_compatibility_manifest,
            skip_non_distributable: to.skip_non_distributable,
        };
        let (pipe, sent) = self.streams.take(&scope.namespace, &to.stream)?.writer();
        let written = async {
            let pipe = Box::new(pipe);
            self.engine.transfer.export(scope, pipe, export, sink).await.map_err(status::of)
        };
        let (written, sent) = tokio::join!(written, sent);
        written?;
        sent.map_err(|gone| Status::unavailable(gone.to_string()))
    }

    async fn tag(&self, scope: &Scope, source: &str, to: ImageStore) -> Result<(), Status> {
        let target = self.engine.images.get(scope, source).await.map_err(status::of)?.target;
        let mut names = extra_names(&to, &target.digest.to_string());
        if !to.name.is_empty() {
            let labels = labels_from_wire(to.labels.clone()).map_err(status::of)?;
            self.engine.transfer.tag(scope, source, &to.name, labels, true).await.map_err(status::of)?;
        } else if names.is_empty() {
            return Err(Status::not_found("no image name found"));
        }
        for name in names.drain(..) {
            let labels = extra_labels(&to)?;
            self.engine.transfer.tag(scope, source, &name, labels, true).await.map_err(status::of)?;
        }
        Ok(())
    }

    /// From one stream to another, unseen: clients test their streams with it.
    async fn echo(&self, scope: &Scope, from: &ImageImportStream, to: &ImageExportStream) -> Result<(), Status> {
        let mut archive = self.archive(scope, from)?;
        let (mut pipe, sent) = self.streams.take(&scope.namespace, &to.stream)?.writer();
        let copied = async {
            let copied = tokio::io::copy(&mut archive, &mut pipe).await;
            drop(pipe);
            copied
        };
        let (copied, sent) = tokio::join!(copied, sent);
        copied.map_err(|error| Status::unavailable(error.to_string()))?;
        sent.map_err(|gone| Status::unavailable(gone.to_string()))
    }

    fn archive(
        &self,
        scope: &Scope,
        from: &ImageImportStream,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, Status> {
        Ok(self.streams.take(&scope.namespace, &from.stream)?.reader())
    }

    /// How the client wants registries reached.
    fn access(&self, scope: &Scope, resolver: Option<RegistryResolver>) -> Result<Access, Status> {
        let mut access = Access::default();
        let Some(resolver) = resolver else { return Ok(access) };
        if !resolver.auth_stream.is_empty() {
            let peer = self.streams.take(&scope.namespace, &resolver.auth_stream)?;
            access.credentials = std::sync::Arc::new(AskClient(Mutex::new(peer)));
        }
        if !resolver.host_dir.is_empty() {
            access.hosts_dirs = Some(vec![resolver.host_dir.into()]);
        }
        access.default_scheme = scheme(&resolver.default_scheme)?;
        access.headers = resolver.headers.into_iter().collect();
        Ok(access)
    }
}

fn reference(text: &str) -> Result<Reference, Status> {
    text.parse().map_err(status::of)
}

fn scheme(text: &str) -> Result<Option<Scheme>, Status> {
    match text {
        "" => Ok(None),
        "http" => Ok(Some(Scheme::Http)),
        "https" => Ok(Some(Scheme::Https)),
        _ => Err(Status::invalid_argument(format!("default_scheme {text:?} is neither http nor https"))),
    }
}

fn platforms(platforms: Vec<types::Platform>) -> Vec<Platform> {
    platforms.into_iter().map(platform_from_wire).collect()
}

fn unpacks(store: &ImageStore) -> Vec<Unpack> {
    let unpack = |wanted: &types::transfer::UnpackConfiguration| {
        let platform = wanted.platform.clone().map_or_else(Platform::host, platform_from_wire);
        Unpack::new(platform, &wanted.snapshotter)
    };
    store.unpacks.iter().map(unpack).collect()
}

fn image_reference(wire: types::transfer::ImageReference) -> ImageReference {
    ImageReference {
        name: wire.name,
        is_prefix: wire.is_prefix,
        allow_overwrite: wire.allow_overwrite,
        add_digest: wire.add_digest,
        skip_named_digest: wire.skip_named_digest,
    }
}

/// Further names for an image that has one: whole references, and prefixes that ask for the digest.
fn extra_names(store: &ImageStore, digest: &str) -> Vec<String> {
    let named = store.extra_references.iter().filter(|r| r.add_digest || !r.is_prefix);
    named.map(|r| if r.add_digest { format!("{}@{digest}", r.name) } else { r.name.clone() }).collect()
}

/// Labels of further names: they go with the first one.
fn extra_labels(store: &ImageStore) -> Result<gantry_types::Labels, Status> {
    let mut labels = labels_from_wire(store.labels.clone()).map_err(status::of)?;
    if !store.name.is_empty() {
        labels.insert(format!("{}image", gantry_types::labels::GC_BREF), store.name.clone());
        labels.insert(gantry_types::labels::GC_EXPIRE.into(), gantry_api::convert::rfc3339(SystemTime::now()));
    }
    Ok(labels)
}

/// Names of the images to export.
fn exported(store: ImageStore) -> Result<Vec<String>, Status> {
    if store.extra_references.iter().any(|r| r.is_prefix) {
        return Err(Status::unimplemented("prefix lookup on export not implemented"));
    }
    let first = Some(store.name).filter(|name| !name.is_empty());
    let names: Vec<String> = first.into_iter().chain(store.extra_references.into_iter().map(|r| r.name)).collect();
    if names.is_empty() {
        return Err(Status::invalid_argument("no image to export is named"));
    }
    Ok(names)
}

/// Sends progress to the client until there is no more, or the client has gone.
async fn tell(mut client: Peer, mut told: mpsc::UnboundedReceiver<Progress>) {
    while let Some(progress) = told.recv().await {
        if client.send(&progress_to_wire(progress)).await.is_err() {
            return;
        }
    }
    client.flush().await;
}

fn progress_to_wire(progress: Progress) -> ProgressMessage {
    ProgressMessage {
        event: progress.event,
        name: progress.name,
        parents: progress.parents,
        progress: progress.progress,
        total: progress.total,
        desc: progress.descriptor.as_ref().map(descriptor_to_wire),
    }
}

/// Asks the client for credentials on its stream, one question at a time.
struct AskClient(Mutex<Peer>);

#[async_trait]
impl Credentials for AskClient {
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        let question = AuthRequest {
            host: ask.host.into(),
            reference: ask.reference.into(),
            wwwauthenticate: ask.challenges.to_vec(),
        };
        let unavailable = |why: String| CredentialsError::Unavailable(why);
        let mut client = self.0.lock().await;
        client.send(&question).await.map_err(|gone| unavailable(gone.to_string()))?;
        let answer = tokio::time::timeout(AUTH_PATIENCE, client.receive::<AuthResponse>()).await;
        let answer = answer.map_err(|_| unavailable(format!("no credentials from the client in {AUTH_PATIENCE:?}")))?;
        let answer = answer.map_err(|status| unavailable(status.message().into()))?;
        Ok(answer.and_then(credential))
    }
}

fn credential(answer: AuthResponse) -> Option<Credential> {
    let kind = answer.auth_type();
    if answer.secret.is_empty() && answer.username.is_empty() {
        return None;
    }
    let secret = Secret::new(answer.secret);
    match kind {
        AuthType::None => None,
        AuthType::Credentials => Some(Credential::Basic { username: answer.username, password: secret }),
        AuthType::Refresh => Some(Credential::Refresh(secret)),
        AuthType::Header => Some(Credential::Header(secret)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extra(name: &str, is_prefix: bool, add_digest: bool) -> types::transfer::ImageReference {
        types::transfer::ImageReference { name: name.into(), is_prefix, add_digest, ..Default::default() }
    }

    #[test]
    fn a_bare_prefix_gives_no_name_and_a_digest_is_appended_where_asked() {
        let extra_references = vec![extra("a/b:c", false, false), extra("p", true, false), extra("q", true, true)];
        let store = ImageStore { extra_references, ..ImageStore::default() };
        assert_eq!(extra_names(&store, "sha256:0"), ["a/b:c", "q@sha256:0"]);
    }

    #[test]
    fn an_answer_without_user_and_secret_is_no_credential() {
        let empty = AuthResponse { auth_type: AuthType::Refresh.into(), ..AuthResponse::default() };
        assert!(credential(empty).is_none());
    }
}
