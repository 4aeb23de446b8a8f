//! How many calls run at once, by connection and in all, and who is counted where.
//!
//! The rule: a call is *long* where a client, a container or a registry decides when it ends (subscriptions, waits,
//! streams of bytes, transfers); all others are *short*. Each kind has a budget of its own for a connection and for
//! the daemon, so that ten thousand waits never keep a short call out, and a storm of short calls never breaks a
//! subscription. A call beyond its budget is refused at once with `ResourceExhausted`: nothing queues here. A call
//! counts until the last byte of its answer is sent or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::config::Limits;
use crate::listen::Caller;
use crate::measure::Measurements;

/// Calls whose end is not ours to decide.
const LONG: &[&str] = &[
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Write",
    "/containerd.services.events.v1.Events/Subscribe",
    "/containerd.services.sandbox.v1.Controller/Wait",
    "/containerd.services.streaming.v1.Streaming/Stream",
    "/containerd.services.tasks.v1.Tasks/Wait",
    "/containerd.services.transfer.v1.Transfer/Transfer",
    "/gantry.admin.v1.Admin/Check",
    "/gantry.admin.v1.Admin/ConvertImage",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/runtime.v1.ImageService/PullImage",
    "/runtime.v1.RuntimeService/ExecSync",
    "/runtime.v1.RuntimeService/GetContainerEvents",
];

/// Whether a call is a long one.
pub(crate) fn is_long(method: &str) -> bool {
    LONG.binary_search(&method).is_ok()
}

/// How many run.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicUsize);

impl Counter {
    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Counter>, most: usize) -> Option<Place> {
        let entered = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < most).then_some(now + 1));
        entered.ok().map(|_| Place(Arc::clone(self)))
    }
}

/// One of the calls that run, until dropped.
#[derive(Debug)]
struct Place(Arc<Counter>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The calls of a connection, or of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) short: Arc<Counter>,
    pub(crate) long: Arc<Counter>,
}

/// Lets calls through, or refuses them; measures both.
#[derive(Clone)]
pub(crate) struct Gate {
    limits: Limits,
    all: Calls,
    measurements: Arc<Measurements>,
}

impl Gate {
    pub(crate) fn new(limits: Limits, measurements: Arc<Measurements>) -> Gate {
        Gate { limits, all: measurements.running.clone(), measurements }
    }

    /// Room for a call on a connection.
    fn enter(&self, method: &str, connection: &Calls) -> Result<[Place; 2], Status> {
        let limits = &self.limits;
        let (what, here, most_here, all, most) = match is_long(method) {
            true => ("long", &connection.long, limits.streams_per_connection, &self.all.long, limits.streams),
            false => ("short", &connection.short, limits.calls_per_connection, &self.all.short, limits.calls),
        };
        let refused = |most: usize, of: &str| {
            Status::resource_exhausted(format!("more than {most} {what} calls at once {of}; try again later"))
        };
        let here = here.enter(most_here).ok_or_else(|| refused(most_here, "on one connection"))?;
        let all = all.enter(most).ok_or_else(|| refused(most, "in all"))?;
        Ok([here, all])
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone)]
pub(crate) struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Counted>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Counted>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let caller = request.extensions().get::<Arc<Caller>>().cloned().unwrap_or_default();
        let measurements = Arc::clone(&self.gate.measurements);
        match self.gate.enter(&method, &caller.calls) {
            Err(status) => {
                measurements.refused();
                let response: Response<Body> = status.into_http();
                Box::pin(async move { Ok(response.map(Counted::alone)) })
            }
            Ok(places) => {
                let record = Record { method, began: Instant::now(), code: None, measurements };
                let call = self.inner.call(request);
                Box::pin(async move {
                    let mut response = call.await?;
                    let mut record = record;
                    rename(response.headers_mut());
                    record.see(response.headers());
                    Ok(response.map(|body| Counted::new(body, Some(places), Some(record))))
                })
            }
        }
    }
}

/// A message larger than the limit is `ResourceExhausted` with containerd, and `OutOfRange` with the library below.
fn rename(headers: &mut hyper::HeaderMap) {
    const TOO_LARGE: &str = "message%20length%20too%20large";
    let says = |name: &str, what: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains(what))
    };
    if says("grpc-status", "11") && says("grpc-message", TOO_LARGE) {
        headers.insert("grpc-status", hyper::header::HeaderValue::from_static("8"));
    }
}

