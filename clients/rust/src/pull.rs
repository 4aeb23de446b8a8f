//! Pulling an image through the transfer service, with its progress streamed.

use futures::future::Either;
use gantry_api::convert;
use gantry_api::pb::containerd::services::streaming::v1::StreamInit;
use gantry_api::pb::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use gantry_api::pb::containerd::types::transfer as wire;
use gantry_types::Platform;
use prost::Name;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::Asked;
use crate::{Client, Error};

/// One report of a transfer in progress.
pub type Progress = wire::Progress;

/// What to pull and what to make of it.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Full reference, `HOST/PATH:TAG`.
    pub reference: String,
    /// For which platform; the daemon's own when none.
    pub platform: Option<Platform>,
    /// Where to unpack; the daemon's default when empty.
    pub snapshotter: String,
    /// Directory of `hosts.toml` files; the daemon's own when empty.
    pub hosts_dir: String,
    /// Speak plain http where the hosts files say nothing.
    pub plain_http: bool,
}

impl Client {
    /// Pulls and unpacks an image. `progress` is called for each report, in the order the daemon sends them.
    ///
    /// # Errors
    /// What the daemon says: the blob, the registry and the reason.
    pub async fn pull(&self, pull: &Pull, mut progress: impl FnMut(Progress)) -> Result<(), Error> {
        let stream_id = format!("pull-{}-{:?}", std::process::id(), std::time::Instant::now());
        let stream_id: String = stream_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let (keep_open, outgoing) = mpsc::channel(1);
        let init = message(&StreamInit { id: stream_id.clone() });
        keep_open.send(init).await.map_err(|_| Error::malformed("progress stream", "closed before it began"))?;
        let what = || format!("pull {}", pull.reference);
        let mut reports = self.streaming().stream(ReceiverStream::new(outgoing)).await.asked(what)?;
        // The daemon acknowledges the stream before it may be named in a call.
        reports.message().await.map(tonic::Response::new).asked(what)?;

        let mut client = self.transfer();
        let call = client.transfer(TransferRequest {
            source: Some(message(&source(pull))),
            destination: Some(message(&destination(pull))),
            options: Some(TransferOptions { progress_stream: stream_id }),
        });
        tokio::pin!(call);
        loop {
            let next = reports.message();
            tokio::pin!(next);
            match futures::future::select(call.as_mut(), next).await {
                Either::Left((result, _)) => {
                    result.asked(what)?;
                    return Ok(());
                }
                Either::Right((Ok(Some(any)), _)) => {
                    if let Ok(report) = <Progress as prost::Message>::decode(&any.value[..]) {
                        progress(report);
                    }
                }
                Either::Right((_, _)) => {
                    call.await.asked(what)?;
                    return Ok(());
                }
            }
        }
    }
}

fn source(pull: &Pull) -> wire::OciRegistry {
    wire::OciRegistry {
        reference: pull.reference.clone(),
        resolver: Some(wire::RegistryResolver {
            host_dir: pull.hosts_dir.clone(),
            default_scheme: if pull.plain_http { "http".into() } else { String::new() },
            ..Default::default()
        }),
    }
}

fn destination(pull: &Pull) -> wire::ImageStore {
    let platform = convert::platform_to_wire(&pull.platform.clone().unwrap_or_else(Platform::host));
    wire::ImageStore {
        name: pull.reference.clone(),
        platforms: vec![platform.clone()],
        unpacks: vec![wire::UnpackConfiguration { platform: Some(platform), snapshotter: pull.snapshotter.clone() }],
        ..Default::default()
    }
}

/// A message in an `Any`, under its bare full name, as containerd's clients send it.
pub(crate) fn message<M: Name>(message: &M) -> prost_types::Any {
    prost_types::Any { type_url: M::full_name(), value: message.encode_to_vec() }
}
