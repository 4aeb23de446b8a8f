//! One repository, the hosts that serve it, and sending requests to them with whatever leave they ask for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gantry_types::{Digest, Reference};
use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};

use crate::auth::Purpose;
use crate::hosts::{self, Endpoint};
use crate::pace::Pace;
use crate::registry::Shared;
use crate::retry::Attempts;
use crate::transport::{Outgoing, Payload, is_own, refusal};
use crate::{Access, Error, Reason, Registry, Secret, Stage};

/// How often a request is sent again after a 401.
const MAX_CHALLENGES: u32 = 2;

/// What a host must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Pull,
    Resolve,
    Push,
    Referrers,
}

/// A repository as one call sees it.
#[derive(Clone)]
pub(crate) struct Repository {
    pub(crate) shared: Arc<Shared>,
    reference: String,
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
    access: Access,
    endpoints: Vec<Arc<Endpoint>>,
}

/// A request below an endpoint.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    /// Scopes a token must have.
    pub(crate) scopes: BTreeSet<String>,
    pub(crate) patience: Duration,
}

/// An answer of any status but 401 and redirects.
pub(crate) struct Answer {
    pub(crate) response: Response,
    secrets: Vec<Secret>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The response if its status is one of `wanted`, else what the registry says instead.
    pub(crate) async fn expect(self, wanted: &[StatusCode]) -> Result<Response, Reason> {
        if wanted.contains(&self.response.status()) {
            return Ok(self.response);
        }
        Err(refusal(self.response, &self.secrets).await)
    }
}

