use super::*;
use crate::api::{KeyValue, LinuxContainerAdjustment, LinuxMemory, Mount, OptionalInt64};

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: limit }), ..Default::default() };
    LinuxResources { memory: Some(memory), ..Default::default() }
}

fn creation() -> Merge {
    Merge::creation(Container { id: "c".into(), env: vec!["A=1".into(), "B=2".into()], ..Default::default() })
}

#[test]
fn the_next_plugin_sees_what_the_one_before_it_changed() {
    let mut merge = creation();
    let wanted = ContainerAdjustment { env: vec![env("A", "9"), env("-B", ""), env("C", "3")], ..Default::default() };
    merge.adjust(wanted, "00-a").unwrap();
    assert_eq!(merge.container().unwrap().env, ["A=9", "C=3"]);
    let keys: Vec<&str> = merge.adjustment().0.env.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["-B", "A", "C"]);
}

#[test]
fn two_plugins_that_set_the_same_contradict_each_other_by_name() {
    let mut merge = creation();
    let wanted = |value: &str| ContainerAdjustment { env: vec![env("A", value)], ..Default::default() };
    merge.adjust(wanted("1"), "00-a").unwrap();
    let error = merge.adjust(wanted("2"), "10-b").unwrap_err().to_string();
    assert!(error.contains("\"00-a\" and \"10-b\" both tried to set Env \"A\""), "{error}");
}

#[test]
fn what_is_removed_first_can_be_set_again_by_another() {
    let mut merge = creation();
    let mount = |destination: &str, source: &str| Mount {
        destination: destination.into(),
        source: source.into(),
        ..Default::default()
    };
    merge.adjust(ContainerAdjustment { mounts: vec![mount("/m", "/1")], ..Default::default() }, "00-a").unwrap();
    let again = ContainerAdjustment { mounts: vec![mount("-/m", ""), mount("/m", "/2")], ..Default::default() };
    merge.adjust(again, "10-b").unwrap();
    assert_eq!(merge.adjustment().0.mounts, [mount("/m", "/2")]);
    assert_eq!(merge.owners().owners["c"].compound[&(crate::api::Field::Mounts as i32)].owners["/m"], "10-b");
}

#[test]
fn limits_of_a_creation_are_merged_field_by_field() {
    let mut merge = creation();
    let linux = |resources| ContainerAdjustment {
        linux: Some(LinuxContainerAdjustment { resources: Some(resources), ..Default::default() }),
        ..Default::default()
    };
    merge.adjust(linux(memory(5)), "00-a").unwrap();
    assert!(merge.adjust(linux(memory(6)), "10-b").is_err());
    let pids = LinuxResources { pids: Some(crate::api::LinuxPids { limit: 7 }), ..Default::default() };
    merge.adjust(linux(pids), "10-b").unwrap();
    let limits = merge.adjustment().0.linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!((limits.pids.as_ref().unwrap().limit, limits.memory.as_ref().unwrap().limit.unwrap().value), (7, 5));
}

#[test]
fn a_container_that_is_being_made_cannot_be_updated_and_others_can() {
    let mut merge = creation();
    assert!(matches!(merge.change(vec![update_of("c", memory(1))], "00-a"), Err(Error::Itself { .. })));
    merge.change(vec![update_of("d", memory(1))], "00-a").unwrap();
    let mut mild = update_of("d", memory(2));
    mild.ignore_failure = true;
    merge.change(vec![mild], "10-b").unwrap();
    assert!(merge.change(vec![update_of("d", memory(3))], "10-b").is_err());
    let (updates, _) = merge.into_updates();
    assert_eq!(updates, [update_of("d", memory(1))]);
}

#[test]
fn an_update_goes_on_from_what_was_asked_for() {
    let mut merge = Merge::update("c", memory(10));
    merge.change(vec![update_of("c", memory(8)), update_of("d", memory(4))], "00-a").unwrap();
    assert_eq!(merge.limits(), Some(&memory(8)));
    let (others, limits) = merge.into_updates();
    assert_eq!((others.len(), limits), (1, Some(memory(8))));
}

#[test]
fn arguments_are_replaced_only_where_that_is_said() {
    let mut merge = creation();
    let args = |all: &[&str]| ContainerAdjustment {
        args: all.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Default::default()
    };
    merge.adjust(args(&["a"]), "00-a").unwrap();
    assert!(merge.adjust(args(&["b"]), "10-b").is_err());
    merge.adjust(args(&["", "b"]), "10-b").unwrap();
    assert_eq!(merge.adjustment().0.args, ["b"]);
}
