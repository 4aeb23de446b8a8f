//! `events`: what a container uses, and when it has run out of memory, in the shape of runc's documents
//! (`types.Stats` of runc), which is one for both versions of control groups. Left out is what version 1 alone has and
//! the metrics of the shim have not either: cpusets, and the time of each CPU by user and kernel.

use std::time::Duration;

use gantry_runtime::stats::{BlkioEntry, Counter, Pressure, V1, V2};
use gantry_runtime::{Container, Error, Stats, Status};
use serde_json::{Map, Value, json};

use super::args::{Args, Flag, UsageError};
use super::{Failure, Global};

pub(super) const FLAGS: &[Flag] = &[Flag::value("interval"), Flag::switch("stats")];

pub(super) fn events(global: &Global, args: &Args) -> Result<u8, Failure> {
    let container = global.load(args.id()?)?;
    let print = |data: Value| println!("{}", json!({"type": "stats", "id": container.id(), "data": data}));
    if args.has("stats") {
        print(data(&container)?);
        return Ok(0);
    }
    let interval = interval(args.get("interval").unwrap_or("5s"))?;
    let mut oom = container.oom_watch().ok();
    while !matches!(container.status(), Status::Stopped) {
        if oom.as_mut().is_some_and(|watch| watch.take().is_ok_and(|kills| kills > 0)) {
            println!("{}", json!({"type": "oom", "id": container.id()}));
        }
        print(data(&container)?);
        std::thread::sleep(interval);
    }
    Ok(0)
}

fn interval(text: &str) -> Result<Duration, UsageError> {
    let bad = || UsageError { reason: format!("invalid interval {text:?}") };
    let (digits, factor) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.trim_end_matches('s'), 1000),
    };
    let number = digits.parse::<u64>().map_err(|_| bad())?;
    if number == 0 { Err(bad()) } else { Ok(Duration::from_millis(number * factor)) }
}

fn data(container: &Container) -> Result<Value, Error> {
    let mut data = match container.stats()? {
        Stats::V1(v1) => of_v1(&v1),
        Stats::V2(v2) => of_v2(&v2),
    };
    data["intel_rdt"] = container.rdt()?.map_or(json!({}), |figures| json!(figures));
    data["network_interfaces"] = Value::Null;
    Ok(data)
}

fn of_v1(v1: &V1) -> Value {
    let table = |names: &[&str]| {
        let found = names.iter().find_map(|name| v1.blkio.iter().find(|(known, _)| known == name));
        Value::from(found.map_or(&[][..], |(_, entries)| entries).iter().map(entry).collect::<Vec<_>>())
    };
    let bytes = &["io_service_bytes_recursive", "throttle.io_service_bytes_recursive"];
    let operations = &["io_serviced_recursive", "throttle.io_serviced_recursive"];
    json!({
        "cpu": {
            "usage": {"total": v1.cpu_total, "percpu": v1.cpu_percpu, "kernel": v1.cpu_kernel, "user": v1.cpu_user},
            "throttling": {
                "periods": v1.throttling.periods,
                "throttledPeriods": v1.throttling.throttled_periods,
                "throttledTime": v1.throttling.throttled_time,
            },
        },
        "memory": {
            "cache": value(&v1.memory_stat, "cache"), "usage": counter(&v1.memory), "swap": counter(&v1.memory_swap),
            "kernel": counter(&v1.memory_kernel), "kernelTCP": counter(&v1.memory_kernel_tcp),
            "raw": map(&v1.memory_stat),
        },
        "pids": {"current": v1.pids_current, "limit": v1.pids_limit},
        "blkio": {
            "ioServiceBytesRecursive": table(bytes),
            "ioServicedRecursive": table(operations),
            "ioQueueRecursive": table(&["io_queued_recursive"]),
            "ioServiceTimeRecursive": table(&["io_service_time_recursive"]),
            "ioWaitTimeRecursive": table(&["io_wait_time_recursive"]),
            "ioMergedRecursive": table(&["io_merged_recursive"]),
            "ioTimeRecursive": table(&["time_recursive"]),
        },
        "hugetlb": hugetlb(&v1.hugetlb),
    })
}

