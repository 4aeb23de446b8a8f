//! `gctr gc`, `gctr ops`, `gctr du`, `gctr image check` and `gctr fsck`: what the daemon's own service says.

use std::collections::BTreeMap;
use std::process::ExitCode;

use gantry_client::Client;
use gantry_client::pb::gantry::admin::v1::{
    CheckRequest, CheckSums, CollectGarbageRequest, ConvertImageRequest, ListOperationsRequest, Node, UsageEntry,
    UsageRequest, convert_image_request::Form, finding::Outcome, usage_entry::State,
};
use gantry_client::types::Platform;
use serde_json::Value;

use crate::error::Error;
use crate::output::{Table, size};

/// Collects, or says what would go; then what stays, where that was asked for.
pub async fn gc(client: &Client, dry_run: bool, here: bool, kept: bool, json: bool) -> Result<(), Error> {
    let namespaces = if here { vec![client.namespace().to_string()] } else { Vec::new() };
    let request = CollectGarbageRequest { dry_run, namespaces, kept };
    let mut stream = client.admin().collect_garbage(request).await?.into_inner();
    let mut table = Table::new(&["action", "namespace", "kind", "name", "size", "reason"]);
    let (mut total, mut count) = (0, 0_u64);
    while let Some(part) = stream.message().await? {
        for item in part.garbage {
            let node = item.node.unwrap_or_default();
            let action = if dry_run { "would go" } else { "gone" };
            table.row(row(action, &node, size(item.bytes, json), item.reason));
            total += item.bytes;
            count += 1;
        }
        for item in part.kept {
            let path: Vec<String> = item.path.iter().map(short).collect();
            table.row(row("stays", &item.node.unwrap_or_default(), Value::Null, path.join(" → ")));
        }
    }
    table.print(json);
    if !json {
        let verb = if dry_run { "would go" } else { "went" };
        println!("{count} records {verb}, and with them {}", text(&size(total, false)));
    }
    Ok(())
}

fn row(action: &str, node: &Node, bytes: Value, reason: String) -> [Value; 6] {
    let namespace = node.namespace.clone();
    [action.into(), namespace.into(), kind(node).into(), node.name.clone().into(), bytes, reason.into()]
}

/// `content`, `snapshot/overlayfs`, …
fn kind(node: &Node) -> String {
    match node.snapshotter.as_str() {
        "" => node.kind.clone(),
        snapshotter => format!("{}/{snapshotter}", node.kind),
    }
}

fn short(node: &Node) -> String {
    format!("{} {}", kind(node), node.name)
}