impl Call {
    pub(crate) fn new(method: Method, url: Url, scope: String, patience: Duration) -> Call {
        let scopes = BTreeSet::from([scope]);
        Call { method, url, headers: HeaderMap::new(), payload: Payload::Empty, scopes, patience }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Call {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn accept(self, media_types: &[&str]) -> Call {
        self.header(ACCEPT, &media_types.join(", "))
    }

    pub(crate) fn payload(mut self, payload: Payload) -> Call {
        self.payload = payload;
        self
    }
}

impl Repository {
    /// The repository of `reference`, with the hosts that the configuration names now.
    pub(crate) fn open(registry: &Registry, reference: &Reference, access: &Access) -> Result<Repository, Error> {
        let mut repository = Repository::build(registry, reference.host(), reference.to_string(), access)?;
        repository.path = reference.path().to_owned();
        repository.tag = reference.tag().map(str::to_owned);
        repository.digest = reference.digest().cloned();
        Ok(repository)
    }

    /// A registry as a whole.
    pub(crate) fn of_host(registry: &Registry, host: &str, access: &Access) -> Result<Repository, Error> {
        Repository::build(registry, host, host.to_owned(), access)
    }

    fn build(registry: &Registry, host: &str, reference: String, access: &Access) -> Result<Repository, Error> {
        let shared = registry.0.clone();
        let dirs = access.hosts_dirs.as_ref().unwrap_or(&shared.config.hosts_dirs);
        let hosts = hosts::load(dirs, host, access.default_scheme)
            .map_err(|e| Error::new(reference.as_str(), host, Stage::Configure, e.into()))?;
        Ok(Repository {
            shared,
            reference,
            registry: host.to_owned(),
            path: String::new(),
            tag: None,
            digest: None,
            access: access.clone(),
            endpoints: hosts.endpoints.into_iter().map(Arc::new).collect(),
        })
    }

    /// The reference's tag.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The reference's digest.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What errors name: the reference, and the blob or manifest where one is moved.
    pub(crate) fn subject(&self, digest: Option<&Digest>) -> String {
        match digest {
            Some(digest) if self.digest.as_ref() != Some(digest) => format!("{} {digest}", self.reference),
            _ => self.reference.clone(),
        }
    }

    /// Attempts at the hosts that can do what is needed. A push goes to one host only, the first that takes it.
    pub(crate) fn attempts(&self, need: Need, stage: Stage, digest: Option<&Digest>) -> Attempts {
        let able = |e: &&Arc<Endpoint>| match need {
            Need::Pull => e.pull,
            Need::Resolve => e.resolve,
            Need::Push => e.push,
            Need::Referrers => e.referrers,
        };
        let most = if need == Need::Push { 1 } else { usize::MAX };
        let endpoints = self.endpoints.iter().filter(able).take(most).cloned().collect();
        Attempts::new(self.shared.clone(), endpoints, self.subject(digest), stage)
    }

    /// An error of this repository that no host is to blame for.
    pub(crate) fn error(&self, stage: Stage, digest: Option<&Digest>, reason: Reason) -> Error {
        Error::new(self.subject(digest), "", stage, reason)
    }

    /// `repository:PATH:ACTIONS`
    pub(crate) fn scope(&self, actions: &str) -> String {
        scope(&self.path, actions)
    }

    /// `ROOT/PATH/REST` at an endpoint, told for which registry where it is a mirror.
    pub(crate) fn url(&self, endpoint: &Endpoint, rest: &str) -> Result<Url, Reason> {
        let path = if self.path.is_empty() { String::new() } else { format!("/{}", self.path) };
        let text = format!("{}{}{path}/{rest}", endpoint.origin(), endpoint.path);
        let mut url = Url::parse(&text).map_err(|_| Reason::Request("the reference makes no valid address"))?;
        if endpoint.mirror {
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        Ok(url)
    }

    /// The pace that bodies of this registry must keep.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.shared.config.min_bytes_per_second, self.shared.config.slow_window)
    }

    /// Sends a request; after a 401 again with the leave that was asked for, a bounded number of times. A stream
    /// cannot be sent again: its 401 is final.
    pub(crate) async fn send(&self, endpoint: &Endpoint, mut call: Call) -> Result<Answer, Reason> {
        let mut challenges = 0;
        let own = is_own(endpoint, &call.url);
        loop {
            let pass = if own { self.pass(endpoint, &call).await? } else { None };
            let mut own_headers = self.own_headers(endpoint);
            own_headers.extend(pass.as_ref().map(|pass| (AUTHORIZATION, pass.header.clone())));
            let (payload, again) = split(&mut call.payload);
            let out = Outgoing {
                method: call.method.clone(),
                url: call.url.clone(),
                headers: call.headers.clone(),
                own_headers,
                payload,
                patience: call.patience,
            };
            let response = self.shared.transport.send(endpoint, out).await?;
            let secrets = pass.as_ref().map(|pass| pass.secrets.clone()).unwrap_or_default();
            let ours = own && is_own(endpoint, response.url());
            if response.status() != StatusCode::UNAUTHORIZED || !ours {
                return Ok(Answer { response, secrets });
            }
            if let Some(pass) = &pass {
                self.shared.auth.rejected(pass);
            }
            let scopes = self.shared.auth.challenged(endpoint, response.headers())?;
            call.scopes.extend(scopes);
            challenges += 1;
            if challenges > MAX_CHALLENGES || !again {
                self.shared.auth.forget(endpoint);
                return Ok(Answer { response, secrets });
            }
        }
    }

    async fn pass(&self, endpoint: &Endpoint, call: &Call) -> Result<Option<crate::auth::Pass>, Reason> {
        let purpose = Purpose {
            transport: &self.shared.transport,
            config: &self.shared.config,
            endpoint,
            access: &self.access,
            reference: &self.reference,
            scopes: &call.scopes,
        };
        let pass = self.shared.auth.pass(&purpose).await;
        if pass.is_err() {
            self.shared.auth.forget(endpoint);
        }
        pass
    }

    fn own_headers(&self, endpoint: &Endpoint) -> HeaderMap {
        let all = endpoint.headers.iter().chain(&self.access.headers);
        let valid = |(name, value): &(String, String)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in all.filter_map(valid) {
            headers.append(name, value);
        }
        headers
    }
}

/// `repository:PATH:ACTIONS`
pub(crate) fn scope(path: &str, actions: &str) -> String {
    format!("repository:{path}:{actions}")
}

/// What to send now, and whether it could be sent again.
fn split(payload: &mut Payload) -> (Payload, bool) {
    match payload {
        Payload::Empty => (Payload::Empty, true),
        Payload::Bytes(bytes) => (Payload::Bytes(bytes.clone()), true),
        Payload::Stream(_) => (std::mem::take(payload), false),
    }
}
