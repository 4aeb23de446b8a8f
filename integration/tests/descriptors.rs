//! `proto/defs` says exactly what the official Go modules say: every package, service, method, message, field, enum and
//! value, both ways.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// Facts that one side may lack, by their beginning, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("extension containerd.types.fieldpath", "an option that Go's generator reads; it never travels"),
    ("package google.rpc", "of google.rpc only what containerd uses, Status, is written down"),
];

#[test]
fn proto_defs_say_what_the_official_modules_say() {
    let (ours, official) = (facts(&our_descriptors()), facts(&official_descriptors()));
    assert!(official.len() > 2000, "the official modules declare only {} facts", official.len());
    let missing = differences(&official, &ours);
    let invented = differences(&ours, &official);
    assert!(
        missing.is_empty() && invented.is_empty(),
        "proto/defs differs from the official descriptors\nofficial, but not ours:\n{}\nours, but not official:\n{}",
        missing.join("\n"),
        invented.join("\n"),
    );
}

#[test]
fn every_exception_is_still_needed() {
    let (ours, official) = (facts(&our_descriptors()), facts(&official_descriptors()));
    let differing: Vec<&String> = ours.symmetric_difference(&official).collect();
    for (prefix, _) in EXCEPTIONS.iter().filter(|(prefix, _)| !prefix.starts_with("package")) {
        assert!(differing.iter().any(|f| f.starts_with(prefix)), "no fact differs that begins with {prefix:?}");
    }
}

fn differences<'a>(from: &'a BTreeSet<String>, to: &'a BTreeSet<String>) -> Vec<&'a str> {
    let allowed = |fact: &str| EXCEPTIONS.iter().any(|(prefix, _)| fact.starts_with(prefix));
    from.difference(to).map(String::as_str).filter(|fact| !allowed(fact)).collect()
}

fn our_descriptors() -> FileDescriptorSet {
    let defs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/defs");
    let mut files = Vec::new();
    collect(&defs, &mut files);
    let mut set = protox::compile(files, [&defs]).expect("proto/defs compiles");
    // What our shim offers beyond the official services is ours alone.
    set.file.retain(|file| !file.package().starts_with("google.protobuf") && !file.package().starts_with("gantry."));
    set
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("proto/defs is readable") {
        let path = entry.expect("proto/defs is readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
}

fn official_descriptors() -> FileDescriptorSet {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    let run = Command::new("go").args(["run", "./descriptors"]).current_dir(&tools).output();
    let output = match run {
        Ok(output) => output,
        Err(error) => panic!("this test needs Go ≥ 1.26 in PATH (https://go.dev/dl): {error}"),
    };
    assert!(output.status.success(), "go run ./descriptors failed:\n{}", String::from_utf8_lossy(&output.stderr));
    FileDescriptorSet::decode(output.stdout.as_slice()).expect("go run ./descriptors printed a FileDescriptorSet")
}

/// All that is declared, one line a fact.
fn facts(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for file in &set.file {
        file_facts(file, &mut facts);
    }
    facts
}

fn file_facts(file: &FileDescriptorProto, facts: &mut BTreeSet<String>) {
    let package = file.package();
    facts.insert(format!("package {package}"));
    for service in &file.service {
        service_facts(package, service, facts);
    }
    for message in &file.message_type {
        message_facts(package, message, facts);
    }
    for an_enum in &file.enum_type {
        enum_facts(package, an_enum, facts);
    }
    for extension in &file.extension {
        facts.insert(format!("extension {package}.{}", field_fact(extension)));
    }
}

fn service_facts(package: &str, service: &ServiceDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{package}.{}", service.name());
    facts.insert(format!("service {name}"));
    for method in &service.method {
        let stream = |streams: bool| if streams { "stream " } else { "" };
        facts.insert(format!(
            "method {name}/{}({}{}) → {}{}",
            method.name(),
            stream(method.client_streaming()),
            method.input_type(),
            stream(method.server_streaming()),
            method.output_type(),
        ));
    }
}

fn message_facts(parent: &str, message: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{parent}.{}", message.name());
    let is_map = message.options.as_ref().is_some_and(|o| o.map_entry());
    facts.insert(format!("message {name}{}", if is_map { " (entry of a map)" } else { "" }));
    for field in &message.field {
        let real = field.oneof_index.filter(|_| !field.proto3_optional());
        let group = real.and_then(|i| message.oneof_decl.get(usize::try_from(i).ok()?));
        let group = group.map(|o| format!(" in oneof {}", o.name())).unwrap_or_default();
        facts.insert(format!("field {name}.{}{group}", field_fact(field)));
    }
    for range in &message.reserved_range {
        facts.insert(format!("reserved {name} {}..{}", range.start(), range.end()));
    }
    for reserved in &message.reserved_name {
        facts.insert(format!("reserved {name} {reserved}"));
    }
    for nested in &message.nested_type {
        message_facts(&name, nested, facts);
    }
    for nested in &message.enum_type {
        enum_facts(&name, nested, facts);
    }
}

fn field_fact(field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().to_owned(),
        scalar => scalar.as_str_name().to_owned(),
    };
    format!("{} = {} {label}{kind} json {:?}", field.name(), field.number(), field.json_name())
}

fn enum_facts(parent: &str, an_enum: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{parent}.{}", an_enum.name());
    facts.insert(format!("enum {name}"));
    for value in &an_enum.value {
        facts.insert(format!("value {name}.{} = {}", value.name(), value.number()));
    }
}
