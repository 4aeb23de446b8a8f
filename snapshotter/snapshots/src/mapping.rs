//! The labels by which a client asks for a snapshot whose ids are mapped into a user namespace.

use gantry_mount::idmap::IdMap;
use gantry_types::Labels;

use crate::error::Error;

const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";

/// Maps of user and group ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    uids: IdMap,
    gids: IdMap,
}

impl Mapping {
    /// What the labels of `key` ask for.
    pub(crate) fn of(key: &str, labels: &Labels) -> Result<Option<Mapping>, Error> {
        let invalid =
            |label: &str, reason: String| Error::InvalidMapping { key: key.into(), label: label.into(), reason };
        let map = |label: &str, text: &String| {
            let map = IdMap::parse(text).map_err(|error| invalid(label, error.reason.into()))?;
            match map.to_host(0) {
                Some(_) => Ok(map),
                None => Err(invalid(label, "id 0 is not mapped".into())),
            }
        };
        match (labels.get(UIDS), labels.get(GIDS)) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Mapping { uids: map(UIDS, uids)?, gids: map(GIDS, gids)? })),
            (Some(_), None) => Err(invalid(GIDS, "it is missing".into())),
            (None, Some(_)) => Err(invalid(UIDS, "it is missing".into())),
        }
    }

    /// Owner and group, outside, of what id 0 owns inside.
    pub(crate) fn root(&self) -> (u32, u32) {
        (self.uids.to_host(0).unwrap_or(0), self.gids.to_host(0).unwrap_or(0))
    }

    /// As options of a mount.
    pub(crate) fn options(&self) -> [String; 2] {
        [format!("uidmap={}", self.uids), format!("gidmap={}", self.gids)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(uids: Option<&str>, gids: Option<&str>) -> Labels {
        let pairs = [(UIDS, uids), (GIDS, gids)];
        pairs.into_iter().filter_map(|(label, map)| Some((label.to_owned(), map?.to_owned()))).collect()
    }

    #[test]
    fn both_labels_make_a_mapping_and_one_alone_is_an_error() {
        assert_eq!(Mapping::of("k", &Labels::new()).unwrap(), None);
        let mapping = Mapping::of("k", &labels(Some("0:1000:1,1:5000:9"), Some("0:7:1"))).unwrap().unwrap();
        assert_eq!(mapping.root(), (1000, 7));
        assert_eq!(mapping.options(), ["uidmap=0:1000:1,1:5000:9", "gidmap=0:7:1"]);
        for broken in
            [labels(Some("0:1:1"), None), labels(Some("x"), Some("0:0:1")), labels(Some("1:0:1"), Some("0:0:1"))]
        {
            assert!(Mapping::of("k", &broken).is_err(), "{broken:?}");
        }
    }
}