/// Takes down how a call ended, when it is dropped at the latest.
struct Record {
    method: String,
    began: Instant,
    code: Option<i32>,
    measurements: Arc<Measurements>,
}

impl Record {
    fn see(&mut self, headers: &hyper::HeaderMap) {
        let code = headers.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|code| code.parse().ok());
        self.code = code.or(self.code);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        /// Without a status the client had gone: `Cancelled`.
        const GONE: i32 = 1;
        self.measurements.ended(&self.method, self.code.unwrap_or(GONE), self.began.elapsed());
    }
}

/// The body of an answer, which holds the call's places until its end.
pub(crate) struct Counted {
    body: Body,
    places: Option<[Place; 2]>,
    record: Option<Record>,
}

impl Counted {
    /// The body of an answer to a call that does not run.
    pub(crate) fn alone(body: Body) -> Counted {
        Counted::new(body, None, None)
    }

    fn new(body: Body, places: Option<[Place; 2]>, record: Option<Record>) -> Counted {
        let mut counted = Counted { body, places, record };
        if counted.body.is_end_stream() {
            counted.end();
        }
        counted
    }

    fn end(&mut self) {
        self.places = None;
        self.record = None;
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()).and_then(Frame::trailers_mut) {
            rename(trailers);
            if let Some(record) = &mut self.record {
                record.see(trailers);
            }
        }
        if frame.is_none() {
            self.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    const WAIT: &str = "/containerd.services.tasks.v1.Tasks/Wait";
    const GET: &str = "/containerd.services.tasks.v1.Tasks/Get";

    fn gate(limits: Limits) -> Gate {
        Gate::new(limits, Arc::default())
    }

    fn few() -> Limits {
        Limits { calls_per_connection: 2, calls: 3, streams_per_connection: 2, streams: 3 }
    }

    #[test]
    fn the_long_calls_are_sorted_so_that_they_are_found() {
        assert!(LONG.is_sorted() && LONG.iter().all(|method| is_long(method)) && !is_long(GET));
    }

    #[test]
    fn a_call_beyond_its_budget_is_refused_and_room_comes_back() {
        let gate = gate(few());
        let (one, other) = (Calls::default(), Calls::default());
        let held = [gate.enter(GET, &one).unwrap(), gate.enter(GET, &one).unwrap()];
        let refused = gate.enter(GET, &one).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("2 short calls") && refused.message().contains("one connection"));
        let third = gate.enter(GET, &other).unwrap();
        assert!(gate.enter(GET, &other).unwrap_err().message().contains("in all"));
        drop((held, third));
        assert_eq!((gate.all.short.now(), one.short.now(), other.short.now()), (0, 0, 0));
    }

    #[test]
    fn waits_never_keep_short_calls_out() {
        let gate = gate(few());
        let connection = Calls::default();
        let _waits = [gate.enter(WAIT, &connection).unwrap(), gate.enter(WAIT, &connection).unwrap()];
        assert!(gate.enter(WAIT, &connection).is_err());
        assert!(gate.enter(GET, &connection).is_ok());
    }

    #[test]
    fn a_message_that_is_too_large_has_containerds_code() {
        for text in ["decoded", "encoded"] {
            let text = format!("Error, {text} message length too large: found 9 bytes, the limit is: 4 bytes");
            let mut response: Response<Body> = Status::out_of_range(text).into_http();
            rename(response.headers_mut());
            assert_eq!(response.headers()["grpc-status"], "8");
        }
        let mut response: Response<Body> = Status::out_of_range("an offset").into_http();
        rename(response.headers_mut());
        assert_eq!(response.headers()["grpc-status"], "11");
    }

    proptest! {
        #[test]
        fn no_order_of_calls_and_ends_exceeds_a_limit(steps in prop::collection::vec((any::<bool>(), 0..3usize, any::<bool>()), 0..60)) {
            let gate = gate(few());
            let connections = [Calls::default(), Calls::default(), Calls::default()];
            let mut held = Vec::new();
            for (begin, connection, long) in steps {
                if begin {
                    held.extend(gate.enter(if long { WAIT } else { GET }, &connections[connection]));
                } else if !held.is_empty() {
                    held.remove(0);
                }
                prop_assert!(gate.all.short.now() <= 3 && gate.all.long.now() <= 3);
                prop_assert!(connections.iter().all(|c| c.short.now() <= 2 && c.long.now() <= 2));
                prop_assert_eq!(held.len(), gate.all.short.now() + gate.all.long.now());
            }
        }
    }
}
