//! Commits that lose: the snapshot they were for stays.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail at any line")]

mod common;

use common::Host;
use gantry_engine::snapshots::SnapshotKind;
use gantry_engine::{ErrorKind, HasKind, Labels, Scope};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_commits_to_a_name_one_wins_and_the_others_keep_their_snapshots() {
    let host = Host::new().await;
    let snapshots = &host.engine.snapshots;
    let lease = host.engine.leases.create(&host.scope, None, Labels::new()).await.unwrap();
    let scope = &Scope { lease: Some(lease.id.clone()), ..host.scope.clone() };
    for round in 0..10 {
        let name = format!("name-{round}");
        let keys: Vec<String> = (0..4).map(|n| format!("key-{round}-{n}")).collect();
        for key in &keys {
            let mounts = snapshots.prepare(scope, "", key, "", Labels::new()).await.unwrap();
            std::fs::write(gantry_mount::Tree::new(&mounts).unwrap().path().join("file"), key).unwrap();
        }
        let commits = keys.iter().map(|key| snapshots.commit(scope, "", &name, key, "", Labels::new()));
        let results = futures::future::join_all(commits).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for (key, result) in keys.iter().zip(results) {
            let Err(error) = result else { continue };
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert_eq!(snapshots.stat(scope, "", key).await.unwrap().kind, SnapshotKind::Active);
            let mounts = snapshots.mounts(scope, "", key).await.unwrap();
            let tree = gantry_mount::Tree::new(&mounts).unwrap();
            assert_eq!(std::fs::read(tree.path().join("file")).unwrap(), key.as_bytes());
        }
    }
}
