//! Pulls for Kubernetes as its configuration wants them: encrypted layers, what snapshotters are told, and patience.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_integration::Lab;
use gantry_integration::fake::{FakeRegistry, busybox_layer};
use gantry_integration::images::{Image, busybox_root, digest_of, push_blob, push_manifest};
use gantry_integration::lab::{peer_binary, run};
use gantry_integration::registry::DockerRegistry;
use gantry_registry::fake::{Fault, Rule};
use serde_json::{Value, json};

use crate::cri_node::{self, Node};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const IMAGES: &str = "[plugins.'io.containerd.cri.v1.images']\n";

/// Encrypts a layer by ocicrypt for the owner of a key; its annotations.
fn seal(key: &Path, layer: &Path, sealed: &Path) -> Value {
    let open = |path: &Path| std::fs::File::open(path).expect("open a file");
    let mut command = Command::new(peer_binary("seal"));
    command.arg("-key").arg(key).arg(digest_of(layer)).stdin(open(layer));
    command.stdout(std::fs::File::create(sealed).expect("make a file")).stderr(Stdio::piped());
    let out = command.output().expect("start seal");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    serde_json::from_str(&said).expect("annotations are JSON")
}

/// Pushes an image whose only layer is encrypted for `key`; its reference.
fn sealed_image(lab: &Lab, host: &str, key: &Path) -> String {
    Image::new(lab, "open").layer(&busybox_root(lab)).push(host, "open");
    let (layer, sealed) = (lab.path("image-open/0.tar.gz"), lab.path("sealed"));
    let annotations = seal(key, &layer, &sealed);
    let size = |path: &Path| std::fs::metadata(path).expect("a file just written").len();
    let config = lab.path("image-open/config.json");
    for blob in [&sealed, &config] {
        push_blob(host, "sealed", blob, &digest_of(blob));
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(&config), "size": size(&config)},
        "layers": [{"mediaType": format!("{LAYER}+encrypted"), "digest": digest_of(&sealed), "size": size(&sealed),
                    "annotations": annotations}],
    });
    let path = lab.path("sealed-manifest.json");
    std::fs::write(&path, manifest.to_string()).expect("write a document");
    push_manifest(host, "sealed", "latest", &path, kind);
    format!("{host}/sealed:latest")
}

#[test]
fn encrypted_images_are_opened_by_keys_of_the_node_unless_the_configuration_says_otherwise() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let (private, public) = (lab.path("key.pem"), lab.path("public.pem"));
    let (private_text, public_text) = (private.to_string_lossy(), public.to_string_lossy());
    run("openssl", &["genrsa", "-out", &private_text, "2048"]);
    run("openssl", &["rsa", "-in", &private_text, "-pubout", "-out", &public_text]);
    let image = sealed_image(&lab, &registry.host(), &public);
    let config = format!(
        "{}[stream_processors.'io.containerd.ocicrypt.decoder.v1.tar.gzip']\naccepts = ['{LAYER}+encrypted']\n\
         returns = '{LAYER}'\npath = '{}'\nargs = ['-open', '-key', '{private_text}']\n",
        cri_node::config(&lab),
        peer_binary("seal").display()
    );
    let pull = json!({"image": {"image": image}});
    let keyless = format!("{config}{IMAGES}image_decryption = {{key_model = ''}}\n");
    let node = Node::start_with(&lab, &keyless);
    // The program is not told how the layer's key is found.
    node.call_images("PullImage", &pull).fails_with("io.containerd.ocicrypt.decoder.v1.tar.gzip");
    node.finish();
    let node = Node::start_with(&lab, &config);
    node.ask_images("PullImage", &pull);
    let pod = node.run_pod("one", &json!({}));
    let command = json!(["/bin/sh", "-c", "echo opened; exec sleep 1000"]);
    node.run_container(&pod, "main", &json!({"image": {"image": image}, "command": command}));
    let log = lab.path("logs/main.log");
    cri_node::wait_for("the program of the encrypted image has run", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("opened"))
    });
    node.remove_pod(&pod);
    node.finish();
}

#[test]
fn snapshotters_are_told_of_the_image_where_the_configuration_says_so() {
    let lab = Lab::new();
    let registry = DockerRegistry::start(&lab);
    let push = |name: &str| {
        let tree = lab.path(&format!("tree-{name}"));
        std::fs::create_dir_all(tree.join(name)).expect("make a directory");
        Image::new(&lab, name).layer(&tree).push(&registry.host(), name)
    };
    let labels = |node: &Node, name: &str, image: &str| {
        node.ask_images("PullImage", &json!({"image": {"image": image}}));
        let snapshot = digest_of(&lab.path(&format!("image-{name}/0.tar")));
        let shown = node.daemon.ctr(&["-n", "k8s.io", "snapshots", "info", &snapshot]);
        let info: Value = serde_json::from_str(shown.ok()).expect("ctr prints JSON");
        let of = |key: &str| info["Labels"][format!("containerd.io/snapshot/cri.{key}")].as_str().map(str::to_owned);
        ["image-ref", "layer-digest", "image-layers", "manifest-digest"].map(of)
    };
    let silent = Node::start(&lab);
    assert_eq!(labels(&silent, "silent", &push("silent")), [None, None, None, None]);
    silent.finish();
    let image = push("told");
    let layer = digest_of(&lab.path("image-told/0.tar.gz"));
    let told =
        Node::start_with(&lab, &format!("{}{IMAGES}disable_snapshot_annotations = false\n", cri_node::config(&lab)));
    let manifest = digest_of(&lab.path("image-told/manifest.json"));
    assert_eq!(labels(&told, "told", &image), [image.clone(), layer.clone(), layer, manifest].map(Some));
    told.finish();
}

#[test]
fn a_pull_that_does_not_get_on_is_given_up_after_the_configured_time() {
    let lab = Lab::new();
    let fake = FakeRegistry::start(&lab);
    let image = busybox_layer().build();
    let reference = fake.put_image("slow", "latest", &image);
    let layer = image.blobs().iter().find(|(d, _)| d.media_type == LAYER).expect("a layer");
    // It answers, and sends nothing for longer than anybody waits.
    fake.fault(Rule::new(layer.0.digest.hex(), Fault::Trickle(1000, Duration::from_secs(3600))));
    let config = format!("{}{IMAGES}image_pull_progress_timeout = '1s'\n", cri_node::config(&lab));
    let node = Node::start_with(&lab, &config);
    let refused = node.call_images("PullImage", &json!({"image": {"image": reference.to_string()}}));
    refused.fails_with("DeadlineExceeded").fails_with("image_pull_progress_timeout");
    // What came stays for the next pull, until it expires.
    node.daemon.stop_clean();
}
