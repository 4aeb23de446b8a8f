//! The contract's tests, for every implementation of [`Store`]. They panic where the contract is broken.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests, and their names say what they show")]

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::TryStreamExt;
use gantry_types::{Algorithm, Digest, ErrorKind, HasKind, Hasher};

use crate::{CHUNK, Commit, Error, Store, Writer, WriterOptions, read_all, stream, write_all};

/// Runs all tests, each on a store of its own.
pub async fn run(new: impl AsyncFn() -> Arc<dyn Store>) {
    an_absent_blob_is_not_found(&*new().await).await;
    what_was_written_can_be_read_whole_and_in_ranges(&*new().await).await;
    a_blob_can_be_named_by_sha512(&*new().await).await;
    an_empty_blob_is_a_blob(&*new().await).await;
    a_writer_goes_on_where_an_earlier_one_ended(&*new().await).await;
    a_name_that_is_held_is_locked_until_the_writer_is_closed(&*new().await).await;
    a_write_elsewhere_than_at_the_end_is_out_of_range(&*new().await).await;
    truncation_drops_bytes_and_what_they_did_to_the_digest(&*new().await).await;
    the_wrong_size_or_digest_is_refused_and_the_ingest_stays(&*new().await).await;
    a_second_commit_of_the_same_bytes_already_exists(&*new().await).await;
    a_writer_that_expects_an_existing_blob_is_told_so(&*new().await).await;
    a_changed_total_is_refused(&*new().await).await;
    aborted_ingests_are_gone(&*new().await).await;
    a_writer_of_an_aborted_ingest_cannot_commit(&*new().await).await;
    statuses_tell_how_far_each_ingest_is(&*new().await).await;
    deleted_blobs_are_gone_but_open_readers_go_on(&*new().await).await;
    hostile_names_are_only_names(&*new().await).await;
    walking_finds_every_blob(&*new().await).await;
    many_writers_at_once_do_not_disturb_each_other(new().await).await;
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect::<Vec<_>>().into()
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("a failure").kind()
}

fn named(reference: &str) -> WriterOptions {
    WriterOptions::new(reference)
}

async fn open(store: &dyn Store, reference: &str) -> Box<dyn Writer> {
    store.writer(named(reference)).await.unwrap()
}

pub async fn an_absent_blob_is_not_found(store: &dyn Store) {
    let digest = Digest::of(b"nobody has this");
    assert_eq!(kind(store.info(&digest).await), ErrorKind::NotFound);
    assert_eq!(kind(store.reader(&digest).await.map(drop)), ErrorKind::NotFound);
    assert_eq!(kind(store.delete(&digest).await), ErrorKind::NotFound);
    assert_eq!(kind(store.status("nothing").await), ErrorKind::NotFound);
    assert_eq!(kind(store.abort("nothing").await), ErrorKind::NotFound);
}

pub async fn what_was_written_can_be_read_whole_and_in_ranges(store: &dyn Store) {
    let data = bytes(3 * CHUNK + 4711, 1);
    let mut writer = open(store, "layer").await;
    let mut offset = 0;
    for piece in data.chunks(70_001) {
        offset = writer.write(offset, Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(writer.digest().await.unwrap(), Digest::of(&data));
    let commit = Commit { size: Some(data.len() as u64), digest: Some(Digest::of(&data)) };
    let info = writer.commit(commit).await.unwrap();
    assert_eq!((&info.digest, info.size), (&Digest::of(&data), data.len() as u64));
    assert_eq!(store.info(&info.digest).await.unwrap().size, info.size);
    assert_eq!(kind(store.status("layer").await), ErrorKind::NotFound);

    assert_eq!(read_all(store, &info.digest, info.size).await.unwrap(), data);
    assert_eq!(kind(read_all(store, &info.digest, info.size - 1).await), ErrorKind::ResourceExhausted);
    let reader = store.reader(&info.digest).await.unwrap();
    assert_eq!(reader.read_at(10, 20).await.unwrap(), data[10..30]);
    assert_eq!(reader.read_at(info.size - 3, 20).await.unwrap(), data[data.len() - 3..]);
    assert_eq!(reader.read_at(info.size, 20).await.unwrap(), Bytes::new());
    assert_eq!(reader.read_at(u64::MAX, 20).await.unwrap(), Bytes::new());
    for (from, to) in
        [(0, info.size), (0, u64::MAX), (5, 6), (7, 7), (CHUNK as u64, 2 * CHUNK as u64 + 1), (1 << 60, 1 << 61)]
    {
        let pieces: Vec<Bytes> = stream(reader.clone(), from..to).try_collect().await.unwrap();
        let from = (from.min(info.size)) as usize;
        let to = (to.min(info.size)) as usize;
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= CHUNK));
        assert_eq!(pieces.concat(), data[from..to.max(from)]);
    }
}

