//! `gantry.admin.v1`: what runs, what is garbage and why, where the bytes are.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use gantry_api::convert::time_to_wire;
use gantry_api::pb::gantry::admin::v1 as wire;
use gantry_api::pb::gantry::admin::v1::admin_server::Admin;
use gantry_engine::check::{Finding, Object, Outcome, Range, Report};
use gantry_engine::gc::{Doomed, Node, Target};
use gantry_engine::ops::Operation;
use gantry_engine::transfer::{Convert, LayerForm};
use gantry_engine::usage::{Entry, Kind, State};
use gantry_engine::{Namespace, Scope};
use tonic::{Request, Response, Status, async_trait};

use super::{Answers, Reply, Services};
use crate::status;

/// Items in one message of a stream: far below the size limit, whatever their names are.
const BATCH: usize = 256;

#[async_trait]
impl Admin for Services {
    async fn list_operations(&self, _: Request<wire::ListOperationsRequest>) -> Reply<wire::ListOperationsResponse> {
        let operations = self.engine.ops.list().into_iter().map(operation_to_wire).collect();
        Ok(Response::new(wire::ListOperationsResponse { operations }))
    }

    type CollectGarbageStream = Answers<wire::CollectGarbageResponse>;

    async fn collect_garbage(
        &self,
        request: Request<wire::CollectGarbageRequest>,
    ) -> Reply<Self::CollectGarbageStream> {
        let r = request.into_inner();
        let namespaces = r.namespaces.iter().map(|name| name.parse()).collect::<Result<Vec<Namespace>, _>>();
        let namespaces = namespaces.map_err(status::of)?;
        if r.dry_run || r.kept {
            let preview = self.engine.gc.preview(&namespaces, r.kept).await.map_err(status::of)?;
            let kept = preview.kept.iter().map(|path| kept_to_wire(path)).collect();
            if r.dry_run {
                return Ok(Response::new(answers(preview.doomed, kept)));
            }
            let gone = self.engine.gc.collect_in(&namespaces).await.map_err(status::of)?;
            return Ok(Response::new(answers(gone, kept)));
        }
        let gone = self.engine.gc.collect_in(&namespaces).await.map_err(status::of)?;
        Ok(Response::new(answers(gone, Vec::new())))
    }

    type UsageStream = Answers<wire::UsageResponse>;

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Reply<Self::UsageStream> {
        let unowned = request.get_ref().unowned;
        let mut entries = self.engine.usage().await.map_err(status::of)?;
        entries.retain(|entry| !unowned || entry.state != State::Owned);
        let entries: Vec<_> = entries.into_iter().map(entry_to_wire).collect();
        let batches = batches(entries).map(|entries| Ok(wire::UsageResponse { entries }));
        Ok(Response::new(stream::iter(batches).boxed()))
    }

    type CheckStream = Answers<wire::CheckResponse>;

    async fn check(&self, request: Request<wire::CheckRequest>) -> Reply<Self::CheckStream> {
        let r = request.into_inner();
        let range = match r.images.is_empty() {
            true => Range::All,
            false => Range::Images(r.namespace.parse().map_err(status::of)?, r.images),
        };
        let report = self.engine.check.check(range, r.mend).await.map_err(status::of)?;
        let sums = wire::CheckResponse { sums: Some(sums_to_wire(&report)), ..Default::default() };
        let findings: Vec<_> = report.findings.into_iter().map(finding_to_wire).collect();
        let batches = batches(findings).map(|findings| Ok(wire::CheckResponse { findings, sums: None }));
        Ok(Response::new(stream::iter(batches.chain(std::iter::once(Ok(sums)))).boxed()))
    }

    async fn convert_image(&self, request: Request<wire::ConvertImageRequest>) -> Reply<wire::ConvertImageResponse> {
        let r = request.into_inner();
        let scope = Scope::new(r.namespace.parse().map_err(status::of)?);
        let convert = convert_of_wire(r)?;
        let image = self.engine.transfer.convert(&scope, &convert).await.map_err(status::of)?;
        Ok(Response::new(wire::ConvertImageResponse { digest: image.target.digest.to_string() }))
    }
}

fn convert_of_wire(request: wire::ConvertImageRequest) -> Result<Convert, Status> {
    use wire::convert_image_request::Form;
    let form = match request.form() {
        Form::Plain => LayerForm::Plain,
        Form::Gzip => LayerForm::Gzip,
        Form::Zstd => LayerForm::Zstd,
        Form::Estargz => LayerForm::Estargz,
        Form::Unspecified => return Err(Status::invalid_argument("form: say PLAIN, GZIP, ZSTD or ESTARGZ")),
    };
    let platforms = request.platforms.iter().map(|platform| platform.parse()).collect::<Result<Vec<_>, _>>();
    let platforms = platforms.map_err(|error| Status::invalid_argument(format!("platforms: {error}")))?;
    Ok(Convert { source: request.source, target: request.target, form, platforms })
}

