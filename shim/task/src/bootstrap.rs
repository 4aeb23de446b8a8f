//! What a daemon says to a starting shim on stdin, and the answer in the same form.

use std::path::{Path, PathBuf};

use gantry_ttrpc::pb::containerd::runc::v1 as runc;
use gantry_ttrpc::pb::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};
use gantry_types::Digest;
use prost::Message;
use prost_types::Any;

use crate::Error;
use crate::args::Args;

/// Version of the task service we announce.
const VERSION: i32 = 3;
/// Where sockets go unless the daemon says otherwise.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Longest socket directory, so that the path fits into the kernel's 108 bytes with a digest behind it.
const MAX_SOCKET_DIR: usize = 42;
/// Says in the answer that this shim has the service `gantry.shim.v1.Extras`, and that a pod's tasks have shims of their
/// own.
const EXTRAS: &str = "gantry.shim.v1";
/// Says in the answer that this shim knows the verb `stay`; to that, that the process which answers is the one that serves.
const STAY: &str = "gantry.shim.stay";
/// The annotation by which containers ask to share a shim.
pub(crate) const GROUP: &str = "io.containerd.runc.v2.group";

/// Which form the daemon speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The bootstrap messages of containerd 2.3 and later.
    Message,
    /// A bare `Any` of options, or nothing; the answer is JSON.
    Json,
}

/// What the daemon said.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// The form to answer in.
    pub form: Form,
    /// The socket for events; empty when only the environment names it.
    pub ttrpc_address: String,
    /// Directory of shim sockets.
    pub socket_dir: PathBuf,
    /// Options for the runtime.
    pub options: Vec<Any>,
}

impl Bootstrap {
    /// Reads stdin's bytes. They are the newer message only if it names this very container.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] when they are neither form, [`Error::Invalid`] for a socket directory that is too long.
    pub fn read(stdin: &[u8], args: &Args) -> Result<Bootstrap, Error> {
        if let Ok(params) = BootstrapParams::decode(stdin)
            && params.instance_id == args.id
            && params.namespace == args.namespace
        {
            return Bootstrap::of_params(params);
        }
        let options = match stdin {
            [] => Vec::new(),
            bytes => vec![Any::decode(bytes).map_err(|error| Error::Bootstrap(error.to_string()))?],
        };
        Ok(Bootstrap { form: Form::Json, ttrpc_address: String::new(), socket_dir: SOCKET_DIR.into(), options })
    }

    fn of_params(params: BootstrapParams) -> Result<Bootstrap, Error> {
        let socket_dir = params.socket_dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| SOCKET_DIR.to_owned());
        if socket_dir.len() > MAX_SOCKET_DIR || !socket_dir.starts_with('/') {
            let reason = "the socket directory must be absolute and at most 42 bytes";
            return Err(Error::Invalid { what: "socket_dir", value: socket_dir, reason });
        }
        Ok(Bootstrap {
            form: Form::Message,
            ttrpc_address: params.containerd_ttrpc_address,
            socket_dir: socket_dir.into(),
            options: params.extensions.into_iter().filter_map(|extension| extension.value).collect(),
        })
    }

    /// The answer: where to reach the shim, and how. `stays`: by this very process.
    pub fn answer(&self, socket: &Path, stays: bool) -> Vec<u8> {
        let address = format!("unix://{}", socket.display());
        match self.form {
            Form::Message => {
                let protocol = "ttrpc".to_owned();
                let stay = if stays { "here" } else { "known" };
                let metadata = [(EXTRAS, "1"), (STAY, stay)].map(|(key, value)| (key.to_owned(), value.to_owned()));
                let metadata = metadata.into();
                BootstrapResult { version: VERSION, address, protocol, metadata, ..BootstrapResult::default() }
                    .encode_to_vec()
            }
            Form::Json => serde_json::json!({"version": VERSION, "address": address, "protocol": "ttrpc"})
                .to_string()
                .into_bytes(),
        }
    }

    /// The socket of a group's shim.
    pub fn socket(&self, args: &Args, group: &str) -> PathBuf {
        let name = format!("{}/{}/{group}", args.address, args.namespace);
        self.socket_dir.join(Digest::of(name.as_bytes()).hex())
    }

    /// runc's options, where the daemon sent them.
    pub fn runc_options(&self) -> Option<runc::Options> {
        self.options.iter().find_map(runc_options)
    }
}