pub async fn a_blob_can_be_named_by_sha512(store: &dyn Store) {
    let data = bytes(1000, 2);
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(&data);
    let digest = hasher.finish();
    let mut writer = open(store, "late").await;
    writer.write(0, data.clone()).await.unwrap();
    let commit = Commit { size: None, digest: Some(digest.clone()) };
    assert_eq!(writer.commit(commit.clone()).await.unwrap().digest, digest);
    assert_eq!(read_all(store, &digest, 1000).await.unwrap(), data);
    store.delete(&digest).await.unwrap();
    assert_eq!(write_all(store, "early", data, commit).await.unwrap().digest, digest);
}

pub async fn an_empty_blob_is_a_blob(store: &dyn Store) {
    let info = open(store, "empty").await.commit(Commit::default()).await.unwrap();
    assert_eq!((info.digest.clone(), info.size), (Digest::of(b""), 0));
    let reader = store.reader(&info.digest).await.unwrap();
    let pieces: Vec<Bytes> = stream(reader, 0..10).try_collect().await.unwrap();
    assert!(pieces.is_empty());
}

pub async fn a_writer_goes_on_where_an_earlier_one_ended(store: &dyn Store) {
    let data = bytes(2 * CHUNK, 3);
    let (first, second) = data.split_at(CHUNK + 77);
    let started = SystemTime::now();
    let options =
        WriterOptions { total: Some(data.len() as u64), expected: Some(Digest::of(&data)), ..named("resume") };
    let mut writer = store.writer(options).await.unwrap();
    writer.write(0, Bytes::copy_from_slice(first)).await.unwrap();
    let before = writer.status();
    writer.close().await.unwrap();

    let status = store.status("resume").await.unwrap();
    assert_eq!((status.offset, status.total), (first.len() as u64, Some(data.len() as u64)));
    assert_eq!(status.expected, Some(Digest::of(&data)));
    assert!(before.started >= started && status.updated >= status.started);

    let mut writer = open(store, "resume").await;
    let status = writer.status();
    assert_eq!((status.offset, status.started), (first.len() as u64, before.started));
    assert_eq!(writer.digest().await.unwrap(), Digest::of(first));
    writer.write(status.offset, Bytes::copy_from_slice(second)).await.unwrap();
    assert_eq!(writer.commit(Commit::default()).await.unwrap().digest, Digest::of(&data));
}

pub async fn a_name_that_is_held_is_locked_until_the_writer_is_closed(store: &dyn Store) {
    let writer = open(store, "held").await;
    let error = store.writer(named("held")).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().starts_with("ref held locked for "), "{error}");
    open(store, "other").await.close().await.unwrap();
    writer.close().await.unwrap();
    let writer = open(store, "held").await;
    drop(writer);
    open(store, "held").await.commit(Commit::default()).await.unwrap();
    open(store, "held").await.close().await.unwrap();
}

pub async fn a_write_elsewhere_than_at_the_end_is_out_of_range(store: &dyn Store) {
    let mut writer = open(store, "gap").await;
    assert_eq!(kind(writer.write(1, bytes(1, 0)).await), ErrorKind::OutOfRange);
    writer.write(0, bytes(10, 4)).await.unwrap();
    assert_eq!(kind(writer.write(9, bytes(1, 0)).await), ErrorKind::OutOfRange);
    assert_eq!(kind(writer.write(u64::MAX, bytes(1, 0)).await), ErrorKind::OutOfRange);
    assert_eq!(kind(writer.truncate(11).await), ErrorKind::OutOfRange);
    assert_eq!(writer.commit(Commit::default()).await.unwrap().digest, Digest::of(&bytes(10, 4)));
}

