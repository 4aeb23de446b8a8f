//! Cgroups as systemd units: `cgroupsPath` is `slice:prefix:name`. The unit's place in the tree is known from its name;
//! systemd is asked over D-Bus (org.freedesktop.systemd1) to make it, change it and stop it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dbus::{Bus, BusError, Call, Message};
use super::devices;
use super::marshal::{Value, Writer};
use crate::error::{Error, Result};
use crate::spec::{Cpu, Memory, Resources};

/// The system bus.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// The deadline of one request with its job.
const DEADLINE: Duration = Duration::from_secs(30);
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A scope (or slice) that holds a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// `prefix-name.scope`.
    pub(crate) name: String,
    /// The slice it is in.
    pub(crate) slice: String,
}

impl Unit {
    /// Reads `slice:prefix:name`; empty is `system.slice:gantry:ID`.
    pub(crate) fn parse(cgroups_path: &str, id: &str) -> Result<Unit> {
        let text = if cgroups_path.is_empty() { format!(":gantry:{id}") } else { cgroups_path.to_owned() };
        let parts = text.split(':').collect::<Vec<_>>();
        let [slice, prefix, name] = parts[..] else {
            return Err(Error::invalid("linux.cgroupsPath", format!("{text:?} is not slice:prefix:name")));
        };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let bad = |text: &str| text.contains('/') || text.contains('\0');
        if bad(slice) || bad(prefix) || bad(name) || !slice.ends_with(".slice") {
            return Err(Error::invalid("linux.cgroupsPath", format!("{text:?} names no unit")));
        }
        let name = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        Ok(Unit { name, slice: slice.to_owned() })
    }

    /// Its directory below the hierarchy's root: `a-b.slice` lies in `a.slice`.
    pub(crate) fn path(&self) -> PathBuf {
        let mut path = PathBuf::new();
        let stem = self.slice.trim_end_matches(".slice");
        if stem != "-" {
            let mut prefix = String::new();
            for part in stem.split('-') {
                if !prefix.is_empty() {
                    prefix.push('-');
                }
                prefix.push_str(part);
                path.push(format!("{prefix}.slice"));
            }
        }
        path.join(&self.name)
    }
}

/// A request to systemd, from connecting to the end of its job.
struct Manager {
    bus: Bus,
}

/// What a manager's request ends in; see [`wrapped`].
type Asked<T> = std::result::Result<T, BusError>;

