//! What an operator can set.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Settings of the client; every default is the one to use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directories of `HOST[_PORT_]/hosts.toml`, searched in order. Read anew at every call.
    pub hosts_dirs: Vec<PathBuf>,
    /// Longest wait for a connection: name look-up, TCP and TLS together.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer.
    #[serde(with = "duration")]
    pub answer_timeout: Duration,
    /// The same for a mirror, while another host is left to ask for a manifest.
    #[serde(with = "duration")]
    pub mirror_timeout: Duration,
    /// The same for a mirror, while another host is left to ask for a blob.
    #[serde(with = "duration")]
    pub mirror_blob_timeout: Duration,
    /// A body slower than this many bytes a second, seen over [`Config::slow_window`], is given up. 0: never.
    pub min_bytes_per_second: u64,
    /// Over which time the speed of a body is judged.
    #[serde(with = "duration")]
    pub slow_window: Duration,
    /// Failures in a row, without progress between them, after which a transfer is given up.
    pub max_failures: u32,
    /// First pause after a failure; doubles from one to the next, with jitter.
    #[serde(with = "duration")]
    pub backoff: Duration,
    /// Longest `Retry-After` that is waited for; a longer one is an error at once.
    #[serde(with = "duration")]
    pub max_retry_after: Duration,
    /// How long a host that could not be reached is passed over while others are left.
    #[serde(with = "duration")]
    pub breaker_pause: Duration,
    /// Largest manifest or index in bytes; at most 8 MiB counts.
    pub max_manifest_size: u64,
    /// Most entries of an index, and most layers of a manifest.
    pub max_entries: usize,
    /// Most redirects of one request.
    pub max_redirects: u32,
    /// Most bodies in flight at once, over all calls.
    pub max_transfers: usize,
    /// Most bytes a second received, over all calls. 0: no limit.
    pub max_bytes_per_second: u64,
    /// Fetching big blobs in parts.
    pub ranged: Ranged,
    /// Bytes of one part of a chunked upload; 0: the whole blob in one request.
    pub push_chunk: u64,
}

/// Fetching one big blob by several requests at once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ranged {
    /// Blobs larger than this many bytes are fetched in parts.
    pub threshold: u64,
    /// Bytes of one part.
    pub chunk: u64,
    /// Requests in flight for one blob; 1 or less turns it off.
    pub parallel: usize,
    /// Most bytes held in memory of parts that come before their turn, over all calls.
    pub window: u64,
}

impl Default for Ranged {
    fn default() -> Ranged {
        Ranged { threshold: 64 << 20, chunk: 4 << 20, parallel: 3, window: 8 << 20 }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            hosts_dirs: Vec::new(),
            connect_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(30),
            mirror_timeout: Duration::from_secs(3),
            mirror_blob_timeout: Duration::from_secs(10),
            min_bytes_per_second: 10 << 10,
            slow_window: Duration::from_secs(60),
            max_failures: 5,
            backoff: Duration::from_millis(200),
            max_retry_after: Duration::from_secs(60),
            breaker_pause: Duration::from_secs(60),
            max_manifest_size: 4 << 20,
            max_entries: 4096,
            max_redirects: 5,
            max_transfers: 64,
            max_bytes_per_second: 0,
            ranged: Ranged::default(),
            push_chunk: 0,
        }
    }
}

impl Config {
    /// The limit on manifests that holds.
    pub(crate) fn manifest_limit(&self) -> u64 {
        self.max_manifest_size.min(8 << 20)
    }
}

mod duration {
    //! Durations as text: `3s`, `200ms`, `1m30s`.
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::hosts::parse_duration(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration like 3s")))
    }
}