pub async fn truncation_drops_bytes_and_what_they_did_to_the_digest(store: &dyn Store) {
    let data = bytes(CHUNK + 1000, 5);
    let mut writer = open(store, "cut").await;
    writer.write(0, data.clone()).await.unwrap();
    writer.truncate(500).await.unwrap();
    assert_eq!(writer.status().offset, 500);
    writer.write(500, data.slice(500..900)).await.unwrap();
    assert_eq!(writer.digest().await.unwrap(), Digest::of(&data[..900]));
    writer.truncate(0).await.unwrap();
    writer.write(0, data.slice(..7)).await.unwrap();
    let info = writer.commit(Commit { size: Some(7), digest: None }).await.unwrap();
    assert_eq!(info.digest, Digest::of(&data[..7]));
}

pub async fn the_wrong_size_or_digest_is_refused_and_the_ingest_stays(store: &dyn Store) {
    let data = bytes(2000, 6);
    let mut writer = open(store, "wrong").await;
    writer.write(0, data.clone()).await.unwrap();
    let size = Commit { size: Some(1999), digest: None };
    assert_eq!(kind(writer.commit(size).await), ErrorKind::FailedPrecondition);
    let digest = Commit { size: Some(2000), digest: Some(Digest::of(b"else")) };
    let error = open(store, "wrong").await.commit(digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains(Digest::of(&data).as_str()), "{error}");
    assert_eq!(store.status("wrong").await.unwrap().offset, 2000);
    assert!(store.walk().await.unwrap().is_empty());
    open(store, "wrong").await.commit(Commit { size: Some(2000), digest: None }).await.unwrap();
}

pub async fn a_second_commit_of_the_same_bytes_already_exists(store: &dyn Store) {
    let data = bytes(300, 7);
    for (reference, expected) in [("one", None), ("two", Some(ErrorKind::AlreadyExists))] {
        let mut writer = open(store, reference).await;
        writer.write(0, data.clone()).await.unwrap();
        let result = writer.commit(Commit::default()).await;
        assert_eq!(result.err().map(|error| error.kind()), expected);
        assert_eq!(kind(store.status(reference).await), ErrorKind::NotFound);
    }
    write_all(store, "three", data.clone(), Commit::default()).await.unwrap();
    assert_eq!(store.walk().await.unwrap().len(), 1);
}

pub async fn a_writer_that_expects_an_existing_blob_is_told_so(store: &dyn Store) {
    let data = bytes(300, 8);
    let digest = write_all(store, "first", data.clone(), Commit::default()).await.unwrap().digest;
    let options = WriterOptions { expected: Some(digest.clone()), ..named("second") };
    assert_eq!(kind(store.writer(options).await.map(drop)), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.status("second").await), ErrorKind::NotFound);
    let commit = Commit { size: None, digest: Some(digest.clone()) };
    assert_eq!(write_all(store, "third", data, commit).await.unwrap().digest, digest);
}

pub async fn a_changed_total_is_refused(store: &dyn Store) {
    let options = |total| WriterOptions { total, ..named("total") };
    store.writer(options(None)).await.unwrap().close().await.unwrap();
    store.writer(options(Some(5))).await.unwrap().close().await.unwrap();
    assert_eq!(kind(store.writer(options(Some(6))).await.map(drop)), ErrorKind::FailedPrecondition);
    let writer = store.writer(options(None)).await.unwrap();
    assert_eq!(writer.status().total, Some(5));
}

pub async fn aborted_ingests_are_gone(store: &dyn Store) {
    let mut writer = open(store, "abort").await;
    writer.write(0, bytes(10, 9)).await.unwrap();
    writer.close().await.unwrap();
    store.abort("abort").await.unwrap();
    assert_eq!(kind(store.status("abort").await), ErrorKind::NotFound);
    assert!(store.statuses().await.unwrap().is_empty());
    assert_eq!(open(store, "abort").await.status().offset, 0);
}

