//! Bodies and small answers.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

/// A body of ours.
pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// A body of a stream.
pub(super) fn streamed(bytes: BoxStream<'static, std::io::Result<Bytes>>) -> Body {
    let frames = bytes.map(|piece| piece.map(Frame::data)).boxed();
    BoxBody::new(StreamBody::new(Exclusive(std::sync::Mutex::new(frames))))
}

/// Makes a stream `Sync`, as bodies must be, by only ever giving out exclusive access to it.
struct Exclusive<T>(std::sync::Mutex<BoxStream<'static, T>>);

impl<T> futures::Stream for Exclusive<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let stream = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        stream.as_mut().poll_next(cx)
    }
}

/// An answer with a whole body.
pub(super) fn full(status: StatusCode, media_type: &str, bytes: Bytes) -> Response<Body> {
    let body = BoxBody::new(Full::new(bytes).map_err(|never| match never {}));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(media_type) {
        response.headers_mut().insert("content-type", value);
    }
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = full(status, "text/plain", Bytes::new());
    response.headers_mut().remove("content-type");
    response
}

/// An error as the specification writes it.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    full(status, "application/json", text.to_string().into())
}

/// Sets a header, where its value can be sent.
pub(super) fn set(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
