//! The commands of `gantryd config`: each gives a text.

use std::path::Path;

use super::Config;
use super::changes::written;
use super::load::one;
use super::migrate::NEWEST;
use super::report::{Mistake, Place, Report};
use super::tree::{self, Table, Value};

/// `config default`: what holds where no file says anything.
pub fn default_text() -> String {
    text(written(&Config::default()))
}

/// `config dump`: what holds, imports and all, as one file that reads back to the same.
pub fn dump(config: &Config) -> String {
    text(written(config))
}

fn text(mut table: Table) -> String {
    table.insert("version".into(), Value::Integer(NEWEST).into());
    tree::text(&table)
}

/// `config migrate`: what one file says, without its imports, in the newest version's words.
///
/// # Errors
/// Where it cannot be read, or is no configuration.
pub fn migrate(path: &Path) -> Result<String, Vec<Mistake>> {
    let mut report = Report::default();
    let table = match std::fs::read_to_string(path) {
        Ok(text) => one(path, &text, &mut report),
        Err(error) => {
            report.mistake(&Place::of_file(path), format!("cannot be read: {error}"));
            Table::new()
        }
    };
    report.close().map(|_| tree::text(&table))
}
