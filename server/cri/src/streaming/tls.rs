//! TLS of the streaming server.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Error, Result};

/// The server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// One made at start, for the server's address.
    SelfSigned,
    /// PEM files.
    Files {
        /// The certificate and what leads to its authority.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

impl Tls {
    pub(super) fn acceptor(&self, address: IpAddr) -> Result<TlsAcceptor> {
        let (chain, key, path) = match self {
            Tls::SelfSigned => own(address)?,
            Tls::Files { cert, key } => (certificates(cert)?, private_key(key)?, cert.clone()),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let bad = |error: rustls::Error| Error::Certificate { path: path.clone(), reason: error.to_string() };
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.map_err(bad)?.with_no_client_auth().with_single_cert(chain, key).map_err(bad)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

type Made = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, PathBuf);

fn own(address: IpAddr) -> Result<Made> {
    let bad = |error: rcgen::Error| Error::Certificate { path: "(self-signed)".into(), reason: error.to_string() };
    let names = vec![address.to_string(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    let made = rcgen::generate_simple_self_signed(names).map_err(bad)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der());
    let key = key.map_err(|e| Error::Certificate { path: "(self-signed)".into(), reason: e.into() })?;
    Ok((vec![made.cert.der().clone()], key, "(self-signed)".into()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |reason: String| Error::Certificate { path: path.into(), reason };
    let read = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(|e| bad(e.to_string()))?;
    if chain.is_empty() { Err(bad("it holds no certificate".into())) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bad = |e: rustls::pki_types::pem::Error| Error::Certificate { path: path.into(), reason: e.to_string() };
    PrivateKeyDer::from_pem_file(path).map_err(bad)
}
