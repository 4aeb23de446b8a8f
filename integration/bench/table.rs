//! Pairs of measurements, and the table that is made of them.

use std::fmt;

/// What one row measured: value by value, theirs beside ours.
pub struct Pairs {
    /// Unit of the values.
    pub unit: &'static str,
    /// Theirs and ours, measured one after the other.
    pub values: Vec<(f64, f64)>,
}

/// What we ask of a row, judged by the medians.
#[derive(Clone, Copy)]
pub enum Bar {
    /// Nothing: told for what it is.
    None,
    /// The ratio, ours to theirs, at most this.
    RatioAtMost(f64),
    /// The ratio, ours to theirs, at least this.
    RatioAtLeast(f64),
    /// Ours, in the row's unit, at most this.
    OursAtMost(f64),
}

/// The rows so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<(&'static str, Bar, Pairs)>,
}

impl Table {
    /// Adds a row.
    pub fn add(&mut self, name: &'static str, bar: Bar, pairs: Pairs) {
        self.rows.push((name, bar, pairs));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| row | containerd | gantry | ratio (median of pairs) | 10 % to 90 % of pairs | n | bar | |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for (name, bar, pairs) in &self.rows {
            let (theirs, ours) = (sorted(pairs, |p| p.0), sorted(pairs, |p| p.1));
            let ratios = sorted(pairs, |p| p.1 / p.0);
            writeln!(
                f,
                "| {name} | {:.2} {unit} | {:.2} {unit} | {:.3} | {:.3} to {:.3} | {} | {bar} | {} |",
                at(&theirs, 0.5),
                at(&ours, 0.5),
                at(&ratios, 0.5),
                at(&ratios, 0.1),
                at(&ratios, 0.9),
                ratios.len(),
                bar.verdict(at(&ratios, 0.5), at(&ours, 0.5)),
                unit = pairs.unit,
            )?;
        }
        Ok(())
    }
}

impl Bar {
    fn verdict(self, ratio: f64, ours: f64) -> &'static str {
        let passed = match self {
            Bar::None => return "",
            Bar::RatioAtMost(bar) => ratio <= bar,
            Bar::RatioAtLeast(bar) => ratio >= bar,
            Bar::OursAtMost(bar) => ours <= bar,
        };
        if passed { "pass" } else { "FAIL" }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::None => Ok(()),
            Bar::RatioAtMost(bar) => write!(f, "≤ {bar}"),
            Bar::RatioAtLeast(bar) => write!(f, "≥ {bar}"),
            Bar::OursAtMost(bar) => write!(f, "ours ≤ {bar}"),
        }
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
