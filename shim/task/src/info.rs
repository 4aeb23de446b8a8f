//! The flags `-v` and `-info`: what this runtime is.

use std::io::Read;
use std::process::{Command, Stdio};

use gantry_ttrpc::pb::containerd::types::{RuntimeInfo, RuntimeVersion};
use prost::Message;
use prost_types::Any;

use crate::Error;
use crate::bootstrap::runc_options;

/// Type under which containerd carries an OCI features document.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Longest message on stdin.
const MAX_STDIN: u64 = 4 << 20;

/// Answers `-info`: an encoded `RuntimeInfo`. The options on stdin are given back as they came.
///
/// # Errors
/// When stdin cannot be read.
pub fn run() -> Result<Vec<u8>, Error> {
    let mut stdin = Vec::new();
    let reading = std::io::stdin().lock().take(MAX_STDIN).read_to_end(&mut stdin);
    reading.map_err(|error| Error::system("read stdin", error))?;
    Ok(describe(&stdin)?.encode_to_vec())
}

/// Answers `-v`.
pub fn version() -> String {
    format!("containerd-shim-gantry-v1:\n  Version: {}\n", env!("CARGO_PKG_VERSION"))
}

fn describe(stdin: &[u8]) -> Result<RuntimeInfo, Error> {
    let options = Any::decode(stdin).ok().filter(|any| !any.type_url.is_empty());
    let program = options.as_ref().and_then(runc_options).map(|options| options.binary_name).unwrap_or_default();
    let features = if program.is_empty() { features() } else { features_of(&program)? };
    Ok(RuntimeInfo {
        name: "io.containerd.gantry.v1".to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() }),
        options,
        features: Some(Any { type_url: FEATURES.to_owned(), value: features }),
        annotations: [("gantry.shim.v1".to_owned(), "1".to_owned())].into(),
    })
}

/// The features of another OCI runtime, by its own word.
fn features_of(program: &str) -> Result<Vec<u8>, Error> {
    let failed = |reason| Error::Program { program: program.to_owned(), verb: "features", reason };
    let output = Command::new(program).arg("features").stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(output.stdout)
}

/// An OCI features document (runtime-spec, features.md).
fn features() -> Vec<u8> {
    let document = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_ttrpc::pb::containerd::runc::v1 as runc;

    #[test]
    fn options_are_given_back_and_features_are_json() {
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1, 2] };
        let info = describe(&options.encode_to_vec()).unwrap();
        assert_eq!(info.options, Some(options));
        let features = info.features.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
        assert_eq!(document["ociVersionMax"], "1.3.0");
        assert_eq!(describe(b"").unwrap().options, None);
    }

    #[test]
    fn another_runtime_that_is_not_there_is_told() {
        let options = runc::Options { binary_name: "/no/such/runc".into(), ..runc::Options::default() };
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value: options.encode_to_vec() };
        assert!(describe(&any.encode_to_vec()).is_err());
    }
}
