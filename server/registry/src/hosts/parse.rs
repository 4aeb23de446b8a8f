//! Reading `hosts.toml`, with the line of what is wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::endpoint::{ClientCertificate, Endpoint};
use super::{Hosts, HostsError};

type Value<'t> = Spanned<DeValue<'t>>;

/// The hosts that `text`, the content of the file `path`, names for `registry`. Where it names no `server`, the
/// registry itself comes last.
pub(super) fn parse(text: &str, path: &Path, registry: &Endpoint) -> Result<Hosts, HostsError> {
    let file = File { text, path };
    let document = DeTable::parse(text).map_err(|e| file.wrong(e.span().map_or(0, |s| s.start), e.message()))?;
    let root = document.get_ref();
    let mut endpoints = Vec::new();
    if let Some(hosts) = root.get("host") {
        endpoints = file.hosts(hosts, registry)?;
    }
    endpoints.push(file.server(root, registry)?);
    Ok(Hosts { endpoints })
}

/// A duration as Go writes it: `3s`, `1m30s`, `200ms`, `1.5h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number * unit(&rest[..letters])?;
        rest = &rest[letters..];
    }
    let sane = !text.trim().is_empty() && seconds <= 1e9;
    if sane { Duration::try_from_secs_f64(seconds).ok() } else { None }
}

fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

struct File<'f> {
    text: &'f str,
    path: &'f Path,
}

