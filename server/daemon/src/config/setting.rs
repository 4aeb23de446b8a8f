//! From values to typed settings and back: each type says what it takes, and how it is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{Report, nearest};
use super::tree::{Node, Table, Value};

/// What a value of a file can set.
pub(super) trait Setting {
    /// Takes the value over, or reports what is wrong with it.
    fn read(&mut self, node: &Node, report: &mut Report);
    /// The value that reads back to this; none where nothing is set.
    fn write(&self) -> Option<Value>;
}

/// A group of settings under names.
pub(super) trait Section: Sized + 'static {
    /// Every name, with what it sets.
    const KEYS: &'static [Key<Self>];
    /// Names that containerd knows and that have no effect here, with the reason; everything below them too.
    const IGNORED: &'static [(&'static [&'static str], &'static str)] = &[];

    /// What no value by itself can tell.
    fn check(&self, _node: &Node, _report: &mut Report) {}
}

/// A name, or several one within the other, and what it sets.
pub(super) struct Key<T> {
    pub(super) path: &'static [&'static str],
    pub(super) read: fn(&mut T, &Node, &mut Report),
    pub(super) write: fn(&T) -> Option<Value>,
}

/// Names the keys of a section: `[name, …] => field` for a [`Setting`], `[name, …] => field as Form` for a [`Form`].
macro_rules! section {
    ($type:ty { $($keys:tt)* }) => {
        section!($type { $($keys)* } ignored {});
    };
    ($type:ty { $([$($name:expr),+] => $($field:ident).+ $(as $form:ty)?),* $(,)? }
        ignored { $([$($old:expr),+] => $reason:expr),* $(,)? } $(check $check:expr)?) => {
        impl $crate::config::setting::Section for $type {
            const KEYS: &'static [$crate::config::setting::Key<Self>] = &[$(
                $crate::config::setting::Key {
                    path: &[$($name),+],
                    read: |c, n, r| section!(@read c, n, r, $($field).+ $(as $form)?),
                    write: |c| section!(@write c, $($field).+ $(as $form)?),
                }
            ),*];
            const IGNORED: &'static [(&'static [&'static str], &'static str)] = &[$((&[$($old),+], $reason)),*];
            $(fn check(&self, node: &$crate::config::tree::Node, report: &mut $crate::config::report::Report) {
                let check: fn(&Self, &$crate::config::tree::Node, &mut $crate::config::report::Report) = $check;
                check(self, node, report);
            })?
        }
    };
    (@read $c:ident, $n:ident, $r:ident, $($field:ident).+) => {
        $crate::config::setting::Setting::read(&mut $c.$($field).+, $n, $r)
    };
    (@read $c:ident, $n:ident, $r:ident, $($field:ident).+ as $form:ty) => {
        match <$form as $crate::config::setting::Form<_>>::read(&$n.value) {
            Ok(value) => $c.$($field).+ = value,
            Err(expected) => $r.must(&$n.place, expected),
        }
    };
    (@write $c:ident, $($field:ident).+) => {
        $crate::config::setting::Setting::write(&$c.$($field).+)
    };
    (@write $c:ident, $($field:ident).+ as $form:ty) => {
        <$form as $crate::config::setting::Form<_>>::write(&$c.$($field).+)
    };
}
pub(super) use section;

impl<T: Section> Setting for T {
    fn read(&mut self, node: &Node, report: &mut Report) {
        match node.table() {
            Some(table) => {
                walk(self, &mut Vec::new(), table, report);
                self.check(node, report);
            }
            None => report.must(&node.place, "a section"),
        }
    }

    fn write(&self) -> Option<Value> {
        let mut table = Table::new();
        for key in T::KEYS {
            if let Some(value) = (key.write)(self) {
                super::tree::put(&mut table, key.path, value.into());
            }
        }
        Some(Value::Table(table))
    }
}