/// Checks images, or everything; fails where something stays broken.
pub async fn check(client: &Client, images: Vec<String>, mend: bool, json: bool) -> Result<ExitCode, Error> {
    let request = CheckRequest { namespace: client.namespace().to_string(), images, mend };
    let mut stream = client.admin().check(request).await?.into_inner();
    let mut table = Table::new(&["state", "namespace", "kind", "name", "problem", "detail"]);
    let (mut sums, mut broken) = (CheckSums::default(), false);
    while let Some(part) = stream.message().await? {
        for finding in part.findings {
            let state = match finding.outcome() {
                Outcome::Mended => "mended",
                Outcome::Removed => "removed",
                Outcome::Told | Outcome::Failed | Outcome::Unspecified => "broken",
            };
            broken |= state == "broken";
            let node = finding.node.unwrap_or_default();
            let (problem, detail) = (finding.problem.into(), finding.detail.into());
            table.row([
                state.into(),
                node.namespace.clone().into(),
                kind(&node).into(),
                node.name.into(),
                problem,
                detail,
            ]);
        }
        sums = part.sums.unwrap_or(sums);
    }
    table.print(json);
    if !json {
        let CheckSums { blobs, snapshots, passed_over, bytes, took } = sums;
        let took = took.map_or(0.0, |took| took.seconds as f64 + f64::from(took.nanos) / 1e9);
        let read = text(&size(bytes, false));
        println!(
            "{blobs} blobs and {snapshots} snapshots checked, {read} in {took:.1} s; {passed_over} snapshots passed over"
        );
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Converts an image; gives the digest of the new one.
pub async fn convert(
    client: &Client,
    source: String,
    target: String,
    form: &str,
    platforms: &[Platform],
) -> Result<String, Error> {
    let form = match form {
        "plain" => Form::Plain,
        "gzip" => Form::Gzip,
        "zstd" => Form::Zstd,
        _ => Form::Estargz,
    };
    let platforms = platforms.iter().map(ToString::to_string).collect();
    let namespace = client.namespace().to_string();
    let request = ConvertImageRequest { namespace, source, target, form: form.into(), platforms };
    Ok(client.admin().convert_image(request).await?.into_inner().digest)
}

/// What runs, oldest first.
pub async fn ops(client: &Client, json: bool) -> Result<(), Error> {
    let mut table = Table::new(&["id", "operation", "namespace", "object", "stage", "in stage", "left"]);
    let listed = client.admin().list_operations(ListOperationsRequest {}).await?.into_inner();
    for op in listed.operations {
        let seconds = |duration: Option<gantry_client::Duration>| match duration {
            Some(duration) => seconds(&duration, json),
            None => Value::Null,
        };
        table.row([
            op.id.into(),
            op.what.into(),
            op.namespace.into(),
            op.object.into(),
            op.stage.into(),
            seconds(op.in_stage),
            seconds(op.left),
        ]);
    }
    table.print(json);
    Ok(())
}

fn seconds(duration: &gantry_client::Duration, json: bool) -> Value {
    let seconds = duration.seconds as f64 + f64::from(duration.nanos) / 1e9;
    if json { seconds.into() } else { format!("{seconds:.1} s").into() }
}

/// Whose the bytes are.
pub async fn du(client: &Client, all: bool, unowned: bool, json: bool) -> Result<(), Error> {
    let mut stream = client.admin().usage(UsageRequest { unowned }).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(part) = stream.message().await? {
        entries.extend(part.entries);
    }
    if all || unowned {
        each(&entries, json);
    } else {
        sums(&entries, json);
    }
    Ok(())
}

fn each(entries: &[UsageEntry], json: bool) {
    let mut table = Table::new(&["path", "kind", "state", "size", "inodes", "name", "namespaces"]);
    for entry in entries {
        let kind = kind(&Node { kind: entry.kind.clone(), snapshotter: entry.snapshotter.clone(), ..Node::default() });
        table.row([
            if entry.path.is_empty() { ".".into() } else { entry.path.clone().into() },
            kind.into(),
            state(entry).into(),
            size(entry.bytes, json),
            entry.inodes.into(),
            entry.name.clone().into(),
            entry.namespaces.clone().into(),
        ]);
    }
    table.print(json);
}

fn sums(entries: &[UsageEntry], json: bool) {
    let mut by_kind: BTreeMap<(String, &str), (u64, u64)> = BTreeMap::new();
    for entry in entries {
        let kind = Node { kind: entry.kind.clone(), snapshotter: entry.snapshotter.clone(), ..Node::default() };
        for key in [(self::kind(&kind), state(entry)), ("total".into(), "")] {
            let sum = by_kind.entry(key).or_default();
            *sum = (sum.0 + entry.bytes, sum.1 + entry.inodes);
        }
    }
    let mut table = Table::new(&["kind", "state", "size", "inodes"]);
    // The total stands last.
    let (total, kinds): (Vec<_>, Vec<_>) = by_kind.into_iter().partition(|((_, state), _)| state.is_empty());
    for ((kind, state), (bytes, inodes)) in kinds.into_iter().chain(total) {
        table.row([kind.into(), state.into(), size(bytes, json), inodes.into()]);
    }
    table.print(json);
}

fn state(entry: &UsageEntry) -> &'static str {
    match entry.state() {
        State::Owned => "owned",
        State::Garbage => "garbage",
        State::Foreign => "foreign",
        State::Unspecified => "unknown",
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