fn of_v2(v2: &V2) -> Value {
    /// The kernel counts in microseconds here, and in nanoseconds with version 1.
    const MICROSECOND: u64 = 1000;
    let cpu = |name: &str| value(&v2.cpu_stat, name);
    let time = |name: &str| cpu(name).saturating_mul(MICROSECOND);
    let io = |names: [(&str, &str); 2]| {
        let entries = v2.io.iter().flat_map(|device| {
            let named = |(name, op): (&str, &str)| {
                let found = device.values.iter().find(|(known, _)| known == name)?;
                Some(json!({"major": device.major, "minor": device.minor, "op": op, "value": found.1}))
            };
            names.map(named)
        });
        entries.flatten().collect::<Vec<_>>()
    };
    // What version 1 counts as swap is memory and swap together, and so it is told here.
    let swap_limit = if v2.swap_limit == u64::MAX { u64::MAX } else { v2.swap_limit.saturating_add(v2.memory_limit) };
    let mut data = json!({
        "cpu": {
            "usage": {"total": time("usage_usec"), "kernel": time("system_usec"), "user": time("user_usec")},
            "throttling": {
                "periods": cpu("nr_periods"),
                "throttledPeriods": cpu("nr_throttled"),
                "throttledTime": time("throttled_usec"),
            },
        },
        "memory": {
            "cache": value(&v2.memory_stat, "file"),
            "usage": {"limit": v2.memory_limit, "usage": v2.memory_current, "max": v2.memory_peak, "failcnt": 0},
            "swap": {"limit": swap_limit, "usage": v2.swap_current + v2.memory_current, "max": 0, "failcnt": 0},
            "raw": map(&v2.memory_stat),
        },
        "pids": {"current": v2.pids_current, "limit": if v2.pids_limit == u64::MAX { 0 } else { v2.pids_limit }},
        "blkio": {
            "ioServiceBytesRecursive": io([("rbytes", "Read"), ("wbytes", "Write")]),
            "ioServicedRecursive": io([("rios", "Read"), ("wios", "Write")]),
        },
        "hugetlb": hugetlb(&v2.hugetlb),
    });
    for (resource, pressure) in &v2.pressure {
        let place = if resource == "io" { "blkio" } else { resource };
        data[place]["psi"] = psi(pressure);
    }
    data
}

fn value(pairs: &[(String, u64)], name: &str) -> u64 {
    pairs.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value)
}

fn map(pairs: &[(String, u64)]) -> Value {
    Value::Object(pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<Map<_, _>>())
}

fn counter(counter: &Counter) -> Value {
    json!({"limit": counter.limit, "usage": counter.usage, "max": counter.max, "failcnt": counter.failcnt})
}

fn hugetlb(sizes: &[(String, Counter)]) -> Value {
    let of = |counter: &Counter| json!({"usage": counter.usage, "max": counter.max, "failcnt": counter.failcnt});
    Value::Object(sizes.iter().map(|(size, counter)| (size.clone(), of(counter))).collect::<Map<_, _>>())
}

fn entry(entry: &BlkioEntry) -> Value {
    json!({"major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value})
}

fn psi(pressure: &Pressure) -> Value {
    let [some, full] = [&pressure.some, &pressure.full]
        .map(|line| json!({"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total}));
    json!({"some": some, "full": full})
}

#[cfg(test)]
mod tests {
    use gantry_runtime::stats::{IoDevice, PressureLine};

    use super::*;

    #[test]
    fn figures_of_version_2_are_told_as_those_of_version_1() {
        let pairs = |pairs: &[(&str, u64)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
        let told = of_v2(&V2 {
            cpu_stat: pairs(&[("usage_usec", 5), ("user_usec", 3), ("system_usec", 2), ("nr_throttled", 7)]),
            memory_stat: pairs(&[("anon", 1), ("file", 4096)]),
            memory_current: 100,
            memory_limit: 1000,
            swap_current: 10,
            swap_limit: 50,
            pids_limit: u64::MAX,
            io: vec![IoDevice { major: 8, minor: 16, values: pairs(&[("rbytes", 9), ("dios", 1)]) }],
            pressure: vec![(
                "io".into(),
                Pressure { some: PressureLine { total: 6, ..Default::default() }, ..Default::default() },
            )],
            ..V2::default()
        });
        assert_eq!(told["cpu"]["usage"], json!({"total": 5000, "kernel": 2000, "user": 3000}));
        assert_eq!(told["cpu"]["throttling"]["throttledPeriods"], 7);
        assert_eq!((&told["memory"]["cache"], &told["memory"]["raw"]["anon"]), (&json!(4096), &json!(1)));
        assert_eq!(told["memory"]["swap"], json!({"limit": 1050, "usage": 110, "max": 0, "failcnt": 0}));
        assert_eq!(told["pids"]["limit"], 0);
        let read = json!([{"major": 8, "minor": 16, "op": "Read", "value": 9}]);
        assert_eq!(told["blkio"]["ioServiceBytesRecursive"], read);
        assert_eq!(told["blkio"]["psi"]["some"]["total"], 6);
    }

    #[test]
    fn intervals_have_units() {
        assert_eq!(interval("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(interval("3s").unwrap(), Duration::from_secs(3));
        assert!(interval("0s").is_err() && interval("often").is_err());
    }
}
