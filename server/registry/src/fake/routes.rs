//! The distribution API, as the fake answers it when it behaves.

use bytes::Bytes;
use gantry_types::{Digest, media_type};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::fault::{instead, spoil};
use super::reply::{Body, empty, error, full, set};
use super::{Fault, State, lock};

/// A request in parts. A repository has slashes of its own: the word after it tells what is asked for.
struct Ask<'r> {
    method: &'r Method,
    path: &'r str,
    headers: &'r HeaderMap,
    query: Vec<(String, String)>,
    repository: String,
    what: &'r str,
    name: &'r str,
}

impl Ask<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn scope(&self) -> String {
        match (self.what, self.method) {
            ("_catalog", _) => "registry:catalog:*".into(),
            (_, &Method::GET | &Method::HEAD) if self.name.strip_prefix("uploads/").is_none() => {
                format!("repository:{}:pull", self.repository)
            }
            _ => format!("repository:{}:pull,push", self.repository),
        }
    }
}

/// Answers a request, by the scripted faults first.
pub(super) async fn answer(request: Request<Incoming>, state: &State) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let ask = parse(&head.method, path, head.uri.query().unwrap_or(""), &head.headers);
    let whole = head.uri.path_and_query().map_or(path, |p| p.as_str());
    let fault = lock(&state.rules).iter_mut().find_map(|rule| rule.strike(head.method.as_str(), whole));
    let scope = ask.scope();
    if let Some(fault) = &fault {
        // Silence hears no more than the request's head; other answers wait for its end.
        let challenge = state.gate.challenge(&state.url(), &scope);
        if let Some(response) = instead(fault, whole, &challenge).await {
            return response;
        }
    }
    let body = match receive(body, &ask, state, fault.as_ref()).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let response = admitted(&ask, &scope, body, state);
    match fault {
        Some(fault) if !matches!(fault, Fault::Slow(_)) => bad(fault, response).await,
        _ => response,
    }
}

async fn bad(fault: Fault, response: Response<Body>) -> Response<Body> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    spoil(fault, Response::from_parts(head, ()), bytes)
}

/// The body of a request. An upload that breaks, or is scripted to, keeps what came until then.
async fn receive(
    mut body: Incoming,
    ask: &Ask<'_>,
    state: &State,
    fault: Option<&Fault>,
) -> Result<Bytes, Response<Body>> {
    let limit = match fault {
        Some(Fault::CutAt(at)) if ask.method != Method::GET => *at,
        _ => usize::MAX,
    };
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(keep(ask, state, bytes)) };
        bytes.extend(frame.into_data().unwrap_or_default());
        if bytes.len() >= limit {
            bytes.truncate(limit);
            return Err(keep(ask, state, bytes));
        }
    }
    Ok(bytes.into())
}

fn keep(ask: &Ask<'_>, state: &State, bytes: Vec<u8>) -> Response<Body> {
    if let Some(id) = ask.name.strip_prefix("uploads/")
        && let Some(held) = lock(&state.store).upload(id)
    {
        held.extend_from_slice(&bytes);
    }
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the upload broke");
    set(&mut response, "connection", "close");
    response
}

fn parse<'r>(method: &'r Method, path: &'r str, query: &str, headers: &'r HeaderMap) -> Ask<'r> {
    let query = parameters(query);
    let rest = path.strip_prefix("/v2/").unwrap_or(path.trim_start_matches('/'));
    let marks = ["manifests", "blobs", "tags", "referrers"];
    let found = marks.iter().find_map(|mark| {
        let (repository, name) = rest.rsplit_once(&format!("/{mark}/")[..])?;
        Some((repository.to_owned(), *mark, name))
    });
    let (repository, what, name) = found.unwrap_or((String::new(), rest, ""));
    Ask { method, path, headers, query, repository, what, name }
}

/// The parameters of a query or form.
fn parameters(text: &str) -> Vec<(String, String)> {
    let url = reqwest::Url::parse(&format!("http://x/?{text}"));
    url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default()
}

fn admitted(ask: &Ask<'_>, scope: &str, body: Bytes, state: &State) -> Response<Body> {
    let header = ask.headers.get("authorization").and_then(|h| h.to_str().ok());
    if ask.path == "/token" {
        let form = parameters(&String::from_utf8_lossy(&body));
        let parameters = if ask.method == Method::POST { &form } else { &ask.query };
        return state.gate.token(ask.method == Method::POST, header, parameters);
    }
    if !state.gate.admits(header, scope) {
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        set(&mut response, "www-authenticate", &state.gate.challenge(&state.url(), scope));
        return response;
    }
    route(ask, body, state)
}

fn route(ask: &Ask<'_>, body: Bytes, state: &State) -> Response<Body> {
    match (ask.what, ask.method.as_str(), ask.name) {
        ("", "GET" | "HEAD", _) => full(StatusCode::OK, "application/json", "{}".into()),
        ("_catalog", "GET", _) => list(ask, state, "repositories", Some(lock(&state.store).names())),
        ("tags", "GET", "list") => list(ask, state, "tags", lock(&state.store).tags(&ask.repository)),
        ("manifests", "HEAD", _) if !state.options.head => empty(StatusCode::METHOD_NOT_ALLOWED),
        ("manifests", "GET" | "HEAD", name) => manifest(ask, name, state),
        ("manifests", "PUT", name) => put_manifest(ask, name, body, state),
        ("referrers", "GET", name) if state.options.referrers => referrers(ask, name, state),
        ("blobs", "POST", "uploads/") => begin_upload(ask, state),
        ("blobs", method, name) if name.starts_with("uploads/") => {
            upload(ask, method, &name["uploads/".len()..], body, state)
        }
        ("blobs", "GET" | "HEAD", name) => blob(ask, name, state),
        _ => error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"),
    }
}