fn sums_to_wire(report: &Report) -> wire::CheckSums {
    wire::CheckSums {
        blobs: report.blobs,
        snapshots: report.snapshots,
        passed_over: report.passed_over,
        bytes: report.bytes,
        took: duration(report.took),
    }
}

fn finding_to_wire(finding: Finding) -> wire::Finding {
    use wire::finding::Outcome as Wire;
    let node = match finding.object {
        Object::Blob(digest) => {
            wire::Node { kind: "content".into(), name: digest.to_string(), ..wire::Node::default() }
        }
        Object::Snapshot { namespace, snapshotter, key } => {
            wire::Node { namespace: namespace.to_string(), kind: "snapshot".into(), snapshotter, name: key }
        }
    };
    let (outcome, detail) = match finding.outcome {
        Outcome::Told => (Wire::Told, String::new()),
        Outcome::Mended(how) => (Wire::Mended, how.to_owned()),
        Outcome::Removed(why) => (Wire::Removed, why),
        Outcome::Failed(why) => (Wire::Failed, why),
    };
    wire::Finding { node: Some(node), problem: finding.problem, outcome: outcome.into(), detail }
}

fn answers(doomed: Vec<Doomed>, kept: Vec<wire::Kept>) -> Answers<wire::CollectGarbageResponse> {
    let garbage: Vec<_> = doomed.into_iter().map(doomed_to_wire).collect();
    let garbage = batches(garbage).map(|garbage| wire::CollectGarbageResponse { garbage, kept: Vec::new() });
    let kept = batches(kept).map(|kept| wire::CollectGarbageResponse { garbage: Vec::new(), kept });
    stream::iter(garbage.chain(kept).map(Ok)).boxed()
}

fn batches<T>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || Some(items.by_ref().take(BATCH).collect::<Vec<_>>()).filter(|batch| !batch.is_empty()))
}

fn operation_to_wire(operation: Operation) -> wire::Operation {
    let now = Instant::now();
    wire::Operation {
        id: operation.id,
        what: operation.what.into(),
        object: operation.object,
        namespace: operation.namespace.map(|namespace| namespace.to_string()).unwrap_or_default(),
        stage: operation.stage,
        started_at: Some(time_to_wire(operation.started)),
        in_stage: duration(now.saturating_duration_since(operation.stage_since)),
        left: operation.deadline.and_then(|deadline| duration(deadline.saturating_duration_since(now))),
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn doomed_to_wire(doomed: Doomed) -> wire::Garbage {
    let reason = doomed.removal.reason.as_str().to_owned();
    wire::Garbage { node: Some(node_to_wire(&doomed.removal.node)), bytes: doomed.bytes, reason }
}

fn kept_to_wire(path: &[Node]) -> wire::Kept {
    let path: Vec<_> = path.iter().map(node_to_wire).collect();
    wire::Kept { node: path.last().cloned(), path }
}

fn node_to_wire(node: &Node) -> wire::Node {
    let mut snapshotter = String::new();
    let (kind, name) = match &node.target {
        Target::Content(digest) => ("content", digest),
        Target::Snapshot { snapshotter: whose, key } => {
            snapshotter.clone_from(whose);
            ("snapshot", key)
        }
        Target::Image(name) => ("image", name),
        Target::Container(id) => ("container", id),
        Target::Sandbox(id) => ("sandbox", id),
        Target::Lease(id) => ("lease", id),
        Target::Ingest(reference) => ("ingest", reference),
        Target::Mount(name) => ("mount", name),
    };
    wire::Node { namespace: node.namespace.to_string(), kind: kind.into(), snapshotter, name: name.clone() }
}

fn entry_to_wire(entry: Entry) -> wire::UsageEntry {
    let state = match entry.state {
        State::Owned => wire::usage_entry::State::Owned,
        State::Garbage => wire::usage_entry::State::Garbage,
        State::Foreign => wire::usage_entry::State::Foreign,
    };
    wire::UsageEntry {
        path: entry.path.to_string_lossy().into_owned(),
        kind: kind_name(entry.kind).into(),
        name: entry.name,
        snapshotter: entry.snapshotter,
        namespaces: entry.namespaces.iter().map(ToString::to_string).collect(),
        state: state.into(),
        bytes: entry.bytes,
        inodes: entry.inodes,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Content => "content",
        Kind::Ingest => "ingest",
        Kind::Snapshot => "snapshot",
        Kind::Metadata => "metadata",
        Kind::Trash => "trash",
        Kind::Runtime => "runtime",
        Kind::Daemon => "daemon",
        Kind::Foreign => "foreign",
    }
}
