//! What a starting shim reads from stdin: bootstrap parameters, or for older ones its bare options.

use std::path::Path;

use gantry_ttrpc::pb::containerd::runtime::bootstrap::v1::{BootstrapParams, Extension};
use gantry_types::Any;
use prost::Message;

use crate::Config;

/// Values of `LogLevel` in bootstrap.proto.
const LEVEL_INFO: i32 = 0;
const LEVEL_DEBUG: i32 = -4;

/// Longest directory of sockets: name and separator must fit into the kernel's 108 bytes.
const MAX_SOCKET_DIR: usize = 42;

/// The form of a shim's stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `BootstrapParams`.
    Bootstrap,
    /// The runtime's options as `Any`; nothing at all without options.
    Options,
}

impl Form {
    /// The form that a binary's name calls for.
    pub(crate) fn of(binary: &Path) -> Form {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let old = name.contains("shim-runc-v1") || name.contains("shim-runhcs-v1");
        if old { Form::Options } else { Form::Bootstrap }
    }

    /// Whether what a failed `start` printed shows that the shim took the parameters for its options.
    pub(crate) fn was_misread(output: &str) -> bool {
        ["type with url", "UnexpectedEof", "WireError", "cannot parse invalid wire-format", "unmarshal", "proto:"]
            .iter()
            .any(|sign| output.contains(sign))
    }
}

/// The bytes for stdin of `start`.
pub(crate) fn stdin_of(form: Form, config: &Config, namespace: &str, id: &str, options: Option<&Any>) -> Vec<u8> {
    let options = options.map(|any| prost_types::Any { type_url: any.type_url.clone(), value: any.value.clone() });
    match form {
        Form::Options => options.map(|any| any.encode_to_vec()).unwrap_or_default(),
        Form::Bootstrap => BootstrapParams {
            instance_id: id.into(),
            namespace: namespace.into(),
            log_level: if config.debug { LEVEL_DEBUG } else { LEVEL_INFO },
            containerd_version: config.version.clone(),
            containerd_ttrpc_address: config.ttrpc_address.to_string_lossy().into_owned(),
            containerd_grpc_address: config.address.clone(),
            containerd_binary: config.executable.to_string_lossy().into_owned(),
            extensions: options.map(|any| Extension { value: Some(any) }).into_iter().collect(),
            socket_dir: socket_dir(config),
        }
        .encode_to_vec(),
    }
}

/// Where shims put their sockets: below the state directory where that is short enough, else where they like.
pub(crate) fn socket_dir(config: &Config) -> Option<String> {
    let mut directory = config.state.join("s");
    // The daemon's own socket may have that name.
    if config.address.strip_prefix("unix://").unwrap_or(&config.address) == directory.to_string_lossy() {
        directory.set_extension("d");
    }
    let directory = directory.to_string_lossy().into_owned();
    (directory.len() <= MAX_SOCKET_DIR).then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_the_binary() {
        assert_eq!(Form::of(Path::new("/usr/bin/containerd-shim-runc-v1")), Form::Options);
        assert_eq!(Form::of(Path::new("/usr/bin/containerd-shim-runc-v2")), Form::Bootstrap);
    }

    #[test]
    fn the_old_form_without_options_is_empty() {
        let config = Config::new("/r", "/s", "/bin/true");
        assert!(stdin_of(Form::Options, &config, "ns", "id", None).is_empty());
        let sent = stdin_of(Form::Bootstrap, &config, "ns", "id", Some(&Any::default()));
        let params = BootstrapParams::decode(sent.as_slice()).unwrap();
        assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("id", "ns"));
        assert_eq!((params.extensions.len(), params.socket_dir.as_deref()), (1, Some("/s/s")));
    }

    #[test]
    fn the_sockets_of_shims_lie_beside_the_daemons_own() {
        let mut config = Config::new("/r", "/s", "/bin/true");
        for (address, directory) in [("/s/x", "/s/s"), ("/s/s", "/s/s.d"), ("unix:///s/s", "/s/s.d")] {
            config.address = address.into();
            assert_eq!(socket_dir(&config).as_deref(), Some(directory), "{address}");
        }
    }

    #[test]
    fn known_signs_of_misread_parameters_are_recognised() {
        assert!(Form::was_misread("containerd-shim: type with url ID: not found"));
        assert!(Form::was_misread("Protobuf(Error(WireError(UnexpectedEof)))"));
        assert!(!Form::was_misread("runc: no such file or directory"));
    }
}
