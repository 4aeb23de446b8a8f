//! Server reflection, made when somebody asks for it: all descriptions decoded take more memory than all else that an
//! idle daemon holds.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic_reflection::server::{Builder, Error};

/// A version of the reflection service.
pub(crate) trait Version: Clone + Send + Sync + 'static {
    /// Its name on the wire.
    const NAME: &'static str;

    /// The service.
    fn make() -> Result<Routes, Error>;
}

/// `grpc.reflection.v1`.
#[derive(Clone)]
pub(crate) struct V1;

/// `grpc.reflection.v1alpha`.
#[derive(Clone)]
pub(crate) struct V1Alpha;

impl Version for V1 {
    const NAME: &'static str = "grpc.reflection.v1.ServerReflection";

    fn make() -> Result<Routes, Error> {
        let mut routes = RoutesBuilder::default();
        routes.add_service(described().build_v1()?);
        Ok(routes.routes())
    }
}

impl Version for V1Alpha {
    const NAME: &'static str = "grpc.reflection.v1alpha.ServerReflection";

    fn make() -> Result<Routes, Error> {
        let mut routes = RoutesBuilder::default();
        routes.add_service(described().build_v1alpha()?);
        Ok(routes.routes())
    }
}

fn described<'b>() -> Builder<'b> {
    Builder::configure()
        .register_encoded_file_descriptor_set(gantry_api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// One version, once it was asked for.
#[derive(Clone)]
pub(crate) struct Reflection<V>(Arc<OnceLock<Routes>>, PhantomData<V>);

impl<V> Default for Reflection<V> {
    fn default() -> Reflection<V> {
        Reflection(Arc::default(), PhantomData)
    }
}

impl<V: Version> Reflection<V> {
    fn made(&self) -> Result<Routes, Status> {
        if let Some(made) = self.0.get() {
            return Ok(made.clone());
        }
        let made = V::make().map_err(|error| Status::internal(format!("server reflection: {error}")))?;
        Ok(self.0.get_or_init(|| made).clone())
    }
}

impl<V: Version> NamedService for Reflection<V> {
    const NAME: &'static str = V::NAME;
}

impl<V: Version> Service<http::Request<Body>> for Reflection<V> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.made() {
            Ok(mut routes) => Box::pin(routes.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptions_decode() {
        assert!(Reflection::<V1>::default().made().is_ok());
        assert!(Reflection::<V1Alpha>::default().made().is_ok());
    }
}
