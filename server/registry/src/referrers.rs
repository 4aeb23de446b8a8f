//! What refers to an object: signatures, bills of materials (distribution-spec, "Listing Referrers").

use gantry_types::{Descriptor, Digest, media_type};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;

use crate::hosts::Endpoint;
use crate::list::next;
use crate::repository::{Call, Need, Repository};
use crate::transport::{body, media_type as type_of};
use crate::{Error, Reason, Stage};

/// Most pages that are followed.
const MAX_PAGES: usize = 100;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// The referrers of `subject`, of one artifact type or all.
pub(crate) async fn list(
    repository: &Repository,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, Error> {
    let mut attempts = repository.attempts(Need::Referrers, Stage::List, Some(subject));
    while let Some(endpoint) = attempts.next().await {
        let request = Request { repository, endpoint: &endpoint, patience: attempts.patience() };
        match request.list(subject, artifact_type).await {
            Ok(mut found) => {
                attempts.worked();
                found.retain(|d| artifact_type.is_none_or(|wanted| d.artifact_type.as_deref() == Some(wanted)));
                return Ok(found);
            }
            Err(reason) => attempts.failed(reason),
        }
    }
    Err(attempts.give_up())
}

struct Request<'a> {
    repository: &'a Repository,
    endpoint: &'a Endpoint,
    patience: std::time::Duration,
}

impl Request<'_> {
    async fn list(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>, Reason> {
        let mut url = self.repository.url(self.endpoint, &format!("referrers/{subject}"))?;
        if let Some(wanted) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", wanted);
        }
        match self.pages(url).await? {
            Some(found) => Ok(found),
            None => self.by_tag(subject).await,
        }
    }

    /// By the API; none where the registry does not have it.
    async fn pages(&self, url: Url) -> Result<Option<Vec<Descriptor>>, Reason> {
        let (mut found, mut url) = (Vec::new(), Some(url));
        for page in 0..MAX_PAGES {
            let Some(here) = url.take() else { return Ok(Some(found)) };
            let Some((headers, index)) = self.get(here.clone(), page == 0).await? else { return Ok(None) };
            found.extend(index.manifests);
            self.limit(&found)?;
            url = next(self.endpoint, &here, &headers)?;
        }
        Err(Reason::TooBig { what: "number of pages", limit: MAX_PAGES as u64 })
    }

    /// By the tag `ALGORITHM-HEX`, where clients keep the list for registries without the API.
    async fn by_tag(&self, subject: &Digest) -> Result<Vec<Descriptor>, Reason> {
        let hex: String = subject.hex().chars().take(64).collect();
        let tag = format!("manifests/{}-{hex}", subject.algorithm().name());
        let found = self.get(self.repository.url(self.endpoint, &tag)?, true).await?;
        let found = found.map(|(_, index)| index.manifests).unwrap_or_default();
        self.limit(&found)?;
        Ok(found)
    }

    async fn get(&self, url: Url, may_lack: bool) -> Result<Option<(HeaderMap, Index)>, Reason> {
        let call = Call::new(Method::GET, url, self.repository.scope("pull"), self.patience);
        let answer = self.repository.send(self.endpoint, call.accept(&[media_type::OCI_INDEX])).await?;
        let lacks = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::BAD_REQUEST];
        if may_lack && lacks.contains(&answer.status()) {
            return Ok(None);
        }
        let response = answer.expect(&[StatusCode::OK]).await?;
        let headers = response.headers().clone();
        if may_lack && !type_of(&headers).is_some_and(media_type::is_index) {
            return Ok(None);
        }
        let limit = self.repository.shared.config.manifest_limit();
        let bytes = body(response, limit, "list of referrers", self.repository.pace()).await?;
        let index = serde_json::from_slice(&bytes).map_err(|e| Reason::Invalid(format!("not an index: {e}")))?;
        Ok(Some((headers, index)))
    }

    fn limit(&self, found: &[Descriptor]) -> Result<(), Reason> {
        let limit = self.repository.shared.config.max_entries;
        if found.len() <= limit {
            Ok(())
        } else {
            Err(Reason::TooBig { what: "list of referrers", limit: limit as u64 })
        }
    }
}
