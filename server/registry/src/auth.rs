//! Getting leave: Basic, and Bearer tokens with their cache (distribution's token and OAuth2 specifications).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use gantry_types::Digest;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use serde::Deserialize;

use crate::challenge::{self, Challenge};
use crate::credentials::{Ask, Credential, Credentials, Helper};
use crate::hosts::Endpoint;
use crate::pace::Pace;
use crate::transport::{Outgoing, Payload, Transport, body, is_own, is_private, refusal};
use crate::{Access, Config, Reason, Secret};

/// Largest answer of a token server.
const MAX_TOKEN: u64 = 256 << 10;
/// Lifetime of a token that does not say.
const DEFAULT_LIFE: u64 = 60;
/// Tokens and challenges that are kept.
const MAX_KEPT: usize = 4096;
/// Longest wait for whoever knows credentials.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(60);

/// Challenges and tokens, shared by all calls.
#[derive(Default)]
pub(crate) struct Auth {
    challenges: Mutex<HashMap<String, Challenge>>,
    tokens: Mutex<HashMap<TokenKey, Slot>>,
}

/// A token is for one host, one set of scopes and whoever's credentials it was got with.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    origin: String,
    scopes: BTreeSet<String>,
    owner: Option<Digest>,
}

/// Locked while its token is being fetched, so that many requests fetch one.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

#[derive(Clone)]
struct Token {
    secret: Secret,
    until: Instant,
}

/// An `Authorization` header, and what must not be seen of it.
pub(crate) struct Pass {
    pub(crate) header: HeaderValue,
    pub(crate) secrets: Vec<Secret>,
    key: Option<TokenKey>,
}

/// For which request a pass is wanted.
pub(crate) struct Purpose<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) config: &'a Config,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) access: &'a Access,
    pub(crate) reference: &'a str,
    pub(crate) scopes: &'a BTreeSet<String>,
}

impl Auth {
    /// The pass for a request, by what its host asked for before; none where it asked for nothing yet.
    pub(crate) async fn pass(&self, purpose: &Purpose<'_>) -> Result<Option<Pass>, Reason> {
        let origin = purpose.endpoint.origin();
        let known = lock(&self.challenges).get(&origin).cloned();
        let Some(challenge) = known else { return Ok(None) };
        let credential = credential(purpose).await?;
        match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => pass("Bearer", token, None).map(Some),
            (_, Some(Credential::Header(header))) => pass("", header, None).map(Some),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => basic(&username, password).map(Some),
            (Challenge::Basic, _) => Err(Reason::Refused("the registry asks for user name and password".into())),
            (Challenge::Bearer { realm, service, .. }, credential) => {
                let server =
                    TokenServer { realm: &realm, service: service.as_deref(), credential: credential.as_ref() };
                self.bearer(purpose, &server).await.map(Some)
            }
        }
    }

    /// A host answered 401: remembers what it asks for, and says what a token must allow.
    pub(crate) fn challenged(&self, endpoint: &Endpoint, headers: &HeaderMap) -> Result<Vec<String>, Reason> {
        let texts: Vec<String> =
            headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|h| h.to_str().ok().map(str::to_owned)).collect();
        let chosen = challenge::choose(&texts);
        let mut chosen = chosen.ok_or_else(|| Reason::Refused("status 401 without a challenge we know".into()))?;
        let scopes = match &mut chosen {
            Challenge::Bearer { scopes, .. } => std::mem::take(scopes),
            Challenge::Basic => Vec::new(),
        };
        let mut challenges = lock(&self.challenges);
        if challenges.len() >= MAX_KEPT {
            challenges.clear();
        }
        challenges.insert(endpoint.origin(), chosen);
        Ok(scopes)
    }

    /// What a host asked for could not be given or did not help: the next request begins anew, for the host may have
    /// changed its mind.
    pub(crate) fn forget(&self, endpoint: &Endpoint) {
        lock(&self.challenges).remove(&endpoint.origin());
    }

    /// The token of `pass` was refused: forgets it.
    pub(crate) fn rejected(&self, pass: &Pass) {
        if let Some(key) = &pass.key {
            lock(&self.tokens).remove(key);
        }
    }

    async fn bearer(&self, purpose: &Purpose<'_>, server: &TokenServer<'_>) -> Result<Pass, Reason> {
        let key = TokenKey {
            origin: purpose.endpoint.origin(),
            scopes: purpose.scopes.clone(),
            owner: server.credential.map(owner),
        };
        let slot = self.slot(&key);
        let mut held = slot.lock().await;
        let token = match held.as_ref().filter(|token| token.until > Instant::now()) {
            Some(token) => token.clone(),
            None => held.insert(server.fetch(purpose).await?).clone(),
        };
        let mut pass = pass("Bearer", token.secret, Some(key))?;
        pass.secrets.extend(server.credential.map(|c| c.secret().clone()));
        Ok(pass)
    }

    fn slot(&self, key: &TokenKey) -> Slot {
        let mut tokens = lock(&self.tokens);
        if tokens.len() >= MAX_KEPT {
            tokens.clear();
        }
        tokens.entry(key.clone()).or_default().clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn credential(purpose: &Purpose<'_>) -> Result<Option<Credential>, Reason> {
    let endpoint = purpose.endpoint;
    let helper = endpoint.credential_helper.as_deref().map(|name| {
        let domain = endpoint.credential_domain.as_deref().unwrap_or(&endpoint.host);
        Helper::new(name, domain)
    });
    let ask = Ask { host: &endpoint.host, reference: purpose.reference, challenges: &[] };
    let helper = helper.as_ref().map(|h| h as &dyn Credentials);
    let asked = purpose.access.credential(ask, helper);
    match tokio::time::timeout(CREDENTIALS_TIMEOUT, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Reason::Timeout { waited_for: "credentials", limit: CREDENTIALS_TIMEOUT }),
    }
}

