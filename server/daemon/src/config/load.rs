//! Files and their imports, each brought to the newest version, then laid one over the other.
//!
//! The rules are containerd's: an imported file counts more than the one that imports it; sections are merged key by
//! key; lists at the top are joined without repeating; a proxy plug-in or stream processor is replaced as a whole.
//! Unlike there, a zero or an empty text that is written counts as written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::migrate::{self, NEWEST};
use super::report::{Place, Report};
use super::tree::{self, Node, Table, Value};

/// Most files of one configuration.
const MOST_FILES: usize = 1000;

/// Largest file in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// Lists at the top, of which files add to each other's.
const JOINED: &[&str] = &["disabled_plugins", "imports", "required_plugins"];

/// Sections whose entries are replaced rather than merged.
const REPLACED: &[&str] = &["proxy_plugins", "stream_processors"];

/// The whole configuration; `further` are patterns of files that come last. Gives the version-4 tree.
pub(super) fn load(path: Option<&Path>, further: &[&str], report: &mut Report) -> Table {
    let mut pending: Vec<(PathBuf, Place)> = path.map(|path| (path.into(), Place::of_file(path))).into_iter().collect();
    for pattern in further {
        pending.extend(matches(Path::new(pattern), &Place::of_file(Path::new(pattern)), report));
    }
    let mut whole = Table::new();
    let mut seen = BTreeSet::new();
    let mut at = 0;
    while let Some((path, from)) = pending.get(at).cloned() {
        at += 1;
        if at > MOST_FILES {
            report.mistake(&from, format!("more than {MOST_FILES} files are imported"));
            break;
        }
        // A file that imports itself, by whatever detour and name, is read once.
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        let Some(table) = file(&path, &from, report) else { continue };
        pending.extend(imports(&path, &table, report));
        lay_over(&mut whole, table, &[]);
    }
    whole
}

/// One text without its imports.
pub(super) fn one(path: &Path, text: &str, report: &mut Report) -> Table {
    match tree::parse(path, text) {
        Ok(table) => migrate::migrate(table, report),
        Err(mistake) => {
            report.mistakes.push(mistake);
            Table::new()
        }
    }
}

fn file(path: &Path, from: &Place, report: &mut Report) -> Option<Table> {
    let failed = |report: &mut Report, reason: &str| {
        let name = path.display();
        report.mistake(from, format!("{name} cannot be read: {reason}"));
    };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > MOST_BYTES => {
            failed(report, "it is larger than 4 MiB");
            return None;
        }
        Ok(meta) if meta.is_dir() => {
            failed(report, "it is a directory; `imports` takes files, such as DIRECTORY/*.toml");
            return None;
        }
        _ => {}
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Some(one(path, &text, report)),
        Err(error) => {
            failed(report, &error.to_string());
            None
        }
    }
}

/// The files that one file imports: patterns and paths, relative to its directory.
fn imports(path: &Path, table: &Table, report: &mut Report) -> Vec<(PathBuf, Place)> {
    let Some(Node { value: Value::List(list), .. }) = table.get("imports") else { return Vec::new() };
    let base = path.parent().unwrap_or(Path::new(""));
    let texts = list.iter().filter_map(|node| Some((node.text()?, &node.place)));
    texts.flat_map(|(text, place)| matches(&base.join(text), place, report)).collect()
}

/// The files that a pattern means, by name; a path without a star means itself, there or not.
fn matches(pattern: &Path, place: &Place, report: &mut Report) -> Vec<(PathBuf, Place)> {
    let text = pattern.to_string_lossy();
    if !text.contains('*') {
        return vec![(pattern.to_owned(), place.clone())];
    }
    let options = glob::MatchOptions { require_literal_leading_dot: false, ..glob::MatchOptions::default() };
    match glob::glob_with(&text, options) {
        Ok(paths) => paths.filter_map(Result::ok).map(|path| (path, place.clone())).collect(),
        Err(error) => {
            report.mistake(place, format!("`{text}` is no pattern: {error}"));
            Vec::new()
        }
    }
}

/// Puts `over` on top of `base`.
fn lay_over(base: &mut Table, over: Table, path: &[&str]) {
    for (name, node) in over {
        match base.get_mut(&name) {
            None => drop(base.insert(name, node)),
            Some(under) => match (&mut under.value, node.value) {
                (Value::Table(under), Value::Table(over))
                    if !path.first().is_some_and(|top| REPLACED.contains(top)) =>
                {
                    let path: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
                    lay_over(under, over, &path);
                }
                (Value::List(under), Value::List(over)) if path.is_empty() && JOINED.contains(&name.as_str()) => {
                    let fresh: Vec<Node> = over.into_iter().filter(|node| !under.contains(node)).collect();
                    under.extend(fresh);
                }
                (_, value) => *under = Node { value, place: node.place },
            },
        }
    }
}

