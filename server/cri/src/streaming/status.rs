//! How the end of a command is told: `metav1.Status` as JSON from version 4 of the protocol on, before that a text for
//! failures and nothing for success.

use serde_json::{Value, json};

use super::Failure;

/// Versions of the remote command protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1 = 1,
    V2,
    V3,
    V4,
    V5,
}

/// The bytes for the error stream.
pub(super) fn encode(version: Version, result: &Result<i32, Failure>) -> Vec<u8> {
    match (result, version >= Version::V4) {
        (Ok(0), true) => status(json!({"metadata": {}, "status": "Success"})),
        (Ok(0), false) => Vec::new(),
        (Ok(code), true) => status(json!({
            "metadata": {},
            "status": "Failure",
            "message": exited(*code),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })),
        (Ok(code), false) => exited(*code).into_bytes(),
        (Err(failure), true) => status(json!({
            "metadata": {},
            "status": "Failure",
            "message": failure.message,
            "reason": if failure.code == 404 { "NotFound" } else { "InternalError" },
            "details": {"causes": [{"message": failure.message}]},
            "code": failure.code,
        })),
        (Err(failure), false) => failure.message.clone().into_bytes(),
    }
}

fn status(value: Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn exited(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_from_version_four_on_and_a_sentence_before() {
        let value: Value = serde_json::from_slice(&encode(Version::V4, &Ok(7))).unwrap();
        assert_eq!(value["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert!(encode(Version::V3, &Ok(7)).ends_with(b"exit status 7"));
        assert!(encode(Version::V1, &Ok(0)).is_empty());
        let value: Value = serde_json::from_slice(&encode(Version::V5, &Ok(0))).unwrap();
        assert_eq!(value["status"], "Success");
        let value: Value = serde_json::from_slice(&encode(Version::V5, &Err(Failure::not_found("no")))).unwrap();
        assert_eq!((&value["code"], &value["reason"]), (&json!(404), &json!("NotFound")));
    }
}
