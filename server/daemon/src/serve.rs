//! Serving connections: HTTP/2 by hyper, with the services behind it.
//!
//! A call is begun on the task of its connection. Most are done at once, and their answer leaves with whatever else the
//! connection has to say; one that has to wait becomes a task of its own.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt as _};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer as _, Service};

use crate::limits::{Calls, Counted, Gate, Gated};
use crate::line::Line;
use crate::listen::{Caller, Io};
use crate::scope;

/// HTTP/2 windows: a chunk on its way never waits for an acknowledgement of the one before.
const WINDOW: u32 = 4 << 20;

/// HTTP/2 frames: one for a chunk of content.
const FRAME: u32 = 256 << 10;

/// How often a connection that woke itself is looked at again before others have their turn.
const ROUNDS: usize = 8;

/// Serves until `stopping`; returns when the last call has ended.
pub(crate) async fn serve<S, T>(connections: S, routes: Routes, gate: Gate, stopping: CancellationToken)
where
    S: Stream<Item = io::Result<T>> + Send + 'static,
    T: Io + 'static,
{
    let service = gate.layer(routes.prepare());
    let tasks = TaskTracker::new();
    {
        // Dropped before the calls are waited for: nobody shall connect to one who does not answer.
        let mut connections = pin!(connections);
        loop {
            let connection = tokio::select! {
                () = stopping.cancelled() => break,
                connection = connections.next() => connection,
            };
            match connection {
                Some(Ok(connection)) => drop(tasks.spawn(attend(connection, service.clone(), stopping.clone()))),
                Some(Err(error)) => tracing::debug!(%error, "a connection was not accepted"),
                None => break,
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Serves one connection.
async fn attend<T>(stream: T, service: Gated<Routes>, stopping: CancellationToken)
where
    T: Io + 'static,
{
    let line = Line::new(stream);
    let caller = Arc::new(Caller { calls: Calls::default(), takes_files: line.takes_files() });
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&caller));
        answer(service.clone(), request)
    });
    let served = http2::Builder::new(Begin)
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        // Streams beyond what HTTP/2 announces wait in the client, unseen; the gate refuses them by name.
        .max_concurrent_streams(u32::MAX)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(line.clone()), answer);
    let mut served = pin!(served);
    let mut stopped = pin!(stopping.cancelled_owned());
    let (mut leaving, wakes) = (false, Arc::<Wakes>::default());
    let ended = poll_fn(|cx| {
        if !leaving && stopped.as_mut().poll(cx).is_ready() {
            leaving = true;
            served.as_mut().graceful_shutdown();
        }
        let ended = wakes.poll(cx, |cx| served.as_mut().poll(cx));
        match (ended, line.poll_send(cx)) {
            (Poll::Ready(ended), _) => Poll::Ready(ended.map_err(|error| error.to_string())),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.to_string())),
            (Poll::Pending, _) => Poll::Pending,
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(error, "a connection broke");
    }
}

/// Answers a call, or says that its deadline has passed.
async fn answer(mut service: Gated<Routes>, request: Request<Incoming>) -> Result<Response<Counted>, Infallible> {
    let left = scope::timeout(request.headers());
    let call = service.call(request.map(Body::new));
    match left {
        None => call.await,
        Some(left) => match tokio::time::timeout(left, call).await {
            Ok(answered) => answered,
            Err(_) => Ok(Status::deadline_exceeded("the call's deadline has passed").into_http().map(Counted::alone)),
        },
    }
}

/// Begins calls where they come in.
#[derive(Clone, Copy)]
struct Begin;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begin {
    fn execute(&self, call: F) {
        let mut call = Box::pin(call);
        // Whoever has to wait is asked again by a task of its own, with a waker that wakes that.
        let begun = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match begun {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => drop(tokio::spawn(call)),
            // The message was printed where it happened; the connection's other calls go on.
            Err(_) => drop(catch_unwind(AssertUnwindSafe(|| drop(call)))),
        }
    }
}

/// Keeps a connection that wakes itself from going through the queue of tasks, which would wake another thread for it.
#[derive(Default)]
struct Wakes {
    task: AtomicWaker,
    polled: AtomicBool,
    again: AtomicBool,
}

impl Wakes {
    fn poll<R>(self: &Arc<Self>, cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<R>) -> Poll<R> {
        self.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(self));
        for _ in 0..ROUNDS {
            self.again.store(false, Ordering::SeqCst);
            self.polled.store(true, Ordering::SeqCst);
            let result = poll(&mut Context::from_waker(&waker));
            self.polled.store(false, Ordering::SeqCst);
            if result.is_ready() || !self.again.load(Ordering::SeqCst) {
                return result;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        if !self.polled.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}
