//! Network configurations: files of a directory, in the order of their names. Read whenever they are needed, so that
//! a change counts from the next pod on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::network::{Error, Result};

/// No sane configuration is larger.
const MAX_BYTES: u64 = 1 << 20;

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::network) struct Version(u8, u8, u8);

impl Version {
    /// DEL and CHECK are told the result.
    pub(super) const RESULT_ON_DEL: Version = Version(0, 4, 0);
    /// STATUS and GC exist.
    pub(super) const STATUS_AND_GC: Version = Version(1, 1, 0);
    /// Results without the field `version` in addresses.
    pub(super) const ONE: Version = Version(1, 0, 0);
    const NEWEST: Version = Version(1, 1, 0);
    /// What a configuration that names no version means.
    const OLDEST: Version = Version(0, 1, 0);

    fn parse(text: &str) -> Result<Version, String> {
        let bad = || format!("cniVersion {text:?} is no version");
        let mut parts = text.split('.').map(|part| part.parse::<u8>().map_err(|_| bad()));
        let mut next = || parts.next().unwrap_or(Ok(0));
        let version = Version(next()?, next()?, next()?);
        if parts.next().is_some() { Err(bad()) } else { Ok(version) }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A network: plug-ins that are called one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::network) struct ConfList {
    /// The network's name.
    pub(in crate::network) name: String,
    /// Version of the specification that is spoken with its plug-ins.
    pub(in crate::network) version: Version,
    /// Never call CHECK.
    pub(super) disable_check: bool,
    /// Never call GC.
    pub(super) disable_gc: bool,
    /// The plug-ins' own configurations. Each has a `type`.
    pub(in crate::network) plugins: Vec<Map<String, Value>>,
    /// The file's text as it was.
    pub(super) text: String,
    /// Where it was read from.
    pub(in crate::network) path: PathBuf,
}

impl ConfList {
    /// Name of a plug-in's program.
    pub(super) fn kind(plugin: &Map<String, Value>) -> &str {
        plugin.get("type").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The first `max` configurations of a directory, or all for 0. None at all is an empty list.
///
/// # Errors
/// [`Error::BadConfig`] for a file, among those that would be used, that cannot be.
pub(in crate::network) fn load(dir: &Path, max: usize) -> Result<Vec<ConfList>> {
    let mut lists: Vec<ConfList> = Vec::new();
    for path in files(dir)? {
        if max != 0 && lists.len() == max {
            break;
        }
        let list = read(&path).map_err(|reason| Error::BadConfig { path: path.clone(), reason })?;
        if let Some(twin) = lists.iter().find(|l| l.name == list.name) {
            let reason = format!("network {:?} is defined in {} too", list.name, twin.path.display());
            return Err(Error::BadConfig { path, reason });
        }
        lists.push(list);
    }
    Ok(lists)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(Error::io("list CNI configurations in", dir))?,
    };
    let mut files = Vec::new();
    for entry in listed {
        let path = entry.map_err(Error::io("list CNI configurations in", dir))?.path();
        let wanted = path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
        if wanted && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<ConfList, String> {
    let text = read_text(path)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(mut object) = value else { return Err("not a JSON object".into()) };
    let is_list = path.extension().is_some_and(|e| e == "conflist");
    if is_list && !flag(&object, "loadOnlyInlinedPlugins")? {
        add_plugins_beside(path, &mut object)?;
    }
    let mut list = parse(object, is_list)?;
    list.text = text;
    list.path = path.to_owned();
    Ok(list)
}

/// Plug-ins may also lie in files of their own: `NAME/*.conf` beside the list called NAME.
fn add_plugins_beside(path: &Path, object: &mut Map<String, Value>) -> Result<(), String> {
    let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
    let (true, Some(dir)) = (is_valid_name(name), path.parent().map(|dir| dir.join(name))) else { return Ok(()) };
    let files = files(&dir).map_err(|e| e.to_string())?;
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "conf")) {
        let named = |error: String| format!("{}: {error}", file.display());
        let plugin: Value = serde_json::from_str(&read_text(file).map_err(named)?).map_err(|e| named(e.to_string()))?;
        let plugins = object.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
        plugins.as_array_mut().ok_or("plugins: want a list")?.push(plugin);
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_BYTES {
        return Err(format!("{length} bytes; a configuration has {MAX_BYTES} at most"));
    }
    fs::read_to_string(path).map_err(|e| e.to_string())
}

/// Understands a list, or one plug-in's configuration as a list of one.
fn parse(mut object: Map<String, Value>, is_list: bool) -> Result<ConfList, String> {
    let name = match object.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(format!("name {other} is no text")),
        None => return Err("no name".into()),
    };
    if !is_valid_name(&name) {
        return Err(format!("name {name:?}: want letters, digits, '_', '.', '-', and a letter or digit first"));
    }
    let version = version(&object)?;
    let (disable_check, disable_gc) = (flag(&object, "disableCheck")?, flag(&object, "disableGC")?);
    let plugins = if is_list {
        plugins(&mut object)?
    } else {
        if object.get("plugins").is_some() && !object.contains_key("type") {
            return Err("a list of plug-ins must be in a file *.conflist".into());
        }
        vec![object]
    };
    for (i, plugin) in plugins.iter().enumerate() {
        let kind = ConfList::kind(plugin);
        if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
            return Err(format!("plug-in {i}: type {:?} is no name of a program", plugin.get("type")));
        }
    }
    Ok(ConfList { name, version, disable_check, disable_gc, plugins, text: String::new(), path: PathBuf::new() })
}

fn plugins(object: &mut Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    let Some(Value::Array(listed)) = object.remove("plugins") else {
        return Err("plugins: want a list".into());
    };
    if listed.is_empty() {
        return Err("plugins: the list is empty".into());
    }
    let objects = listed.into_iter().enumerate().map(|(i, plugin)| match plugin {
        Value::Object(plugin) => Ok(plugin),
        other => Err(format!("plug-in {i}: {other} is no object")),
    });
    objects.collect()
}

/// The newest version that the configuration names and that is known here.
fn version(object: &Map<String, Value>) -> Result<Version, String> {
    let mut named = Vec::new();
    match object.get("cniVersion") {
        Some(Value::String(text)) if !text.is_empty() => named.push(text.as_str()),
        None | Some(Value::String(_)) => {}
        Some(other) => return Err(format!("cniVersion {other} is no text")),
    }
    match object.get("cniVersions") {
        Some(Value::Array(more)) => {
            for item in more {
                named.push(item.as_str().ok_or_else(|| format!("cniVersions: {item} is no text"))?);
            }
        }
        None => {}
        Some(other) => return Err(format!("cniVersions {other} is no list")),
    }
    let versions: Vec<Version> = named.iter().map(|text| Version::parse(text)).collect::<Result<_, _>>()?;
    if versions.is_empty() {
        return Ok(Version::OLDEST);
    }
    let known = versions.iter().copied().filter(|v| *v <= Version::NEWEST).max();
    known.ok_or_else(|| format!("cniVersion {:?}: {} is the newest known here", named, Version::NEWEST))
}

/// libcni takes flags as booleans and as texts.
fn flag(object: &Map<String, Value>, name: &str) -> Result<bool, String> {
    match object.get(name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{name} {other}: want true or false")),
    }
}

/// Names of networks and of containers.
pub(in crate::network) fn is_valid_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    const ONE: &str =
        r#"{"cniVersion":"1.0.0","name":"one","plugins":[{"type":"bridge","capabilities":{"ips":true}}]}"#;

