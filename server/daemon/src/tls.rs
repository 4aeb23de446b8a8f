//! Certificates of the TCP port: ours, and the authorities that clients' must come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config::TcpSocket;

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, or holds no PEM.
    #[error("{path:?}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file has nothing of what it should hold.
    #[error("{path:?} holds no {what}")]
    Empty {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// They do not fit together.
    #[error("certificate {certificate:?} and key {key:?}: {reason}")]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Reads the files; none where the port is to be without TLS.
///
/// # Errors
/// All that is wrong with them.
pub fn load(tcp: &TcpSocket) -> Result<Option<Arc<ServerConfig>>, Vec<Error>> {
    let (Some(certificate), Some(key)) = (&tcp.cert, &tcp.key) else { return Ok(None) };
    let mut errors = Vec::new();
    let chain = certificates(certificate).map_err(|error| errors.push(error));
    let private = private_key(key).map_err(|error| errors.push(error));
    let roots = tcp.ca.as_deref().map(roots).transpose().map_err(|error| errors.push(error));
    let (Ok(chain), Ok(private), Ok(roots)) = (chain, private, roots) else { return Err(errors) };
    let unfit = |reason: String| vec![Error::Unfit { certificate: certificate.clone(), key: key.clone(), reason }];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| unfit(error.to_string()))?;
    let builder = match roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unfit(error.to_string()))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|error| unfit(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |reason: String| Error::File { path: path.into(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if certificates.is_empty() {
        return Err(Error::Empty { path: path.into(), what: "certificate" });
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    use rustls::pki_types::pem::Error as Pem;
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        Pem::NoItemsFound => Error::Empty { path: path.into(), what: "private key" },
        error => Error::File { path: path.into(), reason: error.to_string() },
    })
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| Error::File { path: path.into(), reason: error.to_string() })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(folder: &Path, ca: bool) -> TcpSocket {
        let mut tcp = crate::config::Config::default().tcp;
        tcp.cert = Some(folder.join("cert.pem"));
        tcp.key = Some(folder.join("key.pem"));
        tcp.ca = ca.then(|| folder.join("ca.pem"));
        tcp
    }

    fn pair(folder: &Path, certificate: &str, key: &str) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join(certificate), made.cert.pem()).unwrap();
        std::fs::write(folder.join(key), made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn certificate_key_and_authority_are_read() {
        let folder = tempfile::tempdir().unwrap();
        pair(folder.path(), "cert.pem", "key.pem");
        pair(folder.path(), "ca.pem", "unused.pem");
        assert!(load(&tcp(folder.path(), true)).unwrap().is_some());
        assert!(load(&tcp(folder.path(), false)).unwrap().is_some());
        assert!(load(&crate::config::Config::default().tcp).unwrap().is_none());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        pair(folder.path(), "cert.pem", "other.pem");
        pair(folder.path(), "other-cert.pem", "key.pem");
        let errors = load(&tcp(folder.path(), false)).unwrap_err();
        assert!(matches!(errors.as_slice(), [Error::Unfit { .. }]), "{errors:?}");
    }

    #[test]
    fn every_file_that_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key.pem"), "nothing").unwrap();
        std::fs::write(folder.path().join("ca.pem"), "").unwrap();
        let errors = load(&tcp(folder.path(), true)).unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(
            errors.len() == 3 && text.contains("cert.pem") && text.contains("key.pem\" holds no private key"),
            "{text}"
        );
    }
}
