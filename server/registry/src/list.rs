//! Lists that come in pages: tags, repositories.

use http::header::LINK;
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;

use crate::hosts::Endpoint;
use crate::repository::{Call, Need, Repository};
use crate::transport::{body, is_own};
use crate::{Error, Reason, Stage};

/// Most pages that are followed.
const MAX_PAGES: usize = 1000;
/// Most names in all pages together.
const MAX_NAMES: usize = 200_000;
/// Largest page.
pub(crate) const MAX_PAGE: u64 = 4 << 20;

#[derive(Deserialize)]
struct Page {
    #[serde(default, alias = "tags", alias = "repositories")]
    names: Option<Vec<String>>,
}

/// The tags of a repository.
pub(crate) async fn tags(repository: &Repository) -> Result<Vec<String>, Error> {
    all(repository, "tags/list?n=1000", &repository.scope("pull")).await
}

/// The repositories of a registry.
pub(crate) async fn catalog(registry: &Repository) -> Result<Vec<String>, Error> {
    all(registry, "_catalog?n=1000", "registry:catalog:*").await
}

async fn all(repository: &Repository, rest: &str, scope: &str) -> Result<Vec<String>, Error> {
    let mut attempts = repository.attempts(Need::Resolve, Stage::List, None);
    while let Some(endpoint) = attempts.next().await {
        match pages(repository, &endpoint, rest, scope, attempts.patience()).await {
            Ok(names) => {
                attempts.worked();
                return Ok(names);
            }
            Err(reason) => attempts.failed(reason),
        }
    }
    Err(attempts.give_up())
}

async fn pages(
    repository: &Repository,
    endpoint: &Endpoint,
    rest: &str,
    scope: &str,
    patience: std::time::Duration,
) -> Result<Vec<String>, Reason> {
    let mut names = Vec::new();
    let mut url = Some(repository.url(endpoint, rest)?);
    for _ in 0..MAX_PAGES {
        let Some(here) = url.take() else { return Ok(names) };
        let call = Call::new(Method::GET, here.clone(), scope.to_owned(), patience).accept(&["application/json"]);
        let response = repository.send(endpoint, call).await?.expect(&[StatusCode::OK]).await?;
        url = next(endpoint, &here, response.headers())?;
        let bytes = body(response, MAX_PAGE, "page of a list", repository.pace()).await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|e| Reason::Invalid(format!("not a list: {e}")))?;
        names.extend(page.names.unwrap_or_default());
        if names.len() > MAX_NAMES {
            return Err(Reason::TooBig { what: "list", limit: MAX_NAMES as u64 });
        }
    }
    Err(Reason::TooBig { what: "number of pages", limit: MAX_PAGES as u64 })
}

/// The page after this one, by `Link: <…>; rel="next"`; it must be at the same host.
pub(crate) fn next(endpoint: &Endpoint, here: &Url, headers: &HeaderMap) -> Result<Option<Url>, Reason> {
    let link = headers.get_all(LINK).iter().filter_map(|h| h.to_str().ok()).find(|link| link.contains("next"));
    let Some(link) = link else { return Ok(None) };
    let target = link.trim_start().strip_prefix('<').and_then(|link| link.split_once('>')).map(|(target, _)| target);
    let next = target.and_then(|target| here.join(target).ok());
    match next {
        Some(next) if is_own(endpoint, &next) && next != *here => Ok(Some(next)),
        _ => Err(Reason::Invalid("the list goes on at an address that is not valid".into())),
    }
}