fn walk<'a, T: Section>(section: &mut T, path: &mut Vec<&'a str>, table: &'a Table, report: &mut Report) {
    for (name, node) in table {
        path.push(name);
        let key = T::KEYS.iter().find(|key| key.path == path.as_slice());
        let further = T::KEYS.iter().any(|key| key.path.len() > path.len() && key.path.starts_with(path));
        if let Some(key) = key {
            report.within(&[name], |report| (key.read)(section, node, report));
        } else if let (true, Some(inner)) = (further, node.table()) {
            report.within(&[name], |report| walk(section, path, inner, report));
        } else if further {
            report.within(&[name], |report| report.must(&node.place, "a section"));
        } else {
            report.within(&[name], |report| stray::<T>(path, node, report));
        }
        path.pop();
    }
}

/// A name that sets nothing: one of containerd's, or a slip.
fn stray<T: Section>(path: &[&str], node: &Node, report: &mut Report) {
    if let Some((_, reason)) = T::IGNORED.iter().find(|(known, _)| path.starts_with(known)) {
        // Without a reason it is read elsewhere.
        if !node.is_empty() && !reason.is_empty() {
            report.notice(&node.place, format!("`{}` has no effect here: {reason}", report.name()));
        }
        return;
    }
    // The tables on the way to a key that is ignored.
    if let Some(inner) = node.table()
        && T::IGNORED.iter().any(|(known, _)| known.starts_with(path))
    {
        for (name, node) in inner {
            let path: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
            report.within(&[name], |report| stray::<T>(&path, node, report));
        }
        return;
    }
    let Some((last, parents)) = path.split_last() else { return };
    let known = T::KEYS.iter().map(|key| key.path).chain(T::IGNORED.iter().map(|(path, _)| *path));
    let beside = known.filter(|known| known.len() >= path.len() && known.starts_with(parents));
    let near = nearest(last, beside.map(|known| known[parents.len()]));
    let meant = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    report.unknown(&node.place, format!("unknown key `{}`{meant}", report.name()));
}

/// A way of writing a `T` that is not the usual one.
pub(super) trait Form<T> {
    /// The value, or what was expected instead.
    fn read(value: &Value) -> Result<T, &'static str>;
    fn write(setting: &T) -> Option<Value>;
}

/// Declares [`Setting`] by two functions: one that reads, or says what was expected, and one that writes.
macro_rules! scalar {
    ($($type:ty: $read:expr, $write:expr;)*) => {$(
        impl Setting for $type {
            fn read(&mut self, node: &Node, report: &mut Report) {
                let read: fn(&Value) -> Result<$type, &'static str> = $read;
                match read(&node.value) {
                    Ok(value) => *self = value,
                    Err(expected) => report.must(&node.place, expected),
                }
            }

            fn write(&self) -> Option<Value> {
                let write: fn(&$type) -> Option<Value> = $write;
                write(self)
            }
        }
    )*};
}

scalar! {
    String: text, |text| Some(Value::Text(text.clone()));
    bool: flag, |set| Some(Value::Bool(*set));
    PathBuf: path, |path| Some(path_text(path));
    Option<PathBuf>: |v| if is_unset(v) { Ok(None) } else { path(v).map(Some) }, |path| path.as_ref().map(|path| path_text(path));
    Duration: duration, |duration| Some(Value::Text(write_duration(*duration)));
    Option<Duration>: |v| if is_unset(v) { Ok(None) } else { duration(v).map(Some) },
        |duration| duration.map(|duration| Value::Text(write_duration(duration)));
    u32: number, |n| write_number(*n);
    u64: number, |n| write_number(*n);
    usize: number, |n| write_number(*n);
    i64: number, |n| Some(Value::Integer(*n));
    f64: float, |n| Some(Value::Float(*n));
    Vec<String>: |v| list(v, text, "a list of texts"), |texts| Some(write_list(texts, |text| Value::Text(text.clone())));
    Vec<PathBuf>: |v| list(v, path, "a list of absolute paths"), |paths| Some(write_list(paths, |path| path_text(path)));
}

fn is_unset(value: &Value) -> bool {
    *value == Value::Text(String::new())
}

pub(super) fn text(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err("a text"),
    }
}

fn flag(value: &Value) -> Result<bool, &'static str> {
    match value {
        Value::Bool(set) => Ok(*set),
        _ => Err("true or false"),
    }
}

fn path(value: &Value) -> Result<PathBuf, &'static str> {
    text(value).ok().map(PathBuf::from).filter(|path| path.is_absolute()).ok_or("an absolute path")
}

