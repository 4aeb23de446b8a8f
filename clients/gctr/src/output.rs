//! Tables for people, JSON for programs: each command makes rows once and either is printed from them.

use std::io::Write;

use serde_json::{Map, Value};

/// Rows under named columns.
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &'static [&'static str]) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row, one value a column.
    pub fn row(&mut self, values: impl IntoIterator<Item = Value>) {
        self.rows.push(values.into_iter().collect());
    }

    /// Prints it, as JSON objects or aligned.
    pub fn print(&self, json: bool) {
        let text = if json { self.json() } else { self.aligned() };
        // A reader that went away, as `head` does, is no failure of ours.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }

    fn json(&self) -> String {
        let object = |row: &Vec<Value>| {
            let keys = self.columns.iter().map(|c| c.to_lowercase().replace(' ', "_"));
            Value::Object(keys.zip(row.iter().cloned()).collect::<Map<_, _>>()).to_string() + "\n"
        };
        self.rows.iter().map(object).collect()
    }

    fn aligned(&self) -> String {
        let header: Vec<String> = self.columns.iter().map(|c| c.to_uppercase()).collect();
        let lines: Vec<Vec<String>> =
            std::iter::once(header).chain(self.rows.iter().map(|r| r.iter().map(text).collect())).collect();
        let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &Vec<String>| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
            padded.join("  ").trim_end().to_owned() + "\n"
        };
        lines.iter().map(line).collect()
    }
}

/// One value as people read it: lists and maps joined by commas, nothing as a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) if s.is_empty() => "-".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => "-".into(),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k}={}", text(v))).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64, json: bool) -> Value {
    if json {
        return bytes.into();
    }
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B").into() } else { format!("{value:.1} {unit}").into() };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_is_a_dash() {
        let mut table = Table::new(&["id", "labels"]);
        table.row(["a-long-one".into(), Value::Object(Map::new())]);
        table.row(["b".into(), serde_json::json!({"x": "1", "y": "2"})]);
        assert_eq!(table.aligned(), "ID          LABELS\na-long-one  -\nb           x=1,y=2\n");
        assert_eq!(table.json().lines().nth(1).unwrap(), r#"{"id":"b","labels":{"x":"1","y":"2"}}"#);
    }

    #[test]
    fn sizes_are_whole_bytes_for_programs_and_rounded_for_people() {
        assert_eq!(size(1536, true), 1536);
        assert_eq!(size(1536, false), "1.5 KiB");
        assert_eq!(size(12, false), "12 B");
    }
}
