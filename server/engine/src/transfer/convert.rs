//! The same image with its layers written otherwise: plain, gzip, zstd or eSTARGZ. What is inside stays, but for eSTARGZ,
//! whose layers hold a table besides. The same image gives the same bytes each time.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use gantry_layer::{Compression, Compressor, Control, Decompressor};
use gantry_types::{Algorithm, Descriptor, Digest, Hasher, Labels, Scope, labels, media_type};
use serde_json::{Value, json};

use super::manifest::{self, Document, MAX_DEPTH, MAX_SIZE, Manifest};
use super::{Convert, LayerForm, Transfer};
use crate::content::{is_present, passing};
use crate::diff::compression_of;
use crate::images::Image;
use crate::stream::{self, Drain, Spout};
use crate::{Error, Result};

/// Annotations of an eSTARGZ layer (stargz-snapshotter, `estargz/types.go`).
const TABLE: &str = "containerd.io/snapshot/stargz/toc.digest";
const UNPACKED_SIZE: &str = "io.containers.estargz.uncompressed-size";

pub(super) async fn convert(t: &Transfer, scope: &Scope, convert: &Convert) -> Result<Image> {
    let operation = t.core.ops.begin("convert", convert.source.clone(), Some(&scope.namespace), scope.deadline);
    let source = t.images.get(scope, &convert.source).await?;
    let (scope, cover) = t.leases.cover(scope, super::UNPACK_LEASE).await?;
    operation.stage("writing layers");
    let converted = One { t, scope: &scope, convert }.document(&source.target, 0).await;
    let named = match converted {
        Ok(Some(target)) => t.name_image(&scope, &convert.target, &target, &source.labels).await,
        Ok(None) => Err(Error::not_found("manifest of the wanted platforms in", convert.source.clone())),
        Err(error) => Err(error),
    };
    if let Some(cover) = cover {
        cover.end().await;
    }
    named
}

/// One conversion.
struct One<'a> {
    t: &'a Transfer,
    scope: &'a Scope,
    convert: &'a Convert,
}

impl One<'_> {
    /// An index or manifest; none where nothing of it is wanted and here.
    async fn document(&self, descriptor: &Descriptor, depth: usize) -> Result<Option<Descriptor>> {
        let unknown = || Error::MediaType { media_type: descriptor.media_type.clone(), wanted: "converted" };
        match manifest::read(&self.t.content, self.scope, descriptor).await?.ok_or_else(unknown)? {
            Document::Manifest(manifest) => self.manifest(descriptor, &manifest).await.map(Some),
            Document::Index(index) if depth < MAX_DEPTH => self.index(descriptor, &index.manifests, depth).await,
            Document::Index(_) => Err(unknown()),
        }
    }

    /// An index of what is wanted and here. Signatures and attestations in it are about other digests: they stay behind.
    async fn index(&self, descriptor: &Descriptor, all: &[Descriptor], depth: usize) -> Result<Option<Descriptor>> {
        let mut children = Vec::new();
        for child in manifest::choose(all, &self.convert.platforms, 0) {
            let is_image = child.platform.as_ref().is_none_or(|platform| platform.os != "unknown");
            if !is_image || self.t.content.info(self.scope, &child.digest).await.is_err() {
                continue;
            }
            let converted = Box::pin(self.document(&child, depth + 1)).await?;
            let (platform, annotations) = (child.platform, child.annotations);
            children.extend(converted.map(|converted| Descriptor { platform, annotations, ..converted }));
        }
        if children.is_empty() {
            return Ok(None);
        }
        let mut document = self.value(descriptor).await?;
        document["mediaType"] = json!(media_type::OCI_INDEX);
        document["manifests"] = json!(children);
        self.write(media_type::OCI_INDEX, &document).await.map(Some)
    }

    async fn manifest(&self, descriptor: &Descriptor, manifest: &Manifest) -> Result<Descriptor> {
        let config = manifest::read_config(&self.t.content, self.scope, &manifest.config).await?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let reason = "does not name as many layers as the manifest".to_owned();
            return Err(Error::BadBlob { what: "image configuration", digest: manifest.config.digest.clone(), reason });
        }
        let (mut layers, mut inside) = (Vec::new(), Vec::new());
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let (layer, diff_id) = self.layer(layer, diff_id).await?;
            layers.push(layer);
            inside.push(diff_id);
        }
        let mut document = self.value(descriptor).await?;
        document["mediaType"] = json!(media_type::OCI_MANIFEST);
        document["config"] = json!(self.config(&manifest.config, &inside).await?);
        document["layers"] = json!(layers);
        self.write(media_type::OCI_MANIFEST, &document).await
    }

    /// The configuration, which names the tars inside.
    async fn config(&self, config: &Descriptor, diff_ids: &[Digest]) -> Result<Descriptor> {
        let mut document = self.value(config).await?;
        if document["rootfs"]["diff_ids"] == json!(diff_ids) {
            return Ok(Descriptor { media_type: media_type::OCI_CONFIG.to_owned(), ..config.clone() });
        }
        document["rootfs"]["diff_ids"] = json!(diff_ids);
        self.write(media_type::OCI_CONFIG, &document).await
    }

    async fn value(&self, descriptor: &Descriptor) -> Result<Value> {
        let bytes = self.t.content.read_all(self.scope, &descriptor.digest, MAX_SIZE).await?;
        manifest::parse("document", &descriptor.digest, &bytes)
    }

    /// Stores a document with the labels that keep what it names.
    async fn write(&self, media_type: &str, document: &Value) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(document).map_err(|error| Error::invalid("document", error.to_string()))?;
        let bytes = Bytes::from(bytes);
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        let labels = Document::parse(&descriptor, &bytes)?.map(|document| document.gc_labels()).unwrap_or_default();
        self.t.content.write_all(self.scope, &descriptor.digest, bytes, labels).await?;
        Ok(descriptor)
    }

    /// A layer in the wanted form, and the digest of the tar in it.
    async fn layer(&self, layer: &Descriptor, diff_id: &Digest) -> Result<(Descriptor, Digest)> {
        let form = self.convert.form;
        let from = compression_of(&layer.media_type)?;
        if form != LayerForm::Estargz && from == form.compression() {
            let media_type = form.media_type().to_owned();
            return Ok((Descriptor { media_type, ..layer.clone() }, diff_id.clone()));
        }
        let content = &self.t.content;
        let reader = content.reader(self.scope, &layer.digest).await?;
        let reference = passing("convert");
        let mut writer = content.writer(self.scope, &reference, None, None).await?;
        let ((feed, drain), (spout, mut pieces)) = (stream::pipe(), stream::spout());
        let control = Arc::new(Control::default());
        let _stop_with_caller = Cancel(Arc::clone(&control));
        let feeding = tokio::spawn(feed.blob(reader));
        let writing = tokio::task::spawn_blocking(move || rewrite(drain, from, spout, form, control));
        let mut size = 0;
        while let Some(piece) = pieces.recv().await {
            size = writer.write(size, piece).await?;
        }
        let written = writing.await.map_err(Error::task("convert"))?;
        feeding.abort();
        let rewritten = match written {
            Ok(rewritten) if rewritten.source == *diff_id => rewritten,
            other => {
                // What was written is of no use; a failure to drop it is healed when it expires.
                let _ = content.abort(self.scope, &reference).await;
                let actual = other?.source;
                return Err(Error::DiffId { digest: layer.digest.clone(), expected: diff_id.clone(), actual });
            }
        };
        let digest = writer.digest().await?;
        let labels = Labels::from([(labels::UNCOMPRESSED.to_owned(), rewritten.diff_id.to_string())]);
        match writer.commit(Some(size), Some(&digest), labels).await {
            Err(error) if is_present(&error) => {}
            committed => drop(committed?),
        }
        let mut descriptor = Descriptor::new(form.media_type(), digest, size);
        descriptor.annotations = rewritten.annotations(&layer.annotations);
        Ok((descriptor, rewritten.diff_id))
    }
}

