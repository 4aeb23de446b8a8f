//! Programs for encrypted layers that are known without a file: containerd's, with its places for keys.

use std::collections::BTreeMap;

use gantry_engine::StreamProcessor;
use gantry_types::media_type;

const KEYS: &str = "/etc/containerd/ocicrypt/keys";
const KEY_PROVIDERS: &str = "OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf";

pub(super) fn default() -> BTreeMap<String, StreamProcessor> {
    let decoder = |returns: &str| StreamProcessor {
        accepts: vec![format!("{returns}+encrypted")],
        returns: returns.to_owned(),
        path: "ctd-decoder".into(),
        args: vec!["--decryption-keys-path".to_owned(), KEYS.to_owned()],
        env: vec![KEY_PROVIDERS.to_owned()],
    };
    [("tar", media_type::OCI_LAYER), ("tar.gzip", media_type::OCI_LAYER_GZIP)]
        .map(|(name, returns)| (format!("io.containerd.ocicrypt.decoder.v1.{name}"), decoder(returns)))
        .into()
}