/// The version a file says it has.
pub(super) fn version(table: &Table, report: &mut Report) -> i64 {
    match table.get("version") {
        // What containerd takes a file without one for.
        None => 1,
        Some(Node { value: Value::Integer(0), .. }) => 1,
        Some(Node { value: Value::Integer(version), .. }) if (1..=NEWEST).contains(version) => *version,
        Some(node) => {
            report.mistake(&node.place, format!("`version` must be a version from 1 to {NEWEST}"));
            NEWEST
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(files: &[(&str, &str)]) -> Files {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = folder.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Files(folder)
        }

        fn load(&self) -> (Table, Report) {
            let mut report = Report::default();
            let table = load(Some(&self.0.path().join("config.toml")), &[], &mut report);
            (table, report)
        }
    }

    fn text<'a>(table: &'a Table, path: &[&str]) -> Option<&'a str> {
        tree::get(table, path)?.text()
    }

    #[test]
    fn imports_are_relative_to_the_file_and_count_more_than_it() {
        let files = Files::new(&[
            ("config.toml", "version = 4\nroot = '/a'\nstate = '/a'\nimports = ['conf.d/*.toml']\n"),
            ("conf.d/10.toml", "version = 4\nroot = '/b'\nimports = ['../deep/x.toml']\n"),
            ("conf.d/20.toml", "version = 4\nroot = '/c'\n"),
            ("conf.d/not.read", "root = '/d'\n"),
            ("deep/x.toml", "version = 4\nstate = '/e'\n"),
        ]);
        let (table, report) = files.load();
        assert!(report.mistakes.is_empty(), "{report:?}");
        assert_eq!((text(&table, &["root"]), text(&table, &["state"])), (Some("/c"), Some("/e")));
    }

    #[test]
    fn files_that_import_each_other_are_read_once() {
        let files = Files::new(&[
            ("config.toml", "version = 4\nimports = ['b.toml', './config.toml', '*.toml']\nroot = '/a'\n"),
            ("b.toml", "version = 4\nimports = ['config.toml']\nroot = '/b'\n"),
        ]);
        let (table, report) = files.load();
        assert!(report.mistakes.is_empty(), "{report:?}");
        assert_eq!(text(&table, &["root"]), Some("/b"));
    }

    #[test]
    fn an_import_that_is_not_there_is_a_mistake_of_the_line_that_names_it_and_an_empty_pattern_is_none() {
        let files = Files::new(&[("config.toml", "version = 4\nimports = [\n'nothing/*.toml',\n'gone.toml']\n")]);
        let (_, report) = files.load();
        let mistakes: Vec<String> = report.mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].contains("config.toml:4: ") && mistakes[0].contains("gone.toml"), "{mistakes:?}");
    }

    #[test]
    fn files_of_several_versions_meet_in_the_newest() {
        let files = Files::new(&[
            ("config.toml", "version = 2\nimports = ['b.toml']\n[grpc]\naddress = '/old'\ngid = 7\n"),
            ("b.toml", "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/new'\n"),
        ]);
        let (table, _) = files.load();
        let grpc = ["plugins", "io.containerd.server.v1.grpc"];
        assert_eq!(text(&table, &[grpc[0], grpc[1], "address"]), Some("/new"));
        assert_eq!(tree::get(&table, &[grpc[0], grpc[1], "gid"]).map(|n| &n.value), Some(&Value::Integer(7)));
    }

    #[test]
    fn sections_merge_lists_at_the_top_join_and_proxies_are_replaced() {
        let main = "version = 4\nimports = ['b.toml']\ndisabled_plugins = ['a.b', 'c.d']\n\
                    [proxy_plugins.x]\ntype = 'snapshot'\naddress = '/x'\n\
                    [plugins.'p.v1'.deep]\none = 1\ntwo = 2\nlist = ['a']\n";
        let over = "version = 4\ndisabled_plugins = ['c.d', 'e.f']\n[proxy_plugins.x]\ntype = 'content'\n\
                    [plugins.'p.v1'.deep]\ntwo = 0\nlist = ['b']\n";
        let (table, _) = Files::new(&[("config.toml", main), ("b.toml", over)]).load();
        let Value::List(disabled) = &table["disabled_plugins"].value else { panic!() };
        assert_eq!(disabled.iter().filter_map(Node::text).collect::<Vec<_>>(), ["a.b", "c.d", "e.f"]);
        assert_eq!(text(&table, &["proxy_plugins", "x", "type"]), Some("content"));
        assert!(tree::get(&table, &["proxy_plugins", "x", "address"]).is_none());
        let deep = tree::get(&table, &["plugins", "p.v1", "deep"]).unwrap().table().unwrap();
        assert_eq!((&deep["one"].value, &deep["two"].value), (&Value::Integer(1), &Value::Integer(0)));
        let Value::List(list) = &deep["list"].value else { panic!() };
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn the_mistakes_of_all_files_are_told() {
        let files = Files::new(&[
            ("config.toml", "version = 9\nimports = ['b.toml', 'c.toml']\n"),
            ("b.toml", "root = \n"),
            ("c.toml", "version = 'x'\n"),
        ]);
        let (_, report) = files.load();
        let mistakes: Vec<String> = report.mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }
}
