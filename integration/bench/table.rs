//! Pairs of measurements, and the table that is made of them.

use std::fmt;

/// What one row measured: value by value, theirs beside ours.
pub struct Pairs {
    /// Unit of the values.
    pub unit: &'static str,
    /// Theirs and ours, measured one after the other.
    pub values: Vec<(f64, f64)>,
}

/// The rows so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<(&'static str, Pairs)>,
}

impl Table {
    /// Adds a row.
    pub fn add(&mut self, name: &'static str, pairs: Pairs) {
        self.rows.push((name, pairs));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| row | containerd | gantry | ratio (median of pairs) | 10 % to 90 % of pairs | n |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for (name, pairs) in &self.rows {
            let (theirs, ours) = (sorted(pairs, |p| p.0), sorted(pairs, |p| p.1));
            let ratios = sorted(pairs, |p| p.1 / p.0);
            writeln!(
                f,
                "| {name} | {:.2} {unit} | {:.2} {unit} | {:.3} | {:.3} to {:.3} | {} |",
                at(&theirs, 0.5),
                at(&ours, 0.5),
                at(&ratios, 0.5),
                at(&ratios, 0.1),
                at(&ratios, 0.9),
                ratios.len(),
                unit = pairs.unit,
            )?;
        }
        Ok(())
    }
}

fn sorted(pairs: &Pairs, value: impl Fn(&(f64, f64)) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = pairs.values.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value at this fraction of a sorted list.
fn at(sorted: &[f64], fraction: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * fraction).round() as usize).copied().unwrap_or(f64::NAN)
}
