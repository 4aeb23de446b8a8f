//! `gctr commit`.

use std::time::{Duration, SystemTime};

use gantry_client::types::{Digest, Platform};
use gantry_client::{Client, Commit};

use crate::args;
use crate::error::Error;

/// Gives the digest of the image's manifest.
pub async fn commit(client: &Client, args: &args::Commit) -> Result<Digest, Error> {
    let mut commit = Commit {
        name: args.image.clone(),
        author: args.author.clone(),
        message: args.message.clone(),
        cmd: None,
        entrypoint: None,
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        pause: !args.no_pause,
        time: args.source_date_epoch.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
    };
    for text in &args.change {
        change(&mut commit, text)?;
    }
    Ok(client.commit(&args.container, &commit).await?)
}

fn change(commit: &mut Commit, text: &str) -> Result<(), Error> {
    let wrong = || Error::Usage(format!("{text:?} is no change; try 'CMD [\"/bin/sh\"]' or 'ENTRYPOINT [\"/init\"]'"));
    let (what, list) = text.trim().split_once(char::is_whitespace).ok_or_else(wrong)?;
    let list: Vec<String> = serde_json::from_str(list).map_err(|_| wrong())?;
    match what.to_ascii_uppercase().as_str() {
        "CMD" => commit.cmd = Some(list),
        "ENTRYPOINT" => commit.entrypoint = Some(list),
        _ => return Err(wrong()),
    }
    Ok(())
}
