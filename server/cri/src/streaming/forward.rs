//! Port-forward: over SPDY a pair of streams for each connection, one for bytes and one for errors; over WebSocket, in
//! the old form, two channels for each port.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, join};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::inbox::inbox;
use super::{Backend, Failure, PortForward, spdy, websocket};

/// Most connections of which only one stream has come.
const MAX_HALVES: usize = 256;

/// Serves port-forward over SPDY until the client goes.
pub(super) async fn over_spdy(
    backend: Arc<dyn Backend>,
    request: PortForward,
    mut connection: spdy::Connection,
    patience: Duration,
) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = connection.next() => stream,
            Some(done) = running.join_next() => {
                let ids: [u32; 2] = done.unwrap_or_default();
                ids.iter().for_each(|id| connection.forget(*id));
                continue;
            }
        };
        let Some(stream) = stream else { break };
        halves.retain(|_, half| half.since.elapsed() < patience);
        let id = request_id(&stream);
        match pair(&mut halves, id, stream) {
            Ok(Some((data, error))) => {
                let (backend, pod) = (backend.clone(), request.pod.clone());
                running.spawn(async move { connect(&*backend, &pod, data, error).await });
            }
            Ok(None) => {}
            Err(reason) => tracing::debug!(reason, "a stream of a port-forward is dropped"),
        }
    }
    // Connections whose client has gone end by themselves, for their streams are broken.
    while running.join_next().await.is_some() {}
    connection.finish().await;
}

/// The stream of a connection that has come first.
struct Half {
    stream: spdy::Stream,
    since: Instant,
}

/// Clients that give no id open the error stream first, and the other right after it.
fn request_id(stream: &spdy::Stream) -> String {
    let given = stream.headers.get("requestid").cloned();
    given.unwrap_or_else(|| match stream.headers.get("streamtype").map(String::as_str) {
        Some("data") => stream.id().saturating_sub(2).to_string(),
        _ => stream.id().to_string(),
    })
}

fn pair(
    halves: &mut HashMap<String, Half>,
    id: String,
    stream: spdy::Stream,
) -> Result<Option<(spdy::Stream, spdy::Stream)>, &'static str> {
    let kind = |stream: &spdy::Stream| stream.headers.get("streamtype").cloned().unwrap_or_default();
    let own = kind(&stream);
    if own != "data" && own != "error" {
        return Err("it is neither for data nor for errors");
    }
    match halves.remove(&id) {
        Some(other) if kind(&other.stream) == own => Err("there are two of its kind"),
        Some(other) if own == "data" => Ok(Some((stream, other.stream))),
        Some(other) => Ok(Some((other.stream, stream))),
        None if halves.len() >= MAX_HALVES => Err("too many connections lack a stream"),
        None => {
            halves.insert(id, Half { stream, since: Instant::now() });
            Ok(None)
        }
    }
}

async fn connect(backend: &dyn Backend, pod: &str, data: spdy::Stream, mut error: spdy::Stream) -> [u32; 2] {
    let ids = [data.id(), error.id()];
    let closer = data.closer();
    let port = data.headers.get("port").and_then(|text| text.parse::<u16>().ok()).filter(|port| *port != 0);
    let result = match port {
        Some(port) => backend.port_forward(pod, port, Box::new(data)).await.map_err(|f| described(port, pod, &f)),
        None => Err(format!("{:?} is no port", data.headers.get("port").map_or("", String::as_str))),
    };
    if let Err(reason) = result {
        // A client that is gone asks for no reason.
        let _ = error.write_all(reason.as_bytes()).await;
    }
    let _ = error.shutdown().await;
    if let Some(closer) = closer {
        closer.close().await;
    }
    ids
}

fn described(port: u16, pod: &str, failure: &Failure) -> String {
    format!("error forwarding port {port} to pod {pod}: {failure}")
}

/// Serves port-forward over WebSocket's channels: for each port of the request one for bytes, one for errors, each of
/// which begins with the port's number.
pub(super) async fn over_websocket(backend: Arc<dyn Backend>, request: PortForward, connection: websocket::Connection) {
    let mut inboxes = Vec::new();
    let mut running = JoinSet::new();
    for (i, port) in (0u8..=126).zip(request.ports.iter().copied()) {
        let (mut data, mut error) = (connection.channel(2 * i), connection.channel(2 * i + 1));
        let (sender, inbox) = inbox();
        inboxes.extend([Some(sender), None]);
        let (backend, pod) = (backend.clone(), request.pod.clone());
        running.spawn(async move {
            let number = port.to_le_bytes();
            let begun = data.write_all(&number).await.is_ok() && error.write_all(&number).await.is_ok();
            if begun && let Err(failure) = backend.port_forward(&pod, port, Box::new(join(inbox, data))).await {
                let _ = error.write_all(described(port, &pod, &failure).as_bytes()).await;
            }
        });
    }
    let finish = connection.start(inboxes);
    while running.join_next().await.is_some() {}
    finish.finish().await;
}