/// Names whoever a credential belongs to, without giving it away.
fn owner(credential: &Credential) -> Digest {
    let (kind, name) = match credential {
        Credential::Basic { username, .. } => ("basic", username.as_str()),
        Credential::Refresh(_) => ("refresh", ""),
        Credential::Bearer(_) => ("bearer", ""),
        Credential::Header(_) => ("header", ""),
    };
    Digest::of(format!("{kind}\0{name}\0{}", credential.secret().reveal()).as_bytes())
}

fn pass(scheme: &str, secret: Secret, key: Option<TokenKey>) -> Result<Pass, Reason> {
    let text = format!("{scheme} {}", secret.reveal());
    let header = HeaderValue::try_from(text.trim_start());
    let mut header = header.map_err(|_| Reason::Refused("the token has characters that cannot be sent".into()))?;
    header.set_sensitive(true);
    Ok(Pass { header, secrets: vec![secret], key })
}

fn basic(username: &str, password: Secret) -> Result<Pass, Reason> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.reveal()));
    let mut pass = pass("Basic", Secret::new(encoded), None)?;
    pass.secrets.push(password);
    Ok(pass)
}

/// Where tokens come from, and with whose credential.
struct TokenServer<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    credential: Option<&'a Credential>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl TokenServer<'_> {
    async fn fetch(&self, purpose: &Purpose<'_>) -> Result<Token, Reason> {
        let asked_at = Instant::now();
        let response = match self.credential {
            Some(Credential::Refresh(token)) => {
                let form = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                self.post(purpose, &form).await?
            }
            Some(Credential::Basic { username, password }) => self.get_or_post(purpose, username, password).await?,
            _ => self.get(purpose, None).await?,
        };
        let secrets: Vec<Secret> = self.credential.iter().map(|c| c.secret().clone()).collect();
        if response.status() != StatusCode::OK {
            return Err(no_token(refusal(response, &secrets).await));
        }
        let pace = Pace::new(0, purpose.config.answer_timeout);
        let bytes = body(response, MAX_TOKEN, "token", pace).await?;
        parse(&bytes, asked_at)
    }