/// What the thread has written.
struct Rewritten {
    /// Digest of the tar that was read.
    source: Digest,
    /// Digest of the tar that was written.
    diff_id: Digest,
    /// Of eSTARGZ: digest of the table, size of the tar.
    table: Option<(Digest, u64)>,
}

impl Rewritten {
    /// Those of the former layer, but for what is about its form.
    fn annotations(
        &self,
        former: &std::collections::BTreeMap<String, String>,
    ) -> std::collections::BTreeMap<String, String> {
        let mut annotations = former.clone();
        annotations.retain(|key, _| key != TABLE && key != UNPACKED_SIZE);
        if let Some((table, size)) = &self.table {
            annotations.insert(TABLE.to_owned(), table.to_string());
            annotations.insert(UNPACKED_SIZE.to_owned(), size.to_string());
        }
        annotations
    }
}

/// Reads a layer to its end and writes it in another form.
fn rewrite(
    layer: Drain,
    from: Compression,
    mut spout: Spout,
    form: LayerForm,
    control: Arc<Control>,
) -> Result<Rewritten> {
    let failed = |error: std::io::Error| Error::invalid("conversion", error.to_string());
    let plain = Decompressor::new(layer, from).map_err(failed)?;
    let mut plain = Hashing { plain, hasher: Hasher::new(Algorithm::Sha256) };
    if form == LayerForm::Estargz {
        let written = gantry_layer::estargz(&mut plain, &mut spout, control);
        let written = written.map_err(|error| Error::invalid("conversion", error.to_string()))?;
        spout.flush().map_err(failed)?;
        let table = Some((written.table, written.size));
        return Ok(Rewritten { source: plain.hasher.finish(), diff_id: written.diff_id, table });
    }
    let mut out = Compressor::new(spout, form.compression()).map_err(failed)?;
    let mut buffer = vec![0; gantry_content::CHUNK];
    loop {
        let length = plain.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            break;
        }
        if control.is_cancelled() {
            return Err(Error::Stopped { what: "convert" });
        }
        out.write_all(&buffer[..length]).map_err(failed)?;
    }
    out.finish().and_then(|mut spout| spout.flush()).map_err(failed)?;
    let source = plain.hasher.finish();
    Ok(Rewritten { diff_id: source.clone(), source, table: None })
}

/// Hashes what is read.
struct Hashing<R> {
    plain: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.plain.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// Stops the thread when nobody waits for it any more.
struct Cancel(Arc<Control>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
