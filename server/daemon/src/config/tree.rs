//! A configuration as a tree of values, each with the file and line it comes from. Knows no key.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Mistake, Place, Report};

/// Values by name.
pub(super) type Table = BTreeMap<String, Node>;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What TOML can hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date, a time, or a number too large, as written.
    Other(String),
    List(Vec<Node>),
    Table(Table),
}

impl PartialEq for Node {
    /// Places do not count.
    fn eq(&self, other: &Node) -> bool {
        self.value == other.value
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Node {
        Node { value, place: Place::nowhere() }
    }
}

impl Node {
    /// The table, where it is one.
    pub(super) fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(super) fn table_mut(&mut self) -> Option<&mut Table> {
        match &mut self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it says nothing: what Go takes for the zero value.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Value::Text(text) => text.is_empty() || text == "0s",
            Value::Integer(number) => *number == 0,
            Value::Float(number) => *number == 0.0,
            Value::Bool(set) => !set,
            Value::Other(_) => false,
            Value::List(list) => list.is_empty(),
            Value::Table(table) => table.values().all(Node::is_empty),
        }
    }
}

/// The value at the end of a path.
pub(super) fn get<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Node> {
    let (first, rest) = path.split_first()?;
    let node = table.get(*first)?;
    if rest.is_empty() { Some(node) } else { get(node.table()?, rest) }
}

/// Takes the value at the end of a path out, and the tables on the way that are empty then.
pub(super) fn take(table: &mut Table, path: &[&str]) -> Option<Node> {
    let (first, rest) = path.split_first()?;
    if rest.is_empty() {
        return table.remove(*first);
    }
    let inner = table.get_mut(*first)?.table_mut()?;
    let taken = take(inner, rest);
    if taken.is_some() && inner.is_empty() {
        table.remove(*first);
    }
    taken
}

/// Puts a value at the end of a path, unless there is one.
pub(super) fn put(table: &mut Table, path: &[&str], node: Node) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.entry((*first).to_owned()).or_insert(node);
        return;
    }
    let place = node.place.clone();
    let inner = table.entry((*first).to_owned()).or_insert_with(|| Node { value: Value::Table(Table::new()), place });
    if let Some(inner) = inner.table_mut() {
        put(inner, rest, node);
    }
}

/// Every value that is no table, with the names on the way to it.
pub(super) fn leaves(table: &Table) -> Vec<(Vec<String>, &Node)> {
    let mut found = Vec::new();
    for (name, node) in table {
        match node.table() {
            Some(inner) if !inner.is_empty() => found.extend(leaves(inner).into_iter().map(|(mut path, node)| {
                path.insert(0, name.clone());
                (path, node)
            })),
            _ => found.push((vec![name.clone()], node)),
        }
    }
    found
}

/// Reads text that came from `path`.
///
/// # Errors
/// Where it is no TOML: the first thing wrong with it.
pub(super) fn parse(path: &Path, text: &str) -> Result<Table, Mistake> {
    let reader = Reader { file: path.into(), lines: line_starts(text) };
    let table = DeTable::parse(text).map_err(|error| {
        let mut report = Report::default();
        report.mistake(&reader.place(error.span().unwrap_or_default()), error.message());
        report.mistakes.remove(0)
    })?;
    Ok(reader.table(table.get_ref()))
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1)).collect()
}

struct Reader {
    file: Arc<Path>,
    /// Offsets of the lines' first bytes.
    lines: Vec<usize>,
}

