//! The records of one kind in a namespace, by name: a map that is cheap to copy, however many records it holds.
//!
//! Readers hold a copy as of one commit, and the committer goes on with its own. Records lie in runs of limited length,
//! which copies share: who changes a record copies its run and the list of runs, and nothing else. So a writer waits
//! for no reader, and hardly longer for a hundred thousand records than for ten.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::memory::Value;

/// Records in a run at most; one that gets longer is parted in the middle.
const RUN: usize = 64;

/// A record's name and its value.
type Record = (Box<[u8]>, Value);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    /// Runs, none of them empty, each by a name that is not behind its first one. A name belongs to the last run that
    /// does not begin behind it.
    runs: BTreeMap<Box<[u8]>, Arc<Vec<Record>>>,
}

/// A place between two records, for who goes on from it later.
#[derive(Debug)]
pub(crate) struct Place {
    run: Option<Arc<Vec<Record>>>,
    /// Where in the run the record behind it is.
    at: usize,
}

impl Records {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&Value> {
        let (_, run) = self.runs.range::<[u8], _>(up_to(name)).next_back()?;
        find(run, name).ok().map(|at| &run[at].1)
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Enters a record, over the one of that name.
    pub(crate) fn insert(&mut self, name: Box<[u8]>, value: Value) {
        let run = match self.runs.range_mut::<[u8], _>(up_to(&name)).next_back() {
            Some((_, run)) => run,
            // Before all others; the run that begins so takes every name.
            None => self.runs.entry(Box::default()).or_default(),
        };
        let run = Arc::make_mut(run);
        match find(run, &name) {
            Ok(at) => run[at].1 = value,
            Err(at) => run.insert(at, (name, value)),
        }
        if run.len() > RUN {
            // One more than stays, so that it need not grow in the end.
            let mut upper = Vec::with_capacity(RUN + 1);
            upper.extend(run.drain(RUN / 2..));
            run.shrink_to_fit();
            self.runs.insert(upper[0].0.clone(), Arc::new(upper));
        }
    }

    /// Removes a record, if it is there.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        let Some((begin, run)) = self.runs.range_mut::<[u8], _>(up_to(name)).next_back() else { return };
        let Ok(at) = find(run, name) else { return };
        let run = Arc::make_mut(run);
        run.remove(at);
        if run.is_empty() {
            let begin = begin.clone();
            self.runs.remove(&begin);
        }
    }

    /// All records, sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Box<[u8]>, &Value)> {
        self.from(Bound::Unbounded)
    }

    /// The records behind `from`, sorted by name.
    pub(crate) fn from<'r>(&'r self, from: Bound<&'r [u8]>) -> impl Iterator<Item = (&'r Box<[u8]>, &'r Value)> {
        let begin = match from {
            Bound::Included(name) | Bound::Excluded(name) => self.runs.range::<[u8], _>(up_to(name)).next_back(),
            Bound::Unbounded => None,
        };
        let first: Bound<&[u8]> = begin.map_or(Bound::Unbounded, |(begin, _)| Bound::Included(begin));
        let before = move |(name, _): &Record| match from {
            Bound::Included(from) => **name < *from,
            Bound::Excluded(from) => **name <= *from,
            Bound::Unbounded => false,
        };
        let runs = self.runs.range::<[u8], _>((first, Bound::Unbounded));
        runs.flat_map(move |(_, run)| &run[run.partition_point(before)..]).map(|(name, value)| (name, value))
    }

    /// The place before the first record whose name is `name` or behind it.
    pub(crate) fn place(&self, name: &[u8]) -> Place {
        let run = self.runs.range::<[u8], _>(up_to(name)).next_back();
        let run = run.or_else(|| self.runs.first_key_value()).map(|(_, run)| run.clone());
        Place { at: run.as_ref().map_or(0, |run| run.partition_point(|(other, _)| **other < *name)), run }
    }

    /// The record behind a place in this very map, or in the one it is a copy of; the place moves behind it.
    pub(crate) fn step<'p>(&self, place: &'p mut Place) -> Option<(&'p [u8], &'p Value)> {
        let run = place.run.as_ref()?;
        if run.len() <= place.at {
            let behind = (Bound::Excluded(&*run.last()?.0), Bound::Unbounded);
            let next = self.runs.range::<[u8], _>(behind).next()?.1.clone();
            *place = Place { run: Some(next), at: 0 };
        }
        place.at += 1;
        place.run.as_ref()?.get(place.at - 1).map(|(name, value)| (&**name, value))
    }

    /// The records whose name begins with `prefix`, sorted by name.
    pub(crate) fn starting<'r>(&'r self, prefix: &'r [u8]) -> impl Iterator<Item = (&'r Box<[u8]>, &'r Value)> {
        self.from(Bound::Included(prefix)).take_while(move |(name, _)| name.starts_with(prefix))
    }
}