fn path_text(path: &Path) -> Value {
    Value::Text(path.to_string_lossy().into_owned())
}

pub(super) fn number<T: TryFrom<i64>>(value: &Value) -> Result<T, &'static str> {
    match value {
        Value::Integer(number) if *number < 0 => T::try_from(*number).map_err(|_| "a number that is not negative"),
        Value::Integer(number) => T::try_from(*number).map_err(|_| "a smaller number"),
        _ => Err("a whole number"),
    }
}

fn write_number<T: TryInto<i64> + Copy>(number: T) -> Option<Value> {
    // What exceeds TOML's numbers never came from a file.
    Some(Value::Integer(number.try_into().unwrap_or(i64::MAX)))
}

fn float(value: &Value) -> Result<f64, &'static str> {
    match value {
        Value::Float(number) if number.is_finite() => Ok(*number),
        // Exact for every number an operator would write here.
        #[allow(clippy::cast_precision_loss)]
        Value::Integer(number) => Ok(*number as f64),
        _ => Err("a number"),
    }
}

pub(super) fn list<T>(
    value: &Value,
    item: impl Fn(&Value) -> Result<T, &'static str>,
    expected: &'static str,
) -> Result<Vec<T>, &'static str> {
    match value {
        Value::List(list) => list.iter().map(|node| item(&node.value).map_err(|_| expected)).collect(),
        _ => Err(expected),
    }
}

pub(super) fn write_list<T>(list: &[T], item: impl Fn(&T) -> Value) -> Value {
    Value::List(list.iter().map(|entry| item(entry).into()).collect())
}

impl<T: Setting + Default> Setting for BTreeMap<String, T> {
    /// Each name by itself; one that was there is read anew.
    fn read(&mut self, node: &Node, report: &mut Report) {
        let Some(table) = node.table() else { return report.must(&node.place, "a section") };
        for (name, node) in table {
            let mut setting = T::default();
            report.within(&[name], |report| setting.read(node, report));
            self.insert(name.clone(), setting);
        }
    }

    fn write(&self) -> Option<Value> {
        let entry = |(name, setting): (&String, &T)| Some((name.clone(), setting.write()?.into()));
        Some(Value::Table(self.iter().filter_map(entry).collect()))
    }
}

/// A duration as Go writes it: `1m30s`, `100ms`; a bare `0` too.
pub(super) fn duration(value: &Value) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a duration like 10s, 1m30s or 100ms";
    match value {
        Value::Text(text) => go_duration(text).ok_or(EXPECTED),
        _ => Err(EXPECTED),
    }
}

fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        total = total.checked_add(amount_of(amount, &after[..unit])?)?;
        rest = &after[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// Exact to the nanosecond: whole part and fraction are read apart.
fn amount_of(amount: &str, unit: &str) -> Option<Duration> {
    let nanoseconds: u128 = match unit {
        "h" => 3_600_000_000_000,
        "m" => 60_000_000_000,
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" | "µs" | "μs" => 1000,
        "ns" => 1,
        _ => return None,
    };
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok().map(u128::from) };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let total = digits(whole)?.checked_mul(nanoseconds)? + digits(fraction)? * nanoseconds / scale;
    u64::try_from(total).ok().map(Duration::from_nanos)
}

/// In the largest unit that needs no fraction.
fn write_duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    for (unit, size) in [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000)] {
        if nanoseconds > 0 && nanoseconds.is_multiple_of(size) {
            return format!("{}{unit}", nanoseconds / size);
        }
    }
    if nanoseconds == 0 { "0s".into() } else { format!("{nanoseconds}ns") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases =
            [("0s", 0), ("0", 0), ("100ms", 100), ("1m30s", 90_000), ("1h", 3_600_000), ("1.5s", 1500), (".5s", 500)];
        for (text, milliseconds) in cases {
            assert_eq!(go_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "10", "10x", "-1s", "1..5s", ".s", "99999999999h"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_reads_back(nanoseconds in any::<u64>()) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(go_duration(&write_duration(duration)), Some(duration));
            let rounded = Duration::from_secs(nanoseconds >> 40);
            prop_assert_eq!(go_duration(&write_duration(rounded)), Some(rounded));
        }
    }
}
