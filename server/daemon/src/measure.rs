//! What is counted of the daemon, and its text for Prometheus. The names of calls' counters are those that containerd's
//! own gRPC metrics have, so that dashboards find them.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_engine::Engine;

use crate::limits::Calls;

/// Upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// gRPC's status codes by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The code of methods that nobody serves; they are counted together, or a client could make the table grow.
const UNIMPLEMENTED: usize = 12;

/// What is counted.
#[derive(Default)]
pub(crate) struct Measurements {
    /// Calls that run.
    pub(crate) running: Calls,
    refused: AtomicU64,
    methods: Mutex<BTreeMap<String, Method>>,
}

/// What is counted of a method.
#[derive(Clone, Default)]
struct Method {
    codes: [u64; CODES.len()],
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
}

impl Measurements {
    /// A call was refused for want of room.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has ended.
    pub(crate) fn ended(&self, method: &str, code: i32, took: Duration) {
        let code = usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(2);
        let method = if code == UNIMPLEMENTED { "/unknown/unknown" } else { method };
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if !methods.contains_key(method) {
            methods.insert(method.to_owned(), Method::default());
        }
        let Some(counts) = methods.get_mut(method) else { return };
        let seconds = took.as_secs_f64();
        counts.codes[code] += 1;
        counts.seconds += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            counts.buckets[bucket] += 1;
        }
    }

    /// All of it as text; `histogram`: also how long calls took.
    pub(crate) fn text(&self, engine: &Engine, histogram: bool) -> String {
        let mut text = Text::default();
        text.head("gantry_build_info", "gauge", "Which release this is.");
        text.line("gantry_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        process(&mut text);
        engine_state(&mut text, engine);
        self.calls(&mut text);
        self.handled(&mut text);
        if histogram {
            self.histogram(&mut text);
        }
        text.0
    }

    fn calls(&self, text: &mut Text) {
        text.head("gantry_calls_running", "gauge", "Calls that run now; long ones wait for somebody else.");
        text.line("gantry_calls_running", &[("kind", "short")], self.running.short.now());
        text.line("gantry_calls_running", &[("kind", "long")], self.running.long.now());
        text.head("gantry_calls_refused_total", "counter", "Calls refused because too many ran.");
        text.line("gantry_calls_refused_total", &[], self.refused.load(Ordering::Relaxed));
    }

    fn handled(&self, text: &mut Text) {
        text.head("grpc_server_handled_total", "counter", "Calls that have ended, by their status.");
        for (path, method) in self.methods.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (service, name) = split(path);
            for (code, count) in CODES.iter().zip(method.codes).filter(|(_, count)| *count > 0) {
                let labels = [("grpc_code", *code), ("grpc_method", name), ("grpc_service", service)];
                text.line("grpc_server_handled_total", &labels, count);
            }
        }
    }

    fn histogram(&self, text: &mut Text) {
        const NAME: &str = "grpc_server_handling_seconds";
        text.head(NAME, "histogram", "How long calls took, to the last byte of the answer.");
        for (path, method) in self.methods.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (service, name) = split(path);
            let labels = [("grpc_method", name), ("grpc_service", service)];
            let mut sum = 0;
            for (bound, count) in BUCKETS.iter().zip(method.buckets) {
                sum += count;
                let bound = bound.to_string();
                text.line(&format!("{NAME}_bucket"), &[labels[0], labels[1], ("le", &bound)], sum);
            }
            let all: u64 = method.codes.iter().sum();
            text.line(&format!("{NAME}_bucket"), &[labels[0], labels[1], ("le", "+Inf")], all);
            text.line(&format!("{NAME}_sum"), &labels, method.seconds);
            text.line(&format!("{NAME}_count"), &labels, all);
        }
    }
}

fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').split_once('/').unwrap_or(("", path))
}

fn process(text: &mut Text) {
    if let Some((seconds, resident, start)) = stat() {
        text.head("process_cpu_seconds_total", "counter", "Processor time of the daemon.");
        text.line("process_cpu_seconds_total", &[], seconds);
        text.head("process_resident_memory_bytes", "gauge", "Memory of the daemon.");
        text.line("process_resident_memory_bytes", &[], resident);
        text.head("process_start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.");
        text.line("process_start_time_seconds", &[], start);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        text.head("process_open_fds", "gauge", "Open descriptors of the daemon.");
        text.line("process_open_fds", &[], open.count());
    }
}

/// Processor seconds, resident bytes and start in seconds since 1970 (proc_pid_stat(5)).
#[allow(clippy::cast_precision_loss)] // Prometheus knows only floating point.
fn stat() -> Option<(f64, u64, f64)> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<u64> = text.rsplit_once(')')?.1.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    // Linux tells both in units of 1/100 s and of pages, which are 4 KiB wherever this runs.
    let (ticks, pages, began) = (fields.get(11)? + fields.get(12)?, *fields.get(21)?, *fields.get(19)?);
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some((ticks as f64 / 100.0, pages * 4096, now - up + began as f64 / 100.0))
}

fn engine_state(text: &mut Text, engine: &Engine) {
    let mut operations: BTreeMap<&str, usize> = BTreeMap::new();
    engine.ops.list().iter().for_each(|operation| *operations.entry(operation.what).or_default() += 1);
    text.head("gantry_operations_running", "gauge", "Long operations that run now.");
    for (what, count) in operations {
        text.line("gantry_operations_running", &[("operation", what)], count);
    }
}

/// Lines of Prometheus' text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.0, "{name} {value}"),
            false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(measurements: &Measurements) -> String {
        let mut text = Text::default();
        process(&mut text);
        measurements.calls(&mut text);
        measurements.handled(&mut text);
        measurements.histogram(&mut text);
        text.0
    }

    #[test]
    fn calls_are_counted_by_method_and_code_and_sorted_into_buckets() {
        let measurements = Measurements::default();
        for (code, milliseconds) in [(0, 1), (0, 60), (5, 20_000)] {
            measurements.ended("/a.B/C", code, Duration::from_millis(milliseconds));
        }
        measurements.refused();
        let text = text(&measurements);
        for line in [
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"C\",grpc_service=\"a.B\"} 2",
            "grpc_server_handled_total{grpc_code=\"NotFound\",grpc_method=\"C\",grpc_service=\"a.B\"} 1",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"0.005\"} 1",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"10\"} 2",
            "grpc_server_handling_seconds_bucket{grpc_method=\"C\",grpc_service=\"a.B\",le=\"+Inf\"} 3",
            "gantry_calls_refused_total 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line}\n{text}");
        }
    }

    #[test]
    fn methods_that_nobody_serves_do_not_make_the_table_grow() {
        let measurements = Measurements::default();
        for number in 0..100 {
            measurements.ended(&format!("/no.Such/M{number}"), 12, Duration::ZERO);
        }
        assert_eq!(measurements.methods.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_process_is_measured() {
        let (seconds, resident, start) = stat().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(seconds >= 0.0 && resident > 1 << 20 && start <= now + 1.0 && start > now - 3600.0 * 24.0);
    }
}
