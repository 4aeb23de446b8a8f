//! TLS as `hosts.toml` asks for it: system roots, further authorities, client certificates, or no check at all.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::hosts::{ClientCertificate, Endpoint, HostsError};

/// The TLS settings for `endpoint`. `foreign`: for a host it redirected to, which must not see our certificate.
/// `roots`: whether system roots are needed, which takes time to read.
pub(crate) fn config(endpoint: &Endpoint, foreign: bool, roots: bool) -> Result<ClientConfig, HostsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| certificate(Path::new("TLS"), e))?;
    let builder = if endpoint.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        builder.with_root_certificates(root_store(endpoint, roots)?)
    };
    let mut config = match endpoint.client.first().filter(|_| !foreign) {
        Some(client) => {
            let (chain, key) = identity(client)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| certificate(&client.certificate, e))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn root_store(endpoint: &Endpoint, system: bool) -> Result<RootCertStore, HostsError> {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    let mut store = if system { SYSTEM.get_or_init(system_roots).clone() } else { RootCertStore::empty() };
    for path in &endpoint.ca {
        for der in chain(path)? {
            store.add(der).map_err(|e| certificate(path, e))?;
        }
    }
    Ok(store)
}

/// The system's authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` count); ones that cannot be read are left out.
fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (_, ignored) = store.add_parsable_certificates(found.certs);
    if !found.errors.is_empty() || store.is_empty() {
        tracing::warn!(loaded = store.len(), ignored, errors = ?found.errors, "system certificates are incomplete");
    }
    store
}

fn identity(client: &ClientCertificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), HostsError> {
    let path = client.key.as_ref().unwrap_or(&client.certificate);
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| certificate(path, e))?;
    Ok((chain(&client.certificate)?, key))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    let pem = read(path)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| certificate(path, e))?;
    if chain.is_empty() { Err(certificate(path, "no certificate in it")) } else { Ok(chain) }
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    std::fs::read(path).map_err(|source| HostsError::Read { path: path.display().to_string(), source })
}

fn certificate(path: &Path, what: impl ToString) -> HostsError {
    HostsError::Certificate { path: path.display().to_string(), what: what.to_string() }
}

/// `skip_verify`: any certificate will do, as long as the peer holds its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
