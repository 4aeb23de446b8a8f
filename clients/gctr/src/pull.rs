//! `gctr pull`: one progress bar a blob.

use std::collections::HashMap;
use std::process::ExitCode;

use gantry_client::{Client, Progress, Pull};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::args;
use crate::error::Error;

/// Pulls and unpacks.
pub async fn pull(client: &Client, args: &args::Pull, json: bool) -> Result<ExitCode, Error> {
    let pull = Pull {
        reference: args.reference.clone(),
        platform: args.platform.clone(),
        snapshotter: args.snapshotter.clone(),
        hosts_dir: args.hosts_dir.clone(),
        plain_http: args.plain_http,
    };
    let mut bars = Bars::default();
    client
        .pull(&pull, |report| {
            if json {
                print_json(&report);
            } else {
                bars.show(&report);
            }
        })
        .await?;
    if !json {
        println!("pulled {}", args.reference);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(report: &Progress) {
    println!(
        "{}",
        json!({"event": report.event, "name": report.name, "progress": report.progress, "total": report.total})
    );
}

/// The bars on standard error; nothing is drawn where that is no terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    by_name: HashMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, report: &Progress) {
        let all = &self.all;
        let bar = self.by_name.entry(report.name.clone()).or_insert_with(|| all.add(new_bar()));
        bar.set_message(format!("{:<12} {}", report.event, short(&report.name)));
        if report.total > 0 {
            bar.set_length(report.total.unsigned_abs());
            bar.set_position(report.progress.unsigned_abs());
        }
        if matches!(report.event.as_str(), "complete" | "done" | "already exists" | "extracted") {
            bar.abandon();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:60} [{bar:30}] {bytes}/{total_bytes}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn short(name: &str) -> String {
    match name.split_once("@sha256:").or_else(|| name.split_once("-sha256:")) {
        Some((kind, hex)) => format!("{kind} {}", hex.get(..12).unwrap_or(hex)),
        None => name.chars().take(47).collect(),
    }
}