impl File<'_> {
    fn wrong(&self, offset: usize, what: impl Into<String>) -> HostsError {
        let line = 1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count();
        HostsError::Invalid { path: self.path.display().to_string(), line, what: what.into() }
    }

    fn expected(&self, value: &Value<'_>, key: &str, what: &str) -> HostsError {
        self.wrong(value.span().start, format!("{key} must be {what}"))
    }

    /// `[host."…"]`, in the order of the file.
    fn hosts(&self, hosts: &Value<'_>, registry: &Endpoint) -> Result<Vec<Endpoint>, HostsError> {
        let table = hosts.get_ref().as_table().ok_or_else(|| self.expected(hosts, "host", "a table"))?;
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let endpoint = |(name, value): (&Spanned<_>, &Value<'_>)| self.host(name, value, registry);
        entries.into_iter().map(endpoint).collect()
    }

    fn host(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Value<'_>,
        registry: &Endpoint,
    ) -> Result<Endpoint, HostsError> {
        let table = value.get_ref().as_table().ok_or_else(|| self.expected(value, "host", "a table"))?;
        let mut endpoint = self.url(name.get_ref(), name.span().start, table)?;
        endpoint.mirror = endpoint.host != registry.host;
        self.settings(table, &mut endpoint, &[])?;
        Ok(endpoint)
    }

    /// The server: named by the file, or the registry itself, with the settings at the top of the file.
    fn server(&self, root: &DeTable<'_>, registry: &Endpoint) -> Result<Endpoint, HostsError> {
        let mut endpoint = match root.get("server") {
            Some(value) => {
                let text = value.get_ref().as_str().ok_or_else(|| self.expected(value, "server", "a text"))?;
                self.url(text, value.span().start, root)?
            }
            None => registry.clone(),
        };
        endpoint.mirror = endpoint.host != registry.host;
        endpoint.upstream = true;
        self.settings(root, &mut endpoint, &["server", "host"])?;
        Ok(endpoint)
    }

    fn url(&self, text: &str, offset: usize, table: &DeTable<'_>) -> Result<Endpoint, HostsError> {
        let over = table.get("override_path").map(|v| self.bool(v, "override_path")).transpose()?.unwrap_or(false);
        Endpoint::of_url(text, over).map_err(|e| self.wrong(offset, e.to_string()))
    }

    fn settings(&self, table: &DeTable<'_>, endpoint: &mut Endpoint, others: &[&str]) -> Result<(), HostsError> {
        for (name, value) in table {
            let key: &str = name.get_ref();
            match key {
                "capabilities" => self.capabilities(value, endpoint)?,
                "ca" => endpoint.ca = self.paths(value, key)?,
                "client" => endpoint.client = self.client(value)?,
                "skip_verify" => endpoint.skip_verify = self.bool(value, key)?,
                "header" => endpoint.headers = self.headers(value)?,
                "dial_timeout" => endpoint.dial_timeout = Some(self.duration(value, key)?),
                "credential_helper" => endpoint.credential_helper = Some(self.word(value, key)?),
                "credential_domain" => endpoint.credential_domain = Some(self.word(value, key)?),
                "override_path" => (),
                key if others.contains(&key) => (),
                key => return Err(self.wrong(name.span().start, format!("unknown key {key:?}"))),
            }
        }
        Ok(())
    }

    fn capabilities(&self, value: &Value<'_>, endpoint: &mut Endpoint) -> Result<(), HostsError> {
        let list = self.texts(value, "capabilities")?;
        if list.is_empty() {
            return Ok(());
        }
        (endpoint.pull, endpoint.resolve, endpoint.push, endpoint.referrers) = (false, false, false, false);
        for (text, offset) in list {
            match text {
                "pull" => endpoint.pull = true,
                "resolve" => endpoint.resolve = true,
                "push" => endpoint.push = true,
                "referrers" => endpoint.referrers = true,
                other => return Err(self.wrong(offset, format!("unknown capability {other:?}"))),
            }
        }
        Ok(())
    }

    fn client(&self, value: &Value<'_>) -> Result<Vec<ClientCertificate>, HostsError> {
        let one = |text: &str| ClientCertificate { certificate: self.file(text), key: None };
        let DeValue::Array(items) = value.get_ref() else {
            return Ok(self.texts(value, "client")?.into_iter().map(|(text, _)| one(text)).collect());
        };
        let mut pairs = Vec::new();
        for item in items.iter() {
            let texts = self.texts(item, "client")?;
            pairs.push(match texts.as_slice() {
                [(certificate, _)] | [(certificate, _), ("", _)] => one(certificate),
                [(certificate, _), (key, _)] => {
                    ClientCertificate { certificate: self.file(certificate), key: Some(self.file(key)) }
                }
                _ => return Err(self.expected(item, "client", "a file, or a pair of certificate and key")),
            });
        }
        Ok(pairs)
    }

    fn headers(&self, value: &Value<'_>) -> Result<Vec<(String, String)>, HostsError> {
        let table = value.get_ref().as_table().ok_or_else(|| self.expected(value, "header", "a table"))?;
        let mut headers = Vec::new();
        for (name, value) in table {
            let key: &str = name.get_ref();
            for (text, offset) in self.texts(value, "header")? {
                let fine = http::HeaderName::try_from(key).is_ok() && http::HeaderValue::try_from(text).is_ok();
                if !fine {
                    return Err(self.wrong(offset, format!("header {key:?} is not one that can be sent")));
                }
                headers.push((key.to_owned(), text.to_owned()));
            }
        }
        Ok(headers)
    }

    fn bool(&self, value: &Value<'_>, key: &str) -> Result<bool, HostsError> {
        value.get_ref().as_bool().ok_or_else(|| self.expected(value, key, "true or false"))
    }

    fn word(&self, value: &Value<'_>, key: &str) -> Result<String, HostsError> {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| self.expected(value, key, "a text"))
    }

    fn duration(&self, value: &Value<'_>, key: &str) -> Result<Duration, HostsError> {
        let parsed = value.get_ref().as_str().and_then(parse_duration);
        parsed.ok_or_else(|| self.expected(value, key, "a duration like \"3s\""))
    }

    fn paths(&self, value: &Value<'_>, key: &str) -> Result<Vec<PathBuf>, HostsError> {
        Ok(self.texts(value, key)?.into_iter().map(|(text, _)| self.file(text)).collect())
    }

    /// A text or a list of texts, each with its place in the file.
    fn texts<'v>(&self, value: &'v Value<'_>, key: &str) -> Result<Vec<(&'v str, usize)>, HostsError> {
        let text = |v: &'v Value<'_>| v.get_ref().as_str().map(|text| (text, v.span().start));
        let list = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(text).collect::<Option<Vec<_>>>(),
            _ => text(value).map(|one| vec![one]),
        };
        list.ok_or_else(|| self.expected(value, key, "a text or a list of texts"))
    }

    /// Paths are relative to the directory of the file.
    fn file(&self, text: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Scheme;

    fn hosts(text: &str) -> Result<Vec<Endpoint>, String> {
        let registry = Endpoint::of_registry("docker.io", None);
        let parsed = parse(text, Path::new("/c/docker.io/hosts.toml"), &registry);
        parsed.map(|hosts| hosts.endpoints).map_err(|e| e.to_string())
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let endpoints = hosts(
            r#"
            server = "https://registry.example:444/base"
            skip_verify = true
            [host."https://z.example"]
            capabilities = ["pull", "resolve"]
            ca = "z.pem"
            dial_timeout = "1m1.5s"
            [host."http://a.example:5000/x"]
            capabilities = ["push"]
            override_path = true
            client = [["c.cert", "c.key"], ["/abs.pem", ""]]
            [host."http://a.example:5000/x".header]
            X-One = "1"
            X-Two = ["2", "3"]
            "#,
        )
        .unwrap();
        let origins: Vec<_> = endpoints.iter().map(|e| format!("{}{}", e.origin(), e.path)).collect();
        assert_eq!(
            origins,
            ["https://z.example/v2", "http://a.example:5000/x", "https://registry.example:444/base/v2"]
        );
        let [z, a, server] = endpoints.as_slice() else { panic!() };
        assert!(z.pull && z.resolve && !z.push && z.mirror && !z.skip_verify);
        assert_eq!(z.ca, [PathBuf::from("/c/docker.io/z.pem")]);
        assert_eq!(z.dial_timeout, Some(Duration::from_millis(61_500)));
        assert!(!a.pull && a.push && a.client.len() == 2 && a.client[1].key.is_none());
        assert_eq!(a.client[0].key, Some(PathBuf::from("/c/docker.io/c.key")));
        assert_eq!(a.headers.len(), 3);
        assert!(server.skip_verify && server.pull && server.push && server.scheme == Scheme::Https);
    }

    #[test]
    fn without_a_server_the_registry_itself_is_asked_last() {
        let endpoints = hosts("[host.'mirror.example']").unwrap();
        assert_eq!(endpoints[1].host, "registry-1.docker.io");
        assert!(endpoints[0].mirror && !endpoints[1].mirror);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\n\nserver = 3", "/c/docker.io/hosts.toml:3: server must be a text"),
            ("[host.'x']\ncapabilities = ['pull',\n 'fly']", "hosts.toml:3: unknown capability \"fly\""),
            ("[host.'x']\nskip_verfy = true", "hosts.toml:2: unknown key \"skip_verfy\""),
            ("[host.'ftp://x']", "hosts.toml:1: \"ftp://x\" is not a registry host"),
            ("dial_timeout = 'soon'", "hosts.toml:1: dial_timeout must be a duration"),
            ("a = [", "hosts.toml:1: "),
            ("\n[host.'x'.header]\n'a b' = 'c'", "hosts.toml:3: header"),
        ] {
            let error = hosts(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
            let _ = hosts(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn whole_milliseconds_are_read_as_they_are(ms in 0u64..10_000_000) {
            prop_assert_eq!(parse_duration(&format!("{ms}ms")), Some(Duration::from_millis(ms)));
            let split = format!("{}m{}s", ms / 60, ms % 60);
            prop_assert_eq!(parse_duration(&split), Some(Duration::from_secs(ms)));
        }
    }
}
