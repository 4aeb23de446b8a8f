//! Stands before a generated service, and answers some of its methods in its place.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// An answer, or the status that is sent instead.
pub(crate) type Answer = BoxFuture<http::Response<Body>, Status>;

/// How a method is answered.
pub(crate) type Method<A> = fn(A, http::Request<Body>) -> Answer;

/// Who answers in the place of a generated service.
pub(crate) trait Answers: Clone + Send + 'static {
    /// How the method of that name is answered; none where the service behind does it.
    fn method(name: &str) -> Option<Method<Self>>;
}

/// A generated service, and who stands before it.
#[derive(Clone)]
pub(crate) struct Front<A, S> {
    answers: A,
    behind: S,
}

impl<A, S> Front<A, S> {
    /// Puts `answers` before a service.
    pub(crate) fn new(answers: A, behind: S) -> Front<A, S> {
        Front { answers, behind }
    }
}

impl<A, S: NamedService> NamedService for Front<A, S> {
    const NAME: &'static str = S::NAME;
}

impl<A, S> Service<http::Request<Body>> for Front<A, S>
where
    A: Answers,
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<http::Response<Body>, Infallible>,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.behind.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let Some(method) = A::method(name) else { return self.behind.call(request) };
        let answer = method(self.answers.clone(), request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}