/// runc's options inside an `Any`.
pub fn runc_options(any: &Any) -> Option<runc::Options> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    (name == "containerd.runc.v1.Options").then(|| runc::Options::decode(any.value.as_slice()).ok()).flatten()
}

/// Which containers share a shim: those that ask for it by annotation, otherwise each is alone.
pub fn group<'a>(annotations: impl IntoIterator<Item = (&'a String, &'a String)>, id: &str) -> String {
    let asked = annotations.into_iter().find(|(key, value)| *key == GROUP && !value.is_empty());
    asked.map_or_else(|| id.to_owned(), |(_, group)| group.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_ttrpc::pb::containerd::runtime::bootstrap::v1::Extension;

    fn args() -> Args {
        Args { id: "c1".into(), namespace: "default".into(), address: "/run/g.sock".into(), ..Args::default() }
    }

    fn options() -> Any {
        let options = runc::Options { binary_name: "runc".into(), ..runc::Options::default() };
        Any { type_url: "containerd.runc.v1.Options".into(), value: options.encode_to_vec() }
    }

    #[test]
    fn the_newer_message_is_answered_by_its_result() {
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/g.sock.ttrpc".into(),
            extensions: vec![Extension { value: Some(options()) }],
            socket_dir: Some("/run/x".into()),
            ..BootstrapParams::default()
        };
        let bootstrap = Bootstrap::read(&params.encode_to_vec(), &args()).unwrap();
        assert_eq!((bootstrap.form, bootstrap.ttrpc_address.as_str()), (Form::Message, "/run/g.sock.ttrpc"));
        assert_eq!(bootstrap.runc_options().unwrap().binary_name, "runc");
        let socket = bootstrap.socket(&args(), "c1");
        assert!(socket.starts_with("/run/x") && socket.as_os_str().len() < 108);
        let answer = BootstrapResult::decode(bootstrap.answer(&socket, false).as_slice()).unwrap();
        assert_eq!((answer.version, answer.address), (3, format!("unix://{}", socket.display())));
    }

    #[test]
    fn bare_options_and_an_empty_stdin_are_answered_by_json() {
        for (stdin, count) in [(options().encode_to_vec(), 1), (Vec::new(), 0)] {
            let bootstrap = Bootstrap::read(&stdin, &args()).unwrap();
            assert_eq!((bootstrap.form, bootstrap.options.len()), (Form::Json, count));
            let answer: serde_json::Value = serde_json::from_slice(&bootstrap.answer(Path::new("/s"), false)).unwrap();
            assert_eq!(answer, serde_json::json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"}));
        }
    }

    #[test]
    fn rubbish_and_long_socket_directories_are_refused() {
        assert!(Bootstrap::read(&[0xff; 20], &args()).is_err());
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            socket_dir: Some(format!("/{}", "x".repeat(50))),
            ..BootstrapParams::default()
        };
        assert!(Bootstrap::read(&params.encode_to_vec(), &args()).is_err());
    }

    #[test]
    fn only_the_group_annotation_makes_containers_share() {
        let sandbox = [("io.kubernetes.cri.sandbox-id".to_owned(), "pod".to_owned())];
        assert_eq!(group(sandbox.iter().map(|(k, v)| (k, v)), "c1"), "c1");
        let asked = [(GROUP.to_owned(), "pod".to_owned())];
        assert_eq!(group(asked.iter().map(|(k, v)| (k, v)), "c1"), "pod");
    }
}
