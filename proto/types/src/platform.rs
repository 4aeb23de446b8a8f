//! Platforms (OCI image-spec, image-index.md) and which of several suits this machine best.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, normalised on parsing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`
    pub os: String,
    /// Version of the operating system, where it matters.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Features of the operating system that are needed.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// `v8`, `v7`, …; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Platform {
        Platform { os: "linux".into(), architecture: std::env::consts::ARCH.into(), ..Platform::default() }.normalised()
    }

    /// The same with aliases replaced: `x86_64` → `amd64`, `aarch64` → `arm64`, default variants dropped.
    pub fn normalised(mut self) -> Platform {
        self.os = self.os.to_lowercase();
        if self.os == "macos" {
            self.os = "darwin".into();
        }
        let architecture = self.architecture.to_lowercase();
        let variant = self.variant.to_lowercase();
        let (architecture, variant): (&str, &str) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", "" | "8" | "v8" | "8.0" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            ("powerpc64le", v) => ("ppc64le", v),
            (a, v) => (a, v),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// How well content for `other` runs here: lower is better, none not at all. An exact match is 0; an older
    /// variant of the same architecture, or the 32-bit sibling, costs more.
    pub fn preference(&self, other: &Platform) -> Option<u32> {
        let (host, other) = (self.clone().normalised(), other.clone().normalised());
        if host.os != other.os {
            return None;
        }
        let level =
            |p: &Platform| p.variant.trim_start_matches('v').split('.').next().and_then(|n| n.parse::<u32>().ok());
        match (host.architecture.as_str(), other.architecture.as_str()) {
            (a, b) if a == b => {
                let default = match a {
                    "amd64" => 1,
                    "arm64" => 8,
                    "arm" => 7,
                    _ => 0,
                };
                let (mine, theirs) = (level(&host).unwrap_or(default), level(&other).unwrap_or(default));
                mine.checked_sub(theirs)
            }
            ("amd64", "386") => Some(100),
            ("arm64", "arm") => Some(100 + 8u32.saturating_sub(level(&other).unwrap_or(7))),
            _ => None,
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    /// Parses `OS/ARCH[/VARIANT]`, or one word that is a known operating system or else an architecture.
    fn from_str(text: &str) -> Result<Platform, InvalidPlatform> {
        let invalid = || InvalidPlatform { text: text.chars().take(80).collect() };
        let parts: Vec<&str> = text.split('/').collect();
        let word =
            |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if text == "local" || text == "default" {
            return Ok(Platform::host());
        }
        if !parts.iter().all(word) {
            return Err(invalid());
        }
        let host = Platform::host();
        let (os, architecture, variant) = match parts.as_slice() {
            [os @ ("linux" | "windows" | "darwin" | "macos" | "freebsd")] => (*os, host.architecture.as_str(), ""),
            [architecture] => ("linux", *architecture, ""),
            [os, architecture] => (*os, *architecture, ""),
            [os, architecture, variant] => (*os, *architecture, *variant),
            _ => return Err(invalid()),
        };
        let platform = Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Platform::default()
        };
        Ok(platform.normalised())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// Not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {text:?}: expected OS/ARCH[/VARIANT], for example linux/amd64")]
pub struct InvalidPlatform {
    text: String,
}

impl crate::HasKind for InvalidPlatform {
    fn kind(&self) -> crate::ErrorKind {
        crate::ErrorKind::InvalidArgument
    }
}
