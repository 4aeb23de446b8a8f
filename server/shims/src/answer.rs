//! What a shim answers to `start`: protobuf, JSON, or just its address.

use std::collections::BTreeMap;

use gantry_ttrpc::pb::containerd::runtime::bootstrap::v1::BootstrapResult;
use prost::Message;
use serde::{Deserialize, Serialize};

/// How to reach a started shim; `bootstrap.json` holds the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Version of the task API: 2 or 3.
    pub version: i32,
    /// Address of its socket.
    pub address: String,
    /// `ttrpc`; a shim may say `grpc`, which is refused.
    pub protocol: String,
    /// What else the shim says of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What our shim says of itself: it has the service `gantry.shim.v1.Extras`.
pub(crate) const OURS: &str = "gantry.shim.v1";
/// What our shim says of its verb `stay`: that it knows it, or that the process which answers is the one that serves.
const STAY: &str = "gantry.shim.stay";
const STAYS: &str = "here";
/// Newest task API we know.
const NEWEST: i32 = 3;

impl Answer {
    /// Understands the output of `start`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(output: &[u8]) -> std::result::Result<Answer, String> {
        let answer = match from_json(output).or_else(|| from_protobuf(output)) {
            Some(answer) => answer,
            None => from_text(output)?,
        };
        answer.usable()
    }

    /// How a task is reached that a client says is to be made in somebody else's shim: `ttrpc+unix://…`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of_address(address: &str, version: u32) -> std::result::Result<Answer, String> {
        let Some((protocol, address)) = address.split_once('+') else {
            return Err("not of the form ttrpc+unix://PATH".into());
        };
        let version = i32::try_from(version).unwrap_or(i32::MAX);
        Answer { version, address: address.into(), protocol: protocol.into(), metadata: BTreeMap::new() }.usable()
    }

    /// The same in one text.
    pub fn to_address(&self) -> String {
        format!("{}+{}", self.protocol, self.address)
    }

    /// Whether the shim is ours: it keeps logs, and a pod's tasks have shims of their own.
    pub fn is_ours(&self) -> bool {
        self.metadata.contains_key(OURS)
    }

    /// Whether the shim can be started without another process.
    pub(crate) fn can_stay(&self) -> bool {
        self.metadata.contains_key(STAY)
    }

    /// Whether the process that answered is the one that serves.
    pub(crate) fn stays(&self) -> bool {
        self.metadata.get(STAY).is_some_and(|text| text == STAYS)
    }

    fn usable(mut self) -> std::result::Result<Answer, String> {
        if self.protocol.is_empty() {
            self.protocol = "ttrpc".into();
        }
        if self.version == 0 {
            self.version = 2;
        }
        if !(2..=NEWEST).contains(&self.version) {
            return Err(format!("task API version {} is not known", self.version));
        }
        if self.protocol != "ttrpc" {
            return Err(format!("protocol {:?} is not offered", self.protocol));
        }
        if self.address.is_empty() {
            return Err("no address".into());
        }
        Ok(self)
    }
}

fn from_json(output: &[u8]) -> Option<Answer> {
    let text = output.trim_ascii();
    text.starts_with(b"{").then(|| serde_json::from_slice(text).ok()).flatten()
}

/// Text may decode as protobuf by chance, but not with a known version and protocol in it.
fn from_protobuf(output: &[u8]) -> Option<Answer> {
    let result = BootstrapResult::decode(output).ok()?;
    let known = result.version > 0 && !result.address.is_empty();
    let BootstrapResult { version, address, protocol, metadata, .. } = result;
    known.then_some(Answer { version, address, protocol, metadata })
}

fn from_text(output: &[u8]) -> std::result::Result<Answer, String> {
    let text = std::str::from_utf8(output.trim_ascii()).map_err(|_| "neither protobuf, JSON nor text".to_owned())?;
    if text.is_empty() {
        return Err("nothing was printed".into());
    }
    if text.chars().any(|c| c.is_control() && c != '\0') || text.len() > 256 {
        let shown: String = text.chars().take(200).collect();
        return Err(format!("not an address: {shown:?}"));
    }
    Ok(Answer { version: 2, address: text.into(), protocol: "ttrpc".into(), metadata: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(version: i32, address: &str) -> Answer {
        Answer { version, address: address.into(), protocol: "ttrpc".into(), metadata: BTreeMap::new() }
    }

    #[test]
    fn all_three_forms_are_understood() {
        let json = br#"{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}"#;
        assert_eq!(Answer::parse(json).unwrap(), answer(3, "unix:///run/s"));
        let proto = BootstrapResult {
            version: 3,
            address: "unix:///run/s".into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        assert_eq!(Answer::parse(&proto.encode_to_vec()).unwrap(), answer(3, "unix:///run/s"));
        assert_eq!(Answer::parse(b"unix:///run/s\n").unwrap(), answer(2, "unix:///run/s"));
    }

    #[test]
    fn answers_that_cannot_be_used_are_refused_with_a_reason() {
        for (text, reason) in [
            (&b""[..], "nothing"),
            (br#"{"version":4,"address":"unix:///run/s","protocol":"ttrpc"}"#, "version 4"),
            (br#"{"version":3,"address":"unix:///run/s","protocol":"grpc"}"#, "grpc"),
            (b"line\nand another", "not an address"),
        ] {
            let error = Answer::parse(text).unwrap_err();
            assert!(error.contains(reason), "{error:?} should name {reason:?}");
        }
    }
}
