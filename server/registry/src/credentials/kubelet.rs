//! What a kubelet credential provider prints: `CredentialProviderResponse` of `credentialprovider.kubelet.k8s.io/v1`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Deserialize;

use super::matching::matches_pattern;
use super::{Ask, Credential, Credentials, CredentialsError};
use crate::Secret;

/// Credentials by patterns of host and path.
#[derive(Clone, Debug)]
pub struct KubeletCredentials {
    entries: Vec<(String, Credential)>,
}

#[derive(Deserialize)]
struct Response {
    kind: String,
    #[serde(default)]
    auth: Option<BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: Secret,
}

impl KubeletCredentials {
    /// Reads the output of a provider.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`] where it is not a `CredentialProviderResponse`.
    pub fn parse(json: &[u8]) -> Result<KubeletCredentials, CredentialsError> {
        let malformed = || CredentialsError::Malformed { what: "not a CredentialProviderResponse".into() };
        let response: Response = serde_json::from_slice(json).map_err(|_| malformed())?;
        if response.kind != "CredentialProviderResponse" {
            return Err(malformed());
        }
        let entry = |(pattern, e): (String, Entry)| Some((pattern, Credential::from_pair(&e.username, e.password)?));
        let mut entries: Vec<_> = response.auth.unwrap_or_default().into_iter().filter_map(entry).collect();
        // The longest, that is the most precise, pattern counts.
        entries.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        Ok(KubeletCredentials { entries })
    }
}

#[async_trait]
impl Credentials for KubeletCredentials {
    async fn get(&self, ask: Ask<'_>) -> Result<Option<Credential>, CredentialsError> {
        let path = ask.reference.split_once('/').map_or("", |(_, path)| path);
        let found = self.entries.iter().find(|(pattern, _)| matches_pattern(pattern, ask.host, path));
        Ok(found.map(|(_, credential)| credential.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_most_precise_pattern_counts() {
        let json = br#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType":"Image","auth":{"*.example.org":{"username":"any","password":"1"},
            "r.example.org/team":{"username":"team","password":"2"}}}"#;
        let credentials = KubeletCredentials::parse(json).unwrap();
        for (reference, expected) in [("r.example.org/team/x:1", "team"), ("r.example.org/x:1", "any")] {
            let ask = Ask { host: "r.example.org", reference, challenges: &[] };
            let Some(Credential::Basic { username, .. }) = credentials.get(ask).await.unwrap() else { panic!() };
            assert_eq!(username, expected);
        }
        let ask = Ask { host: "other.org", reference: "other.org/x", challenges: &[] };
        assert_eq!(credentials.get(ask).await.unwrap(), None);
        assert!(KubeletCredentials::parse(b"{\"kind\":\"Pod\"}").is_err());
    }
}