fn manifest(ask: &Ask<'_>, name: &str, state: &State) -> Response<Body> {
    let Some((media_type, bytes)) = lock(&state.store).manifest(&ask.repository, name) else {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    let digest = Digest::of(&bytes);
    let mut response = full(StatusCode::OK, &media_type, bytes);
    set(&mut response, "docker-content-digest", digest.as_str());
    response
}

fn put_manifest(ask: &Ask<'_>, name: &str, body: Bytes, state: &State) -> Response<Body> {
    let media_type = ask.headers.get("content-type").and_then(|h| h.to_str().ok()).unwrap_or_default();
    let by_digest: Option<Digest> = name.parse().ok();
    if by_digest.as_ref().is_some_and(|digest| *digest != Digest::of(&body)) {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the manifest has another digest");
    }
    let tag = if by_digest.is_some() { None } else { Some(name) };
    let digest = lock(&state.store).put_manifest(&ask.repository, tag, media_type, body);
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, "docker-content-digest", digest.as_str());
    response
}

fn blob(ask: &Ask<'_>, name: &str, state: &State) -> Response<Body> {
    let found = name.parse().ok().and_then(|digest| lock(&state.store).blob(&ask.repository, &digest));
    let Some(bytes) = found else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let range = ask.headers.get("range").and_then(|h| h.to_str().ok()).filter(|_| state.options.ranges);
    let Some((first, last)) = range.and_then(|text| part(text, bytes.len())) else {
        return full(StatusCode::OK, "application/octet-stream", bytes);
    };
    let size = bytes.len();
    let mut response = full(StatusCode::PARTIAL_CONTENT, "application/octet-stream", bytes.slice(first..=last));
    set(&mut response, "content-range", &format!("bytes {first}-{last}/{size}"));
    response
}

/// First and last byte of `bytes=FIRST-[LAST]`.
fn part(text: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().unwrap_or(size.saturating_sub(1)).min(size.checked_sub(1)?));
    if first <= last { Some((first, last)) } else { None }
}

fn list(ask: &Ask<'_>, state: &State, key: &str, names: Option<Vec<String>>) -> Response<Body> {
    let Some(names) = names else { return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository unknown") };
    let after = ask.parameter("last").unwrap_or("");
    let mut rest = names.into_iter().filter(|name| name.as_str() > after);
    let page: Vec<String> = rest.by_ref().take(state.options.page.max(1)).collect();
    let json = serde_json::json!({ "name": ask.repository, key: page });
    let mut response = full(StatusCode::OK, "application/json", json.to_string().into());
    if let (Some(last), true) = (page.last(), rest.next().is_some()) {
        set(&mut response, "link", &format!("<{}?last={last}>; rel=\"next\"", ask.path));
    }
    response
}

fn referrers(ask: &Ask<'_>, subject: &str, state: &State) -> Response<Body> {
    let Ok(subject) = subject.parse() else {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "not a digest");
    };
    let found = lock(&state.store).referrers(&ask.repository, &subject);
    let json = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": found });
    full(StatusCode::OK, media_type::OCI_INDEX, json.to_string().into())
}

fn begin_upload(ask: &Ask<'_>, state: &State) -> Response<Body> {
    let mut store = lock(&state.store);
    let digest = ask.parameter("mount").and_then(|digest| digest.parse::<Digest>().ok());
    if let (Some(digest), Some(from)) = (digest, ask.parameter("from"))
        && store.mount(&ask.repository, &digest, from)
    {
        return empty(StatusCode::CREATED);
    }
    let id = store.begin_upload();
    at(ask, &id, 0, StatusCode::ACCEPTED)
}

fn upload(ask: &Ask<'_>, method: &str, id: &str, body: Bytes, state: &State) -> Response<Body> {
    let mut store = lock(&state.store);
    let Some(held) = store.upload(id) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "upload unknown");
    };
    if method == "GET" {
        return at(ask, id, held.len(), StatusCode::NO_CONTENT);
    }
    let range = ask.headers.get("content-range").and_then(|h| h.to_str().ok());
    let start = range.and_then(|r| r.split_once('-')).and_then(|(first, _)| first.parse::<usize>().ok());
    if start.is_some_and(|start| start != held.len()) {
        return at(ask, id, held.len(), StatusCode::RANGE_NOT_SATISFIABLE);
    }
    held.extend_from_slice(&body);
    let reached = held.len();
    if method == "PATCH" {
        return at(ask, id, reached, StatusCode::ACCEPTED);
    }
    let bytes = Bytes::from(store.end_upload(id).unwrap_or_default());
    let digest = Digest::of(&bytes);
    if ask.parameter("digest") != Some(digest.as_str()) {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the blob has another digest");
    }
    store.put_blob(&ask.repository, digest, bytes);
    empty(StatusCode::CREATED)
}

/// Where an upload is, and how far.
fn at(ask: &Ask<'_>, id: &str, reached: usize, status: StatusCode) -> Response<Body> {
    let mut response = empty(status);
    set(&mut response, "location", &format!("/v2/{}/blobs/uploads/{id}", ask.repository));
    set(&mut response, "range", &format!("0-{}", reached.saturating_sub(1)));
    response
}