impl Manager {
    fn connect(address: &Path) -> Asked<Manager> {
        let mut bus = Bus::connect(address, DEADLINE)?;
        let daemon = |member, signature, body| Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature,
            body,
        };
        bus.call(&daemon("Hello", "", Vec::new()))?;
        let mut rule = Writer::default();
        rule.string(&format!(
            "type='signal',sender='org.freedesktop.systemd1',interface='{MANAGER}',member='JobRemoved'"
        ));
        bus.call(&daemon("AddMatch", "s", rule.finish()))?;
        let mut manager = Manager { bus };
        // Without a subscriber systemd sends no signals. Being one already is no failure.
        match manager.call("Subscribe", "", Writer::default()) {
            Err(BusError::Call { name, .. }) if name == "org.freedesktop.systemd1.AlreadySubscribed" => {}
            other => drop(other?),
        }
        Ok(manager)
    }

    fn call(&mut self, member: &str, signature: &str, body: Writer) -> Asked<Message> {
        self.bus.call(&call(member, signature, body))
    }

    /// Calls a method that answers with a job, and waits for the job's end: its result.
    fn job(&mut self, member: &str, signature: &str, body: Writer) -> Asked<String> {
        let job = self.call(member, signature, body)?.arguments("o")?.swap_remove(0);
        loop {
            let signal = self.bus.signal()?;
            if signal.member != "JobRemoved" {
                continue;
            }
            let mut arguments = signal.arguments("uoss")?;
            if arguments[1] == job {
                return Ok(arguments.swap_remove(3));
            }
        }
    }

    fn start(&mut self, name: &str, properties: &[(&str, Value<'_>)]) -> Asked<String> {
        self.job("StartTransientUnit", "ssa(sv)a(sa(sv))", start_body(name, properties))
    }

    /// Stops a unit; one that is not there is fine. Forgets that it failed.
    fn stop(&mut self, name: &str) -> Asked<()> {
        let mut body = Writer::default();
        body.string(name);
        body.string("replace");
        match self.job("StopUnit", "ss", body) {
            Err(error) if !is_unknown(&error) => return Err(error),
            _ => {}
        }
        self.reset_failed(name)
    }

    fn reset_failed(&mut self, name: &str) -> Asked<()> {
        let mut body = Writer::default();
        body.string(name);
        match self.call("ResetFailedUnit", "s", body) {
            // A unit that did not fail is not loaded any more.
            Err(error) if !is_unknown(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn set(&mut self, name: &str, properties: &[(&str, Value<'_>)]) -> Asked<()> {
        let mut body = Writer::default();
        body.string(name);
        // For the unit's life only.
        body.u32(1);
        body.properties(properties);
        self.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }
}

fn call<'a>(member: &'a str, signature: &'a str, body: Writer) -> Call<'a> {
    Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: MANAGER,
        member,
        signature,
        body: body.finish(),
    }
}

fn start_body(name: &str, properties: &[(&str, Value<'_>)]) -> Writer {
    let mut body = Writer::default();
    body.string(name);
    body.string("replace");
    body.properties(properties);
    body.array(8, |_| {});
    body
}

fn is_unknown(error: &BusError) -> bool {
    matches!(error, BusError::Call { name, .. } if name == "org.freedesktop.systemd1.NoSuchUnit")
}

fn is_taken(error: &BusError) -> bool {
    matches!(error, BusError::Call { name, .. } if name == "org.freedesktop.systemd1.UnitExists")
}

impl Unit {
    fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// Has systemd make the unit around a process, with the limits it knows of.
    pub(super) fn start(&self, pid: i32, v2: bool, resources: &Resources) -> Result<()> {
        self.start_at(Path::new(SYSTEM_BUS), pid, v2, resources)
    }

    fn start_at(&self, bus: &Path, pid: i32, v2: bool, resources: &Resources) -> Result<()> {
        let pairs = device_pairs(resources)?;
        let properties = self.properties(pid, v2, resources, pairs);
        let mut manager = connect(bus, &self.name)?;
        let mut result = manager.start(&self.name, &properties);
        if result.as_ref().is_err_and(is_taken) {
            // What is left of a failed unit of that name goes; a living one makes the second try fail too.
            manager.reset_failed(&self.name).map_err(|error| self.failed("reset", &error))?;
            result = manager.start(&self.name, &properties);
        }
        match result {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(self.refused("start", format!("its job ended as {result:?}"))),
            Err(error) => Err(self.failed("start", &error)),
        }
    }

    /// Stops the unit. No such unit is success, and so is no systemd: then there is nothing to stop.
    pub(super) fn stop(&self) -> Result<()> {
        if !Path::new(SYSTEM_BUS).exists() {
            return Ok(());
        }
        self.stop_at(Path::new(SYSTEM_BUS))
    }

    fn stop_at(&self, bus: &Path) -> Result<()> {
        connect(bus, &self.name)?.stop(&self.name).map_err(|error| self.failed("stop", &error))
    }

    /// Changes the limits that systemd knows of.
    pub(super) fn update(&self, v2: bool, resources: &Resources) -> Result<()> {
        self.update_at(Path::new(SYSTEM_BUS), v2, resources)
    }

    fn update_at(&self, bus: &Path, v2: bool, resources: &Resources) -> Result<()> {
        let limits = limits(v2, resources);
        if limits.is_empty() {
            return Ok(());
        }
        connect(bus, &self.name)?.set(&self.name, &limits).map_err(|error| self.failed("change", &error))
    }

    fn properties<'a>(
        &'a self,
        pid: i32,
        v2: bool,
        resources: &Resources,
        devices: Option<Vec<(String, String)>>,
    ) -> Vec<(&'static str, Value<'a>)> {
        let mut all = vec![("Description", Value::Text("container")), ("DefaultDependencies", Value::Bool(false))];
        if self.is_slice() {
            all.push(("Wants", Value::Texts(vec![&self.slice])));
        } else {
            all.push(("Slice", Value::Text(&self.slice)));
            all.push(("Delegate", Value::Bool(true)));
            all.push(("PIDs", Value::Pids(vec![pid as u32])));
        }
        let block = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
        for accounting in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", block] {
            all.push((accounting, Value::Bool(true)));
        }
        if let Some(pairs) = devices {
            all.push(("DevicePolicy", Value::Text("strict")));
            all.push(("DeviceAllow", Value::Pairs(pairs)));
        }
        all.extend(limits(v2, resources));
        all
    }

    fn refused(&self, action: &'static str, reason: String) -> Error {
        Error::Systemd { action, unit: self.name.clone(), reason }
    }

    fn failed(&self, action: &'static str, error: &BusError) -> Error {
        self.refused(action, error.to_string())
    }
}

fn connect(bus: &Path, unit: &str) -> Result<Manager> {
    Manager::connect(bus).map_err(|error| match error {
        BusError::Io(source) if source.kind() == std::io::ErrorKind::NotFound => Error::Unsupported {
            what: format!("the systemd cgroup driver (unit {unit}): no system bus at {}", bus.display()),
        },
        error => Error::Systemd { action: "ask for", unit: unit.to_owned(), reason: error.to_string() },
    })
}

/// The allowed devices in systemd's words; `None` if everything is. What it has no words for (denials after
/// allowances) is left to the rules that are set in the cgroup itself.
fn device_pairs(resources: &Resources) -> Result<Option<Vec<(String, String)>>> {
    let rules = devices::rules(&resources.devices)?;
    if rules.iter().any(|rule| rule.allow && rule.kind == devices::Kind::All && rule.major.is_none()) {
        return Ok(None);
    }
    let known = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    Ok(Some(rules.iter().filter(|rule| rule.allow).flat_map(|rule| pairs_of(rule, &known)).collect()))
}

fn pairs_of(rule: &devices::Rule, known: &str) -> Vec<(String, String)> {
    let kind = if rule.kind == devices::Kind::Block { "block" } else { "char" };
    let names = match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => vec![format!("/dev/{kind}/{major}:{minor}")],
        (Some(major), None) => groups(known, kind, major),
        (None, _) => vec![format!("{kind}-*")],
    };
    let letters = [(rule.access.read, 'r'), (rule.access.write, 'w'), (rule.access.make, 'm')];
    let access = letters.iter().filter(|(on, _)| *on).map(|(_, letter)| letter).collect::<String>();
    names.into_iter().map(|name| (name, access.clone())).collect()
}

/// The names a major number has in `/proc/devices`.
fn groups(known: &str, kind: &str, major: u32) -> Vec<String> {
    let heading = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let section = known.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.trim().is_empty());
    let fields = section.filter_map(|line| line.trim().split_once(' '));
    fields.filter(|(number, _)| *number == major.to_string()).map(|(_, name)| format!("{kind}-{name}")).collect()
}

/// Limits as properties, so that systemd does not undo them when it writes the cgroup's files anew.
fn limits(v2: bool, resources: &Resources) -> Vec<(&'static str, Value<'static>)> {
    let mut all = Vec::new();
    if let Some(memory) = &resources.memory {
        all.extend(memory_limits(v2, memory));
    }
    if let Some(cpu) = &resources.cpu {
        all.extend(cpu_limits(v2, cpu));
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit != 0) {
        all.push(("TasksMax", number(limit)));
    }
    if let Some(weight) = resources.block_io.as_ref().and_then(|block| block.weight).filter(|weight| *weight != 0) {
        let weight = u64::from(weight);
        all.push(if v2 {
            // 10 to 1000 becomes 1 to 10000, as for the cgroup's own file.
            ("IOWeight", Value::Number(1 + weight.saturating_sub(10) * 9999 / 990))
        } else {
            ("BlockIOWeight", Value::Number(weight))
        });
    }
    all
}

/// Without limit is systemd's largest number.
fn number(limit: i64) -> Value<'static> {
    Value::Number(u64::try_from(limit).unwrap_or(u64::MAX))
}

fn memory_limits(v2: bool, memory: &Memory) -> Vec<(&'static str, Value<'static>)> {
    let mut all = Vec::new();
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(limit) = given(memory.limit) {
        all.push((if v2 { "MemoryMax" } else { "MemoryLimit" }, number(limit)));
    }
    if let (true, Some(low)) = (v2, given(memory.reservation)) {
        all.push(("MemoryLow", number(low)));
    }
    if let (true, Some(joint), limit) = (v2, given(memory.swap), memory.limit.unwrap_or(0)) {
        let swap = if joint == -1 { -1 } else { (joint - limit).max(0) };
        all.push(("MemorySwapMax", number(swap)));
    }
    all
}

fn cpu_limits(v2: bool, cpu: &Cpu) -> Vec<(&'static str, Value<'static>)> {
    let mut all = Vec::new();
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        all.push(if v2 {
            ("CPUWeight", Value::Number(super::v2::weight_of_shares(shares)))
        } else {
            ("CPUShares", Value::Number(shares))
        });
    }
    let period = cpu.period.filter(|period| *period != 0);
    all.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::Number(period))));
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        all.push(("CPUQuotaPerSecUSec", Value::Number(per_second(quota, period.unwrap_or(100_000)))));
    }
    if v2 {
        all.extend(set_of("AllowedCPUs", &cpu.cpus));
        all.extend(set_of("AllowedMemoryNodes", &cpu.mems));
    }
    all
}