pub async fn a_writer_of_an_aborted_ingest_cannot_commit(store: &dyn Store) {
    let mut writer = open(store, "abort").await;
    writer.write(0, bytes(10, 10)).await.unwrap();
    store.abort("abort").await.unwrap();
    assert_eq!(kind(writer.commit(Commit::default()).await), ErrorKind::NotFound);
    assert!(store.walk().await.unwrap().is_empty());
}

pub async fn statuses_tell_how_far_each_ingest_is(store: &dyn Store) {
    let mut open_writer = open(store, "a").await;
    open_writer.write(0, bytes(3, 11)).await.unwrap();
    let mut closed = open(store, "b").await;
    closed.write(0, bytes(CHUNK + 5, 12)).await.unwrap();
    closed.close().await.unwrap();
    let mut statuses = store.statuses().await.unwrap();
    statuses.sort_by(|a, b| a.reference.cmp(&b.reference));
    let offsets: Vec<_> = statuses.iter().map(|s| (s.reference.as_str(), s.offset)).collect();
    assert_eq!(offsets, [("a", 3), ("b", CHUNK as u64 + 5)]);
    assert_eq!(store.status("a").await.unwrap().offset, 3);
}

pub async fn deleted_blobs_are_gone_but_open_readers_go_on(store: &dyn Store) {
    let data = bytes(2000, 13);
    let digest = write_all(store, "x", data.clone(), Commit::default()).await.unwrap().digest;
    let reader = store.reader(&digest).await.unwrap();
    store.delete(&digest).await.unwrap();
    assert_eq!(kind(store.info(&digest).await), ErrorKind::NotFound);
    assert_eq!(reader.read_at(0, 2000).await.unwrap(), data);
    write_all(store, "x", data, Commit::default()).await.unwrap();
    store.info(&digest).await.unwrap();
}

pub async fn hostile_names_are_only_names(store: &dyn Store) {
    let names = ["..", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", ".", "ä😀", "%2e%2e", " "];
    for name in names {
        let mut writer = open(store, name).await;
        writer.write(0, bytes(5, 14)).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(store.status(name).await.unwrap().reference, name);
    }
    assert_eq!(store.statuses().await.unwrap().len(), names.len());
    for name in names {
        store.abort(name).await.unwrap();
    }
    assert_eq!(kind(store.writer(named("")).await.map(drop)), ErrorKind::InvalidArgument);
    assert_eq!(kind(store.writer(named(&"x".repeat(5000))).await.map(drop)), ErrorKind::InvalidArgument);
    assert!(store.statuses().await.unwrap().is_empty());
}

pub async fn walking_finds_every_blob(store: &dyn Store) {
    let mut expected = Vec::new();
    for seed in 0..20 {
        let reference = format!("w{seed}");
        expected.push(write_all(store, &reference, bytes(100, seed), Commit::default()).await.unwrap());
    }
    let mut found = store.walk().await.unwrap();
    found.sort_by(|a, b| a.digest.cmp(&b.digest));
    expected.sort_by(|a, b| a.digest.cmp(&b.digest));
    assert_eq!(found, expected);
}

pub async fn many_writers_at_once_do_not_disturb_each_other(store: Arc<dyn Store>) {
    let write = async |store: Arc<dyn Store>, seed: u8| {
        let data = bytes(CHUNK + usize::from(seed) * 1000, seed);
        let mut writer = open(&*store, &format!("writer {seed}")).await;
        let mut offset = 0;
        for piece in data.chunks(10_007) {
            offset = writer.write(offset, Bytes::copy_from_slice(piece)).await.unwrap();
            tokio::task::yield_now().await;
        }
        let commit = Commit { size: Some(data.len() as u64), digest: Some(Digest::of(&data)) };
        writer.commit(commit).await.unwrap();
    };
    futures::future::join_all((0..24).map(|seed| write(store.clone(), seed))).await;
    assert_eq!(store.walk().await.unwrap().len(), 24);
}