    #[test]
    fn configurations_come_in_the_order_of_their_names_and_only_as_many_as_wanted() {
        let two = r#"{"cniVersion":"0.3.1","name":"two","type":"ptp"}"#;
        let dir = dir(&[("20-two.conf", two), ("10-one.conflist", ONE), ("README", "x"), ("30.json", "rubbish")]);
        let names = |max| load(dir.path(), max).map(|l| l.into_iter().map(|l| l.name).collect::<Vec<_>>());
        assert_eq!(names(1).unwrap(), ["one"]);
        assert_eq!(names(2).unwrap(), ["one", "two"]);
        let error = names(0).unwrap_err().to_string();
        assert!(error.contains("30.json") && error.contains("not JSON"), "{error}");
    }

    #[test]
    fn no_directory_and_an_empty_one_have_no_configurations() {
        assert_eq!(load(Path::new("/nonexistent/net.d"), 1).unwrap(), []);
        assert_eq!(load(dir(&[("notes.txt", "")]).path(), 0).unwrap(), []);
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_named_with_the_reason() {
        for (name, text, why) in [
            ("a.conflist", "[]", "not a JSON object"),
            ("a.conflist", r#"{"plugins":[]}"#, "no name"),
            ("a.conflist", r#"{"name":"../x","plugins":[]}"#, "name \"../x\""),
            ("a.conflist", r#"{"name":"x","plugins":[]}"#, "the list is empty"),
            ("a.conflist", r#"{"name":"x"}"#, "plugins: want a list"),
            ("a.conflist", r#"{"name":"x","plugins":[3]}"#, "plug-in 0: 3"),
            ("a.conflist", r#"{"name":"x","plugins":[{"type":"../../bin/sh"}]}"#, "no name of a program"),
            ("a.conf", r#"{"name":"x"}"#, "plug-in 0: type None"),
            ("a.conf", r#"{"name":"x","plugins":[{"type":"ptp"}]}"#, "*.conflist"),
            ("a.conf", r#"{"name":"x","type":"ptp","cniVersion":"9.0.0"}"#, "1.1.0 is the newest"),
            ("a.conf", r#"{"name":"x","type":"ptp","cniVersion":"one"}"#, "no version"),
            ("a.conf", r#"{"name":"x","type":"ptp","disableCheck":"maybe"}"#, "want true or false"),
        ] {
            let error = load(dir(&[(name, text)]).path(), 1).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn plugins_in_files_of_their_own_come_after_those_of_the_list() {
        let dir = dir(&[("a.conflist", ONE)]);
        fs::create_dir(dir.path().join("one")).unwrap();
        fs::write(dir.path().join("one/20.conf"), r#"{"type":"tuning"}"#).unwrap();
        fs::write(dir.path().join("one/10.conf"), r#"{"type":"portmap"}"#).unwrap();
        let kinds = || -> Vec<String> {
            let list = &load(dir.path(), 1).unwrap()[0];
            list.plugins.iter().map(|p| ConfList::kind(p).to_owned()).collect()
        };
        assert_eq!(kinds(), ["bridge", "portmap", "tuning"]);
        let only = ONE.replacen('{', r#"{"loadOnlyInlinedPlugins":true,"#, 1);
        fs::write(dir.path().join("a.conflist"), only).unwrap();
        assert_eq!(kinds(), ["bridge"]);
    }

    #[test]
    fn the_newest_known_of_several_versions_is_spoken() {
        let text = r#"{"name":"x","type":"ptp","cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.1","2.0.0"]}"#;
        let list = &load(dir(&[("a.conf", text)]).path(), 1).unwrap()[0];
        assert_eq!(list.version.to_string(), "1.0.0");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            if let Ok(Value::Object(object)) = serde_json::from_str(&text) {
                let _ = parse(object, true);
            }
        }
    }
}