/// A list of numbers as bits. One that is none is refused when it is written to the cgroup.
fn set_of(name: &'static str, list: &str) -> Option<(&'static str, Value<'static>)> {
    let mask = crate::process::cpu_mask("linux.resources.cpu", list).ok().filter(|_| !list.is_empty())?;
    let mut bytes = mask.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1));
    Some((name, Value::Bytes(bytes)))
}

/// Microseconds in each second, in whole hundredths of a processor: systemd's unit, rounded up.
fn per_second(quota: i64, period: u64) -> u64 {
    let Ok(quota) = u64::try_from(quota) else { return u64::MAX };
    quota.saturating_mul(1_000_000).div_ceil(period).div_ceil(10_000) * 10_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;

    // Messages as another implementation of D-Bus writes them.
    const START: &str = "\
        6c010001f000000000000000b600000001016f00190000002f6f72672f667265656465736b746f702f73797374656d643100\
        00000000000002017300200000006f72672e667265656465736b746f702e73797374656d64312e4d616e6167657200000000\
        00000000030173001200000053746172745472616e7369656e74556e697400000000000006017300180000006f72672e6672\
        65656465736b746f702e73797374656d64310000000000000000080167001073736128737629612873612873762929000000\
        09000000612d622e73636f7065000000070000007265706c61636500cc0000000b0000004465736372697074696f6e000173\
        00000b000000636f6e7461696e65722062000000000005000000536c6963650001730000000007000000782e736c69636500\
        000000000800000044656c656761746500016200010000000000000004000000504944730002617500000000040000002a00\
        0000080000005461736b734d61780001740007000000000000000b000000446576696365416c6c6f77000561287373290000\
        1c000000000000000d0000002f6465762f636861722f313a330000000300000072776d0000000000";
    const REPLY: &str = "\
        6c02000125000000000000002f000000050175000400000007017300040000003a312e310000000006017300040000003a31\
        2e390000000008016700016f0000200000002f6f72672f667265656465736b746f702f73797374656d64312f6a6f622f3137\
        00";
    const REMOVED: &str = "\
        6c04000145000000000000008a00000002017300200000006f72672e667265656465736b746f702e73797374656d64312e4d\
        616e616765720000000000000000030173000a0000004a6f6252656d6f76656400000000000007017300040000003a312e31\
        000000000801670004756f73730000000000000001016f00190000002f6f72672f667265656465736b746f702f7379737465\
        6d64310000000000000011000000200000002f6f72672f667265656465736b746f702f73797374656d64312f6a6f622f3137\
        0000000009000000612d622e73636f706500000004000000646f6e6500";
    const EXISTS: &str = "\
        6c03000123000000000000003f000000050175000400000004017300230000006f72672e667265656465736b746f702e7379\
        7374656d64312e556e6974457869737473000000000008016700017300001e000000556e697420612d622e73636f70652061\
        6c7265616479206578697374732e00";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    /// A reply (or error), whose reply serial is the first field, to a call.
    fn to(serial: u32, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        message[20..24].copy_from_slice(&serial.to_le_bytes());
        message
    }

    fn empty_reply() -> Vec<u8> {
        vec![b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 5, 1, b'u', 0, 0, 0, 0, 0]
    }

    /// A bus that answers the methods called with these messages and tells which were called.
    fn fake(
        answers: Vec<(&'static str, Vec<Vec<u8>>)>,
    ) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.starts_with("\0AUTH EXTERNAL "), "{line:?}");
            stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, "BEGIN\r\n");
            let mut answers = answers.into_iter();
            let mut called = Vec::new();
            loop {
                let mut head = [0; 16];
                if reader.read_exact(&mut head).is_err() {
                    return called;
                }
                let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
                let mut rest = vec![0; super::super::marshal::pad(number(12) as usize, 8) + number(4) as usize];
                reader.read_exact(&mut rest).unwrap();
                let text = String::from_utf8_lossy(&rest).into_owned();
                let preliminary =
                    ["Hello", "AddMatch", "Subscribe"].iter().any(|member| text.contains(&format!("{member}\0")));
                if preliminary {
                    stream.write_all(&to(number(8), &empty_reply())).unwrap();
                    continue;
                }
                let (member, messages) = answers.next().expect("no further call is made");
                assert!(text.contains(&format!("{member}\0")), "{member}: {text:?}");
                called.push(text);
                for message in messages {
                    let signal = message[1] == 4;
                    stream.write_all(&if signal { message } else { to(number(8), &message) }).unwrap();
                }
            }
        });
        (directory, path, thread)
    }

    fn unit() -> Unit {
        Unit { name: "a-b.scope".into(), slice: "x.slice".into() }
    }

    #[test]
    fn a_call_is_what_another_implementation_writes() {
        let device = vec![("/dev/char/1:3".to_owned(), "rwm".to_owned())];
        let body = start_body(
            "a-b.scope",
            &[
                ("Description", Value::Text("container b")),
                ("Slice", Value::Text("x.slice")),
                ("Delegate", Value::Bool(true)),
                ("PIDs", Value::Pids(vec![42])),
                ("TasksMax", Value::Number(7)),
                ("DeviceAllow", Value::Pairs(device)),
            ],
        );
        let message = call("StartTransientUnit", "ssa(sv)a(sa(sv))", body).encode(0);
        // The order of header fields is free: the other's has the signature first. The bodies agree byte for byte.
        let expected = bytes(START);
        let length = u32::from_le_bytes(expected[4..8].try_into().unwrap()) as usize;
        assert_eq!(message[..12], expected[..12]);
        assert_eq!(message[message.len() - length..], expected[expected.len() - length..]);
    }

    #[test]
    fn a_unit_is_started_when_its_job_is_done_even_if_that_is_told_before_the_reply() {
        for messages in [vec![bytes(REPLY), bytes(REMOVED)], vec![bytes(REMOVED), bytes(REPLY)]] {
            let (_directory, path, thread) = fake(vec![("StartTransientUnit", messages)]);
            let mut resources = Resources::default();
            resources.pids.get_or_insert_with(Default::default).limit = Some(7);
            unit().start_at(&path, 42, true, &resources).unwrap();
            let called = thread.join().unwrap();
            for word in ["a-b.scope", "x.slice", "Delegate", "PIDs", "TasksMax", "DeviceAllow", "/dev/char/1:3"] {
                assert!(called[0].contains(word), "{word}");
            }
        }
    }

    #[test]
    fn a_failed_unit_of_that_name_is_forgotten_first_and_a_living_one_is_an_error() {
        let started = vec![bytes(REPLY), bytes(REMOVED)];
        let (_directory, path, thread) = fake(vec![
            ("StartTransientUnit", vec![bytes(EXISTS)]),
            ("ResetFailedUnit", vec![empty_reply()]),
            ("StartTransientUnit", started),
        ]);
        unit().start_at(&path, 42, false, &Resources::default()).unwrap();
        assert_eq!(thread.join().unwrap().len(), 3);
        let (_directory, path, thread) = fake(vec![
            ("StartTransientUnit", vec![bytes(EXISTS)]),
            ("ResetFailedUnit", vec![empty_reply()]),
            ("StartTransientUnit", vec![bytes(EXISTS)]),
        ]);
        let error = unit().start_at(&path, 42, false, &Resources::default()).unwrap_err().to_string();
        assert!(error.contains("a-b.scope") && error.contains("already exists"), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn a_unit_is_stopped_changed_and_missed() {
        let stop = vec![bytes(REPLY), bytes(REMOVED)];
        let (_directory, path, thread) = fake(vec![("StopUnit", stop), ("ResetFailedUnit", vec![empty_reply()])]);
        unit().stop_at(&path).unwrap();
        thread.join().unwrap();
        let mut resources = Resources::default();
        resources.memory.get_or_insert_with(Default::default).limit = Some(1 << 20);
        let (_directory, path, thread) = fake(vec![("SetUnitProperties", vec![empty_reply()])]);
        unit().update_at(&path, true, &resources).unwrap();
        assert!(thread.join().unwrap()[0].contains("MemoryMax"));
        let error = unit().start_at(Path::new("/nonexistent/bus"), 1, true, &resources).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }

    #[test]
    fn quotas_are_in_whole_hundredths_of_a_processor() {
        assert_eq!(per_second(50_000, 100_000), 500_000);
        assert_eq!(per_second(12_345, 100_000), 130_000);
        assert_eq!(per_second(-1, 100_000), u64::MAX);
    }

    #[test]
    fn processor_lists_are_bits() {
        assert_eq!(set_of("x", "0-1,9"), Some(("x", Value::Bytes(vec![3, 2]))));
        assert_eq!(set_of("x", ""), None);
    }

    #[test]
    fn a_major_number_has_the_names_of_proc_devices() {
        let known = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  1 ram\n";
        assert_eq!(groups(known, "char", 136), ["char-pts"]);
        assert_eq!(groups(known, "block", 1), ["block-ram"]);
    }

    #[test]
    fn a_unit_lies_below_the_slices_of_its_name() {
        let unit = Unit::parse("kubepods-burstable-pod1.slice:cri:abc", "x").unwrap();
        assert_eq!(
            unit.path(),
            PathBuf::from("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-abc.scope")
        );
        assert_eq!(Unit::parse("", "x").unwrap().path(), PathBuf::from("system.slice/gantry-x.scope"));
        assert!(Unit::parse("/default/x", "x").is_err());
    }
}
