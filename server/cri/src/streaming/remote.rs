//! Exec and attach: the streams of a command, whatever carries them.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use serde::Deserialize;

use super::status::{Version, encode};
use super::tokens::Request;
use super::{Backend, Failure, Io, Reader, Size, Writer, spdy, websocket};

/// How long a command's end is waited for after its client went away.
const GRACE: Duration = Duration::from_secs(10);
/// Sizes that may wait for the terminal.
const SIZES: usize = 16;
/// Most bytes of one size.
const MAX_SIZE: usize = 1024;

/// Which streams a client opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Wanted {
    pub(super) fn of(request: &Request) -> Wanted {
        match request {
            Request::Exec(r) => Wanted { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr && !r.tty, tty: r.tty },
            Request::Attach(r) => Wanted { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr && !r.tty, tty: r.tty },
            Request::PortForward(_) => Wanted::default(),
        }
    }
}

/// Streams of a command as a connection gives them.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<Reader>,
    pub(super) stdout: Option<Writer>,
    pub(super) stderr: Option<Writer>,
    pub(super) error: Option<Writer>,
    pub(super) resize: Option<Reader>,
}

/// How a connection can end before its command.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// The client is gone.
    pub(super) gone: CancellationToken,
    /// We do not want to go on.
    pub(super) cut: CancellationToken,
}

/// Runs the request to its end, and tells the client how it ended. Output may still be on its way.
pub(super) async fn run(backend: &dyn Backend, request: Request, version: Version, streams: Streams, ends: Ends) {
    let Ends { gone, cut } = ends;
    let (sizes, resize) = mpsc::channel(SIZES);
    if let Some(from) = streams.resize {
        tokio::spawn(read_sizes(from, sizes));
    }
    let io = Io { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr, resize, gone: gone.clone() };
    let end = async {
        match request {
            Request::Exec(exec) => {
                let executed = backend.exec(exec, io).await;
                executed.map_err(|failure| failure.while_doing("executing command in container"))
            }
            Request::Attach(attach) => {
                let attached = backend.attach(attach, io).await;
                attached.map(|()| 0).map_err(|failure| failure.while_doing("attaching to container"))
            }
            Request::PortForward(_) => Err(Failure::from("not a command")),
        }
    };
    let given_up = async {
        gone.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        result = end => result,
        () = given_up => return,
        // Clients take a connection that just ends for success.
        () = cut.cancelled() => Err(Failure::from("connection closed: it was idle for too long, or the server stops")),
    };
    if let Some(mut error) = streams.error {
        // A client that is gone asks for no result.
        let _ = error.write_all(&encode(version, &result)).await;
        let _ = error.shutdown().await;
    }
}

/// What clients send for a new size.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wire {
    width: u16,
    height: u16,
}

/// Reads sizes, one JSON object after the other, until the stream ends or holds something else.
async fn read_sizes(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Size>) {
    let mut text = Vec::new();
    let mut buffer = [0; MAX_SIZE];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        text.extend(&buffer[..length]);
        let mut objects = serde_json::Deserializer::from_slice(&text).into_iter::<Wire>();
        let mut sizes = Vec::new();
        let rubbish = loop {
            match objects.next() {
                Some(Ok(wire)) => sizes.push(Size { width: wire.width, height: wire.height }),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        let used = objects.byte_offset();
        for size in sizes {
            if to.send(size).await.is_err() {
                return;
            }
        }
        text.drain(..used);
        if rubbish || text.len() > MAX_SIZE {
            return;
        }
    }
}

/// Serves a command over SPDY: the client opens the streams that it asked for, and one for errors.
pub(super) async fn over_spdy(
    backend: &dyn Backend,
    request: Request,
    version: Version,
    mut connection: spdy::Connection,
    patience: Duration,
    cut: CancellationToken,
) {
    let wanted = Wanted::of(&request);
    let Ok(Some((streams, closers))) = tokio::time::timeout(patience, collect(&mut connection, wanted, version)).await
    else {
        tracing::debug!(?wanted, "a client did not open its streams");
        connection.gone.cancel();
        return;
    };
    let ends = Ends { gone: connection.gone.clone(), cut };
    run(backend, request, version, streams, ends).await;
    for closer in closers {
        closer.close().await;
    }
    connection.finish().await;
}

/// Waits for the streams. None when the client goes away first.
async fn collect(
    connection: &mut spdy::Connection,
    wanted: Wanted,
    version: Version,
) -> Option<(Streams, Vec<spdy::Closer>)> {
    let (mut streams, mut closers) = (Streams::default(), Vec::new());
    let resizes = wanted.tty && version >= Version::V3;
    let complete = |s: &Streams| {
        s.error.is_some()
            && s.stdin.is_some() == wanted.stdin
            && s.stdout.is_some() == wanted.stdout
            && s.stderr.is_some() == wanted.stderr
            && s.resize.is_some() == resizes
    };
    while !complete(&streams) {
        let stream = connection.next().await?;
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        let closer = stream.closer();
        match kind.as_str() {
            "stdin" if wanted.stdin => streams.stdin = Some(Box::new(stream)),
            "stdout" if wanted.stdout => streams.stdout = Some(Box::new(stream)),
            "stderr" if wanted.stderr => streams.stderr = Some(Box::new(stream)),
            "error" => streams.error = Some(Box::new(stream)),
            "resize" if resizes => streams.resize = Some(Box::new(stream)),
            // A stream that nobody asked for: it is left open and unread.
            _ => continue,
        }
        closers.extend(closer);
    }
    Some((streams, closers))
}

/// Serves a command over WebSocket: channels by number in one connection.
pub(super) async fn over_websocket(
    backend: &dyn Backend,
    request: Request,
    version: Version,
    connection: websocket::Connection,
    cut: CancellationToken,
) {
    let ends = Ends { gone: connection.gone.clone(), cut };
    let (streams, finish) = connection.streams(Wanted::of(&request)).await;
    run(backend, request, version, streams, ends).await;
    finish.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sizes(text: &'static [u8]) -> Vec<Size> {
        let (to, mut from) = mpsc::channel(SIZES);
        read_sizes(text, to).await;
        let mut sizes = Vec::new();
        while let Some(size) = from.recv().await {
            sizes.push(size);
        }
        sizes
    }

    #[tokio::test]
    async fn sizes_come_one_after_the_other_until_rubbish_comes() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":1,\"Height\":2}{\"Width\":-1}{\"Width\":3,\"Height\":3}";
        assert_eq!(sizes(text).await, [Size { width: 80, height: 24 }, Size { width: 1, height: 2 }]);
        assert_eq!(sizes(b"x").await, []);
    }
}