    async fn get_or_post(&self, purpose: &Purpose<'_>, username: &str, password: &Secret) -> Result<Response, Reason> {
        let response = self.get(purpose, Some(basic(username, password.clone())?)).await?;
        if !matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
            return Ok(response);
        }
        let form = [("grant_type", "password"), ("username", username), ("password", password.reveal())];
        self.post(purpose, &form).await
    }

    async fn get(&self, purpose: &Purpose<'_>, pass: Option<Pass>) -> Result<Response, Reason> {
        let mut url = self.url(pass.is_some())?;
        if let Some(service) = self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        for scope in purpose.scopes {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(Credential::Basic { username, .. }) = self.credential {
            url.query_pairs_mut().append_pair("account", username);
        }
        let mut secret_headers = HeaderMap::new();
        secret_headers.extend(pass.map(|pass| (AUTHORIZATION, pass.header)));
        self.send(purpose, Method::GET, url, secret_headers, Payload::Empty).await
    }

    async fn post(&self, purpose: &Purpose<'_>, grant: &[(&str, &str)]) -> Result<Response, Reason> {
        let url = self.url(true)?;
        let mut form = url.clone();
        form.set_query(None);
        let scopes = purpose.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let service = self.service.unwrap_or_default();
        form.query_pairs_mut().extend_pairs(grant).extend_pairs([
            ("client_id", "gantry"),
            ("service", service),
            ("scope", scopes.as_str()),
        ]);
        let text = form.query().unwrap_or_default().to_owned();
        self.send(purpose, Method::POST, url, HeaderMap::new(), Payload::Bytes(text.into())).await
    }

    /// The realm as an URL, refused where it would carry credentials in plain text.
    fn url(&self, with_credentials: bool) -> Result<Url, Reason> {
        let url = Url::parse(self.realm).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url = url.ok_or_else(|| Reason::Invalid("the registry names no valid token server".into()))?;
        if with_credentials && !is_private(&url) {
            return Err(Reason::Refused("the token server would get credentials in plain text".into()));
        }
        Ok(url)
    }

    /// Sends one request to the token server. A redirect to another host than the server's own is refused, since the
    /// body or headers may hold credentials.
    async fn send(
        &self,
        purpose: &Purpose<'_>,
        method: Method,
        url: Url,
        own_headers: HeaderMap,
        payload: Payload,
    ) -> Result<Response, Reason> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if method == Method::POST {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        let patience = purpose.config.answer_timeout;
        let server = server_endpoint(purpose.endpoint, &url);
        let out = Outgoing { method, url, headers, own_headers, payload, patience };
        match out.payload {
            Payload::Empty => purpose.transport.send(&server, out).await,
            _ => purpose.transport.send_at_home(&server, out).await,
        }
    }
}

/// A token server that knows nothing of us says so by any status: it is not the image that is not found.
fn no_token(reason: Reason) -> Reason {
    match reason {
        Reason::Status { status: 401 | 403, .. } => reason,
        ref said if said.is_transient() => reason,
        said => Reason::Refused(format!("the token server answers with {said}")),
    }
}

/// The token server as an endpoint: with the registry's certificates, but its client certificate only where it is the
/// registry itself.
fn server_endpoint(registry: &Endpoint, url: &Url) -> Endpoint {
    let mut endpoint = registry.clone();
    if !is_own(registry, url) {
        endpoint.client.clear();
        endpoint.headers.clear();
        endpoint.scheme = if url.scheme() == "https" { crate::Scheme::Https } else { crate::Scheme::Http };
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        endpoint.host = format!("{}{port}", url.host_str().unwrap_or_default());
    }
    endpoint
}

fn parse(bytes: &[u8], asked_at: Instant) -> Result<Token, Reason> {
    let invalid = |what: &str| Reason::Invalid(format!("token server: {what}"));
    let answer: TokenAnswer = serde_json::from_slice(bytes).map_err(|_| invalid("not the JSON of a token"))?;
    let secret = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
    let secret = secret.ok_or_else(|| invalid("no token in its answer"))?;
    let life = answer.expires_in.filter(|s| *s > 0).unwrap_or(DEFAULT_LIFE).min(24 * 3600);
    Ok(Token { secret, until: asked_at + Duration::from_secs(life).mul_f64(0.9) })
}
