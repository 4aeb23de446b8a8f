//! A small certificate authority for the fake.

use std::io::{Error, Result};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// An authority, and what it certified.
pub(crate) struct Authority {
    pub(super) ca_pem: String,
    pub(super) client_pem: String,
    pub(super) client_key_pem: String,
    pub(super) acceptor: TlsAcceptor,
}

impl Authority {
    /// Makes one; `ask`: whether callers must show a certificate of it.
    pub(super) fn new(ask: bool) -> Result<Authority> {
        let ca_key = KeyPair::generate().map_err(Error::other)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "gantry fake authority");
        let ca = params.self_signed(&ca_key).map_err(Error::other)?;
        let issuer = Issuer::new(params, ca_key);
        let (server, server_key) = certify(&issuer, ExtendedKeyUsagePurpose::ServerAuth)?;
        let (client, client_key) = certify(&issuer, ExtendedKeyUsagePurpose::ClientAuth)?;
        let config = server_config(ca.der().clone(), server.der().clone(), &server_key, ask)?;
        Ok(Authority {
            ca_pem: ca.pem(),
            client_pem: client.pem(),
            client_key_pem: client_key.serialize_pem(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

fn certify(issuer: &Issuer<'_, KeyPair>, usage: ExtendedKeyUsagePurpose) -> Result<(rcgen::Certificate, KeyPair)> {
    let key = KeyPair::generate().map_err(Error::other)?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let mut params = CertificateParams::new(names).map_err(Error::other)?;
    params.insert_extended_key_usage(usage);
    let certificate = params.signed_by(&key, issuer).map_err(Error::other)?;
    Ok((certificate, key))
}

fn server_config(
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    ask: bool,
) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(Error::other)?;
    let builder = if ask {
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(Error::other)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().map_err(Error::other)?)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(Error::other)?;
    let mut config = builder.with_single_cert(vec![certificate], key).map_err(Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
