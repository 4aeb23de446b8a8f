//! The signature policy, with keys and signatures that openssl makes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::Host;
use gantry_engine::containers::{Container, Runtime};
use gantry_engine::{ErrorKind, HasKind};
use gantry_registry::fake::Fake;
use gantry_registry::image::{Builder, Image};
use gantry_types::{Descriptor, Reference};
use serde_json::json;
use tempfile::TempDir;

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A private key of openssl's.
struct Signer {
    dir: TempDir,
    raw: bool,
}

fn openssl(dir: &Path, args: &[&str]) {
    let ran = Command::new("openssl").current_dir(dir).args(args).output().expect("openssl is installed");
    assert!(ran.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

impl Signer {
    fn new(kind: &[&str]) -> Signer {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), &[&["genpkey", "-quiet", "-out", "private"], kind].concat());
        openssl(dir.path(), &["pkey", "-in", "private", "-pubout", "-out", "public"]);
        Signer { dir, raw: kind.contains(&"ed25519") }
    }

    fn p256() -> Signer {
        Signer::new(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn public(&self) -> PathBuf {
        self.dir.path().join("public")
    }

    fn sign(&self, message: &[u8]) -> String {
        let dir = self.dir.path();
        std::fs::write(dir.join("message"), message).unwrap();
        match self.raw {
            true => openssl(dir, &["pkeyutl", "-sign", "-rawin", "-inkey", "private", "-in", "message", "-out", "sig"]),
            false => openssl(dir, &["dgst", "-sha256", "-sign", "private", "-out", "sig", "message"]),
        }
        STANDARD.encode(std::fs::read(dir.join("sig")).unwrap())
    }
}

struct Lab {
    fake: Fake,
    image: Image,
    reference: Reference,
    dir: TempDir,
}

impl Lab {
    async fn new() -> Lab {
        let fake = common::registry().await;
        let image = Builder::new().file("etc/hello", "signed, or not", 0o644).build();
        let reference = fake.put_image("team/app", "1", &image);
        Lab { fake, image, reference, dir: tempfile::tempdir().unwrap() }
    }

    fn policy(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    fn demand(&self, keys: &[&Signer], more: &str) {
        let keys: Vec<PathBuf> = keys.iter().map(|key| key.public()).collect();
        let policy = format!(
            "default = 'accept'\n[[entry]]\nmatch = '{}/team/*'\nrequire = 'signature'\nkeys = {keys:?}\n{more}\n",
            self.fake.host()
        );
        std::fs::write(self.policy(), policy).unwrap();
    }

    async fn host(&self) -> Host {
        Host::with(|config| config.signature_policy = Some(self.policy())).await
    }

    fn payload(&self, repository: &str) -> Vec<u8> {
        let digest = &self.image.descriptor().digest;
        json!({"critical": {"identity": {"docker-reference": repository}, "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature"}, "optional": null})
        .to_string()
        .into_bytes()
    }

    fn repository(&self) -> String {
        format!("{}/team/app", self.fake.host())
    }

    /// A manifest as cosign writes it, at its tag.
    fn put_simple(&self, payload: Vec<u8>, signature: &str) {
        let mut layer = self.fake.put_blob("team/app", SIMPLE, payload.into());
        layer.annotations.insert("dev.cosignproject.cosign/signature".into(), signature.to_owned());
        let tag = self.image.descriptor().digest.as_str().replace(':', "-") + ".sig";
        self.put_manifest(Some(&tag), &layer, None);
    }

    fn put_bundle(&self, bundle: &serde_json::Value) {
        let layer = self.fake.put_blob("team/app", BUNDLE, bundle.to_string().into());
        self.put_manifest(None, &layer, Some(BUNDLE));
    }

    fn put_manifest(&self, tag: Option<&str>, layer: &Descriptor, artifact: Option<&str>) {
        let config = self.fake.put_blob("team/app", "application/vnd.oci.empty.v1+json", Bytes::from_static(b"{}"));
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        if let Some(artifact) = artifact {
            manifest["artifactType"] = json!(artifact);
            manifest["subject"] = json!(self.image.descriptor());
        }
        self.fake.put_manifest("team/app", tag, MANIFEST, manifest.to_string().into());
    }

    fn envelope(&self, signer: &Signer, predicate: &str) -> serde_json::Value {
        let payload = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
            "subject": [{"digest": {"sha256": self.image.descriptor().digest.hex()}}]})
        .to_string();
        let kind = "application/vnd.in-toto+json";
        let signature = signer.sign(format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len()).as_bytes());
        json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {"payload": STANDARD.encode(&payload), "payloadType": kind, "signatures": [{"sig": signature}]}})
    }

    async fn refused(&self, host: &Host) -> String {
        let error = host.pull(&self.reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(host.images().await.is_empty());
        let layers = self.image.blobs().iter().map(|(descriptor, _)| &descriptor.digest);
        let fetched: Vec<_> = layers.filter(|digest| self.fake.count(&format!("/blobs/{digest}")) > 0).collect();
        assert!(fetched.is_empty(), "nothing of it was fetched: {fetched:?}");
        error.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_signed_by_a_known_key_of_any_kind_lets_an_image_in() {
    let kinds: [&[&str]; 3] = [
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &["-algorithm", "ed25519"],
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    ];
    for kind in kinds {
        let (lab, signer, other) = (Lab::new().await, Signer::new(kind), Signer::p256());
        lab.demand(&[&other, &signer], "");
        let host = lab.host().await;
        lab.refused(&host).await;
        let payload = lab.payload(&lab.repository());
        lab.put_simple(payload.clone(), &signer.sign(&payload));
        host.pull(&lab.reference).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_good_signature_is_kept_out_by_name_entry_and_key() {
    let (lab, signer, stranger) = (Lab::new().await, Signer::p256(), Signer::p256());
    lab.demand(&[&signer], "");
    let host = lab.host().await;
    let told = lab.refused(&host).await;
    let key = signer.public();
    for part in [lab.reference.to_string().as_str(), "/team/*", &key.to_string_lossy(), "none at all"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let payload = lab.payload(&lab.repository());
    lab.put_simple(payload.clone(), &stranger.sign(&payload));
    assert!(lab.refused(&host).await.contains("another key"));
    lab.put_simple([payload.as_slice(), b" "].concat(), &signer.sign(&payload));
    assert!(lab.refused(&host).await.contains("false one"));
    let elsewhere = lab.payload("r.example/team/other");
    lab.put_simple(elsewhere.clone(), &signer.sign(&elsewhere));
    assert!(lab.refused(&host).await.contains("r.example/team/other"));
    lab.demand(&[&signer], "identity = 'any'");
    host.pull(&lab.reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_another_image_does_not_count() {
    let (lab, signer) = (Lab::new().await, Signer::p256());
    lab.demand(&[&signer], "");
    let host = lab.host().await;
    let other = String::from_utf8(lab.payload(&lab.repository())).unwrap();
    let digest = lab.image.descriptor().digest.hex().to_owned();
    let other = other.replace(&digest, &"a".repeat(64)).into_bytes();
    lab.put_simple(other.clone(), &signer.sign(&other));
    assert!(lab.refused(&host).await.contains("another image"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_among_the_referrers_count_and_other_attestations_do_not() {
    let (lab, signer) = (Lab::new().await, Signer::p256());
    lab.demand(&[&signer], "");
    let host = lab.host().await;
    lab.put_bundle(&lab.envelope(&signer, "https://spdx.dev/Document"));
    assert!(lab.refused(&host).await.contains("no signature"));
    lab.put_bundle(&lab.envelope(&Signer::p256(), "https://sigstore.dev/cosign/sign/v1"));
    lab.refused(&host).await;
    lab.put_bundle(&lab.envelope(&signer, "https://sigstore.dev/cosign/sign/v1"));
    host.pull(&lab.reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_may_sign_the_manifest_itself() {
    let (lab, signer) = (Lab::new().await, Signer::p256());
    lab.demand(&[&signer], "");
    let (_, manifest) = lab.fake.manifest("team/app", "1").unwrap();
    lab.put_bundle(&json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}},
        "messageSignature": {"messageDigest": {"algorithm": "SHA2_256", "digest": ""}, "signature": signer.sign(&manifest)}}));
    lab.host().await.pull(&lab.reference).await.unwrap();
}

fn container(id: &str, image: &str) -> Container {
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    Container {
        id: id.parse().unwrap(),
        labels: Default::default(),
        image: image.to_owned(),
        runtime: Runtime { name: "io.containerd.runc.v2".into(), options: None },
        spec: None,
        snapshotter: String::new(),
        snapshot_key: String::new(),
        sandbox_id: String::new(),
        extensions: Default::default(),
        created: epoch,
        updated: epoch,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_unsigned_images_are_not_made_however_the_image_came() {
    let (lab, signer, late) = (Lab::new().await, Signer::p256(), Signer::p256());
    lab.demand(&[&signer], "");
    let payload = lab.payload(&lab.repository());
    lab.put_simple(payload.clone(), &signer.sign(&payload));
    let host = lab.host().await;
    host.pull(&lab.reference).await.unwrap();
    let name = lab.reference.to_string();
    lab.fake.clear_requests();
    host.engine.containers.create(&host.scope, container("signed", &name)).await.unwrap();
    assert_eq!(lab.fake.requests().len(), 0, "what the pull has seen counts");
    // The key is not trusted any more.
    lab.demand(&[&late], "");
    let refused = host.engine.containers.create(&host.scope, container("late", &name)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    // A signature for one name is none for another.
    lab.demand(&[&signer], "");
    let other = format!("{}/team/other:1", lab.fake.host());
    host.engine.transfer.tag(&host.scope, &name, &other, Default::default(), false).await.unwrap();
    let refused = host.engine.containers.create(&host.scope, container("other", &other)).await.unwrap_err();
    assert!(refused.to_string().contains("/team/other"), "{refused}");
    std::fs::write(lab.policy(), "default = 'accept'").unwrap();
    host.engine.containers.create(&host.scope, container("other", &other)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_lets_nothing_in() {
    let lab = Lab::new().await;
    let host = lab.host().await;
    for text in [None, Some("default = 'perhaps'".to_owned())] {
        if let Some(text) = text {
            std::fs::write(lab.policy(), text).unwrap();
        }
        let error = host.pull(&lab.reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("policy.toml"), "{error}");
    }
    std::fs::write(lab.policy(), "default = 'reject'").unwrap();
    assert!(lab.refused(&host).await.contains("default"));
}