fn up_to(name: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, Bound::Included(name))
}

fn find(run: &[Record], name: &[u8]) -> Result<usize, usize> {
    run.binary_search_by(|(other, _)| (**other).cmp(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Box<[u8]>, Value>;

    fn same<'r>(
        ours: impl Iterator<Item = (&'r Box<[u8]>, &'r Value)>,
        model: impl Iterator<Item = (&'r Box<[u8]>, &'r Value)>,
    ) -> bool {
        ours.eq(model)
    }

    fn name(number: u16) -> Box<[u8]> {
        // Some are empty, some begin like others.
        number.to_string().trim_start_matches('7').as_bytes().into()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn records_are_found_as_in_a_plain_map_and_copies_stay_as_they_were(
            changes in proptest::collection::vec((0u16..3000, any::<bool>()), 0..4000),
            asked in proptest::collection::vec(0u16..3000, 20),
        ) {
            let (mut ours, mut model) = (Records::default(), Model::new());
            let mut copies = Vec::new();
            for (at, (number, keep)) in changes.into_iter().enumerate() {
                if at % 500 == 499 {
                    copies.push((ours.clone(), model.clone()));
                }
                match keep || number > 500 {
                    true => {
                        ours.insert(name(number), Arc::from(at.to_le_bytes()));
                        model.insert(name(number), Arc::from(at.to_le_bytes()));
                    }
                    false => {
                        ours.remove(&name(number));
                        model.remove(&name(number));
                    }
                }
            }
            copies.push((ours, model));
            for (ours, model) in &copies {
                prop_assert!(same(ours.iter(), model.iter()));
                prop_assert!(ours.runs.values().all(|run| (1..=RUN).contains(&run.len())));
                for name in asked.iter().map(|number| name(*number)) {
                    prop_assert_eq!(ours.get(&name), model.get(&name));
                    prop_assert_eq!(ours.contains(&name), model.contains_key(&name));
                    for from in [Bound::Included(&*name), Bound::Excluded(&*name)] {
                        prop_assert!(same(ours.from(from), model.range::<[u8], _>((from, Bound::Unbounded))));
                    }
                    let (mut place, mut behind) = (ours.place(&name), model.range::<[u8], _>((Bound::Included(&*name), Bound::Unbounded)));
                    loop {
                        let step = ours.step(&mut place);
                        prop_assert_eq!(step, behind.next().map(|(name, value)| (&**name, value)));
                        if step.is_none() {
                            break;
                        }
                    }
                    let starting = model.iter().filter(|(other, _)| other.starts_with(&name));
                    prop_assert!(same(ours.starting(&name), starting));
                }
            }
        }
    }

    #[test]
    fn what_was_emptied_can_be_filled_again() {
        let mut records = Records::default();
        for round in 0..3u8 {
            (0..1000).for_each(|number| records.insert(name(number), Arc::from([round])));
            assert_eq!(records.iter().count(), (0..1000).map(name).collect::<std::collections::BTreeSet<_>>().len());
            (0..1000).for_each(|number| records.remove(&name(number)));
            assert!(records.runs.is_empty());
        }
    }
}