impl Reader {
    fn place(&self, span: Range<usize>) -> Place {
        Place::new(&self.file, self.lines.partition_point(|start| *start <= span.start))
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            let node = Node { value: self.value(value.get_ref()), place: self.place(name.span()) };
            (name.get_ref().to_string(), node)
        };
        table.iter().map(entry).collect()
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => match integer(number.as_str(), number.radix()) {
                Some(number) => Value::Integer(number),
                None => Value::Other(number.as_str().to_owned()),
            },
            DeValue::Float(number) => number.as_str().replace('_', "").parse().map_or(Value::Float(0.0), Value::Float),
            DeValue::Boolean(set) => Value::Bool(*set),
            DeValue::Datetime(date) => Value::Other(date.to_string()),
            DeValue::Array(list) => {
                let node = |item: &Spanned<DeValue<'_>>| Node {
                    value: self.value(item.get_ref()),
                    place: self.place(item.span()),
                };
                Value::List(list.iter().map(node).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}

fn integer(text: &str, radix: u32) -> Option<i64> {
    let digits = text.replace('_', "");
    let digits = digits.trim_start_matches("0x").trim_start_matches("0o").trim_start_matches("0b");
    i64::from_str_radix(digits, radix).ok()
}

/// As a file that reads back to the same tree.
pub(super) fn text(table: &Table) -> String {
    let table: toml::Table = table.iter().map(|(name, node)| (name.clone(), plain(&node.value))).collect();
    // A tree of values always has a text.
    toml::to_string_pretty(&table).unwrap_or_default()
}

fn plain(value: &Value) -> toml::Value {
    match value {
        Value::Text(text) => toml::Value::String(text.clone()),
        Value::Integer(number) => toml::Value::Integer(*number),
        Value::Float(number) => toml::Value::Float(*number),
        Value::Bool(set) => toml::Value::Boolean(*set),
        Value::Other(date) => date.parse().map_or_else(|_| toml::Value::String(date.clone()), toml::Value::Datetime),
        Value::List(list) => toml::Value::Array(list.iter().map(|node| plain(&node.value)).collect()),
        Value::Table(table) => {
            toml::Value::Table(table.iter().map(|(name, node)| (name.clone(), plain(&node.value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let table = parse(Path::new("f"), "a = 1\n[b]\nc = [\n 'x',\n 'y']\n").unwrap();
        assert_eq!(get(&table, &["a"]).unwrap().place.to_string(), "f:1");
        let c = get(&table, &["b", "c"]).unwrap();
        assert_eq!(c.place.to_string(), "f:3");
        let Value::List(items) = &c.value else { panic!() };
        assert_eq!(items[1].place.to_string(), "f:5");
    }

    #[test]
    fn taking_a_value_leaves_no_empty_tables() {
        let mut table = parse(Path::new("f"), "[a.b]\nc = 1\n[d]\ne = 2\n").unwrap();
        assert!(take(&mut table, &["a", "b", "c"]).is_some());
        assert_eq!(table.keys().collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn numbers_of_any_base_and_dates_are_kept() {
        let table = parse(Path::new("f"), "a = 0x_ff\nb = 1_000\nc = -3\nd = 2020-01-02\ne = 1e3\n");
        // A base's prefix takes no underscore behind it.
        assert!(table.is_err());
        let text = "a = 0xff\nb = 1_000\nc = -3\nd = 2020-01-02\ne = 1e3\n";
        let table = parse(Path::new("f"), text).unwrap();
        assert_eq!(table["a"].value, Value::Integer(255));
        assert_eq!(table["b"].value, Value::Integer(1000));
        assert_eq!(table["d"].value, Value::Other("2020-01-02".into()));
        assert_eq!(parse(Path::new("g"), &super::text(&table)).unwrap(), table);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "\\PC{0,12}".prop_map(Value::Text),
            any::<i64>().prop_map(Value::Integer),
            any::<bool>().prop_map(Value::Bool),
            (-1e9..1e9).prop_map(Value::Float),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone().prop_map(Node::from), 0..4).prop_map(Value::List),
                prop::collection::btree_map("\\PC{0,6}", inner.prop_map(Node::from), 0..4).prop_map(Value::Table),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(table in prop::collection::btree_map("\\PC{0,6}", values().prop_map(Node::from), 0..5)) {
            let text = text(&table);
            prop_assert_eq!(parse(Path::new("f"), &text).unwrap(), table);
        }

        #[test]
        fn nothing_a_file_can_hold_makes_the_reader_panic(text in "(?s).{0,200}") {
            let _ = parse(Path::new("f"), &text);
        }
    }
}
