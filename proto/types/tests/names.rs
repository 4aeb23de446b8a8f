//! Identifiers, references, digests and platforms against naive models of their grammars.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "regex")]

use gantry_types::{Digest, Id, Platform, Reference};
use proptest::prelude::*;

fn whole(pattern: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(text)
}

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn references_that_clients_use_are_understood() {
    let parse = |text: &str| text.parse::<Reference>().unwrap();
    let full = parse(&format!("docker.io/library/busybox:1.36@sha256:{HEX}"));
    assert_eq!((full.host(), full.path(), full.tag()), ("docker.io", "library/busybox", Some("1.36")));
    assert_eq!(full.digest().unwrap().hex(), HEX);
    let pinned = parse(&format!("docker.io/library/busybox@sha256:{HEX}"));
    assert_eq!((pinned.tag(), pinned.digest().is_some()), (None, true));
    assert_eq!(parse("localhost:5000/a").host(), "localhost:5000");
    assert_eq!(parse("[::1]:5000/a/b__c:Tag").host(), "[::1]:5000");
    assert_eq!(parse("k8s.gcr.io/pause").to_string(), "k8s.gcr.io/pause");
}

#[test]
fn references_that_could_become_paths_or_are_ambiguous_are_refused() {
    for text in [
        "",
        "busybox",
        "/a",
        "../a",
        "./a",
        "a/..",
        "a/../b",
        "a//b",
        "h/a:",
        "h/A",
        "h/a@sha256:12",
        "h/a@md5:00",
        "http://h/a",
        "h:x/a",
        "h:/a",
        "h:1:2/a",
        "[::1/a",
        "-h/a",
        "h-/a",
        "h..x/a",
        "h/a b",
        "h/a:.t",
        "h/a\0",
        "h:123456/a",
    ] {
        assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn platforms_are_normalised_as_containerd_does() {
    for (text, normal) in [
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("Linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
    ] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal, "{text}");
    }
}

#[test]
fn a_machine_prefers_its_own_architecture_and_takes_older_variants() {
    let platform = |text: &str| text.parse::<Platform>().unwrap();
    let cost = |host: &str, other: &str| platform(host).preference(&platform(other));
    assert_eq!(cost("linux/amd64", "linux/amd64"), Some(0));
    assert_eq!(cost("linux/amd64", "linux/amd64/v2"), None);
    assert!(cost("linux/amd64/v3", "linux/amd64/v2") < cost("linux/amd64/v3", "linux/amd64"));
    assert!(cost("linux/arm64", "linux/arm/v7").is_some());
    assert!(cost("linux/arm/v7", "linux/arm/v6") < cost("linux/arm/v7", "linux/arm/v5"));
    assert_eq!(cost("linux/arm/v6", "linux/arm/v7"), None);
    assert_eq!(cost("linux/amd64", "windows/amd64"), None);
    assert_eq!(cost("linux/amd64", "linux/arm64"), None);
}

proptest! {
    #[test]
    fn ids_follow_containerds_pattern(text in "[A-Za-z0-9._/-]{0,80}") {
        let model = text.len() <= 76 && whole("[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", &text);
        prop_assert_eq!(text.parse::<Id>().is_ok(), model);
    }

    #[test]
    fn separators_between_ids_follow_the_pattern_too(text in "[a9._-]{0,9}") {
        prop_assert_eq!(text.parse::<Id>().is_ok(), whole("[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", &text));
    }

    #[test]
    fn repository_paths_follow_the_distribution_pattern(path in "[a0._/A-]{1,9}") {
        let part = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
        let model = whole(&format!("{part}(?:/{part})*"), &path);
        prop_assert_eq!(format!("host/{path}").parse::<Reference>().is_ok(), model);
    }

    #[test]
    fn hosts_follow_a_plain_pattern(host in "[aZ0._:-]{1,9}") {
        let label = "[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?";
        let model = whole(&format!(r"{label}(?:\.{label})*(?::[0-9]{{1,5}})?"), &host);
        prop_assert_eq!(format!("{host}/a").parse::<Reference>().is_ok(), model);
    }

    #[test]
    fn a_reference_prints_as_it_was_written(text in "[a-z]{1,4}(\\.[a-z]{1,3})?(:[0-9]{1,5})?/[a-z0-9]{1,5}(/[a-z0-9]{1,3})?(:[A-Za-z0-9_]{1,5})?") {
        prop_assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
    }

    #[test]
    fn nothing_makes_the_parsers_panic(text in "\\PC*") {
        let _ = (text.parse::<Reference>(), text.parse::<Id>(), text.parse::<Digest>(), text.parse::<Platform>());
    }
}
