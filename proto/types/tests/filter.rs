//! The filter language against what containerd answers.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "regex")]

use std::borrow::Cow;
use std::collections::BTreeMap;

use gantry_types::{Fields, Filter};
use proptest::prelude::*;

struct Object {
    name: &'static str,
    labels: BTreeMap<&'static str, &'static str>,
}

impl Fields for Object {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => Some(self.name.into()),
            ["labels", rest @ ..] => self.labels.get(rest.join(".").as_str()).map(|&value| value.into()),
            _ => None,
        }
    }
}

fn object() -> Object {
    Object { name: "docker.io/library/busybox:1", labels: BTreeMap::from([("nerdctl/name", "web"), ("env.tier", "")]) }
}

fn selected(filters: &[&str]) -> bool {
    Filter::parse(filters).unwrap().matches(&object())
}

fn mistake(filter: &str) -> String {
    Filter::parse(&[filter]).unwrap_err().to_string()
}

#[test]
fn no_filter_and_an_empty_filter_select_everything() {
    assert!(selected(&[]));
    assert!(selected(&[""]));
    assert!(selected(&["name==no", ""]));
}

#[test]
fn the_forms_that_clients_send_are_understood() {
    assert!(selected(&[r#"labels."nerdctl/name"==web"#]));
    assert!(selected(&["name~=^docker.*$"]));
    assert!(selected(&[r"name~=|^docker\\.io/|"]));
    assert!(selected(&[r"name~=/busybox:\x31/"]));
    assert!(selected(&["labels.env.tier, name==docker.io/library/busybox:1"]));
    assert!(selected(&[r#"name=="docker.io/library/busybox:1",name!=x"#]));
    assert!(!selected(&["name==docker.io/library/busybox:1,labels.absent"]));
    assert!(selected(&["name ==  docker.io/library/busybox:1"]));
}

#[test]
fn one_alternative_of_several_is_enough() {
    assert!(selected(&["name==a", "name~=busybox"]));
    assert!(!selected(&["name==a", "name==b"]));
}

#[test]
fn an_absent_field_differs_from_every_value_but_the_empty_one() {
    assert!(selected(&["labels.absent!=x"]));
    assert!(!selected(&[r#"labels.absent!="""#]));
    assert!(!selected(&[r#"labels.absent=="""#]));
    assert!(selected(&[r#"labels."env.tier"=="""#]));
    assert!(selected(&["labels.absent~=^$"]));
}

#[test]
fn a_mistake_is_reported_with_its_place() {
    for (filter, place) in [
        ("name=", 4),
        ("name==", 6),
        ("name==a,", 8),
        ("name.", 5),
        (".name", 0),
        ("name==a b", 7),
        ("name=a", 4),
        ("name==|a|", 6),
        ("name==\"a", 6),
        ("name==\"a\\q\"", 8),
        ("name~=(", 6),
        ("name<a", 4),
        ("name===a", 4),
        ("name ,a", 5),
    ] {
        assert!(mistake(filter).contains(&format!("at byte {place}:")), "{filter}: {}", mistake(filter));
    }
}

#[test]
fn escapes_are_those_of_go() {
    struct One(&'static str);
    impl Fields for One {
        fn field(&self, _: &[&str]) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
    }
    let filter = Filter::parse(&[r#"a=="\a\b\f\n\r\t\v\\\"\101\x41\u00e9\U0001F600""#]).unwrap();
    assert!(filter.matches(&One("\u{7}\u{8}\u{c}\n\r\t\u{b}\\\"AA\u{e9}\u{1F600}")));
    assert!(Filter::parse(&[r#"a=="\xff""#]).is_err());
    assert!(Filter::parse(&[r#"a=="\ud800""#]).is_err());
    assert!(Filter::parse(&[r#"a=="\400""#]).is_err());
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC*") {
        let _ = Filter::parse(&[text]);
    }

    #[test]
    fn near_filters_never_panic(text in "[a-z.,=!~\"|/\\\\ x0-9é]{0,24}") {
        let _ = Filter::parse(&[text]).map(|filter| filter.matches(&object()));
    }

    #[test]
    fn a_quoted_value_means_itself(value in "\\PC*") {
        struct One(String);
        impl Fields for One {
            fn field(&self, _: &[&str]) -> Option<Cow<'_, str>> { Some(self.0.as_str().into()) }
        }
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        let equal = Filter::parse(&[format!("a.\"{quoted}\"==\"{quoted}\"")]).unwrap();
        let unequal = Filter::parse(&[format!("a!=\"{quoted}\"")]).unwrap();
        prop_assert!(equal.matches(&One(value.clone())));
        prop_assert!(!unequal.matches(&One(value)));
    }
}
