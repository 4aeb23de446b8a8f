use super::*;
use crate::logger::Owner;
use crate::poll::{Poller, Token};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

fn run(poller: &Poller, movers: &mut Movers, until: impl Fn(&Copiers) -> bool) {
    let copiers = &mut movers.copiers;
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut ready = Vec::new();
    while !until(copiers) {
        assert!(Instant::now() < deadline, "the copiers made no progress");
        poller.wait(Some(Instant::now() + Duration::from_millis(20)), &mut ready).unwrap();
        for event in ready.drain(..) {
            if let Token::CopySource(n) | Token::CopySink(n) = event.token {
                copiers.turn(n);
            }
        }
    }
}

fn prepared(dir: &Path, streams: &Streams) -> (Rc<Poller>, Movers, Prepared) {
    for name in ["in", "out", "err"] {
        mkfifo(&dir.join(name), Mode::S_IRWXU).unwrap();
    }
    let poller = Rc::new(Poller::new().unwrap());
    let movers = Movers { copiers: Copiers::new(Rc::clone(&poller)), tees: Tees::new(Rc::clone(&poller)) };
    let owner = Owner { id: "c", namespace: "n" };
    (poller, movers, Prepared::open(streams, owner, PipeOwner::default()).unwrap())
}

#[test]
fn output_of_any_length_reaches_a_slow_reader_of_the_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str| dir.path().join(name).display().to_string();
    let streams = Streams { stdout: text("out"), stderr: text("err"), ..Streams::default() };
    let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
    let mut writer = std::fs::File::from(prepared.child()[1].unwrap().try_clone_to_owned().unwrap());
    let mut attached = prepared.attach(None, &mut movers).unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let expected = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let out = dir.path().join("out");
    let reading = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut received = Vec::new();
        std::fs::File::open(out).unwrap().read_to_end(&mut received).unwrap();
        received
    });
    let outputs = attached.outputs.clone();
    run(&poller, &mut movers, |copiers| outputs.iter().all(|&n| !copiers.is_open(n)));
    writing.join().unwrap();
    assert!(attached.finish(&mut movers).is_none());
    assert!(reading.join().unwrap() == expected, "the bytes differ");
}

#[test]
fn a_reader_that_comes_after_the_end_still_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let streams = Streams { stdout: out.display().to_string(), ..Streams::default() };
    let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
    let writer = prepared.child()[1].unwrap().try_clone_to_owned().unwrap();
    let attached = prepared.attach(None, &mut movers).unwrap();
    std::fs::File::from(writer).write_all(b"early").unwrap();
    let output = attached.outputs[0];
    run(&poller, &mut movers, |copiers| !copiers.is_open(output));
    let reading = std::thread::spawn(move || std::fs::read_to_string(out).unwrap());
    let end = Instant::now() + Duration::from_secs(5);
    while !reading.is_finished() && Instant::now() < end {
        movers.copiers.tick(Instant::now());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(movers.copiers.deadline(), None, "nothing is watched any more");
    assert_eq!(reading.join().unwrap(), "early");
}

#[test]
fn closing_stdin_delivers_what_was_written_before() {
    let dir = tempfile::tempdir().unwrap();
    let stdin = dir.path().join("in");
    let streams = Streams { stdin: stdin.display().to_string(), ..Streams::default() };
    let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
    let mut process = std::fs::File::from(prepared.child()[0].unwrap().try_clone_to_owned().unwrap());
    let mut attached = prepared.attach(None, &mut movers).unwrap();
    // Held open all the time, as an engine does whose user has closed his end.
    let mut client = OpenOptions::new().read(true).write(true).open(&stdin).unwrap();
    client.write_all(b"hello").unwrap();
    attached.close_stdin(&mut movers.copiers);
    let input = attached.inputs[0];
    run(&poller, &mut movers, |copiers| !copiers.is_open(input));
    let mut text = String::new();
    process.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn stdin_ends_when_its_last_writer_goes() {
    let dir = tempfile::tempdir().unwrap();
    let stdin = dir.path().join("in");
    let streams = Streams { stdin: stdin.display().to_string(), ..Streams::default() };
    let (poller, mut movers, prepared) = prepared(dir.path(), &streams);
    let mut process = std::fs::File::from(prepared.child()[0].unwrap().try_clone_to_owned().unwrap());
    let attached = prepared.attach(None, &mut movers).unwrap();
    let mut ready = Vec::new();
    poller.wait(Some(Instant::now() + Duration::from_millis(50)), &mut ready).unwrap();
    assert_eq!(ready, [], "a fifo nobody has opened yet is not at its end");
    std::fs::write(&stdin, "bye").unwrap();
    let input = attached.inputs[0];
    run(&poller, &mut movers, |copiers| !copiers.is_open(input));
    let mut text = String::new();
    process.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
}

#[test]
fn a_file_is_made_with_its_directory_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("deep/log");
    let uri = format!("file://{}", log.display());
    let streams = Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() };
    let (_, mut movers, prepared) = prepared(dir.path(), &streams);
    for number in [1, 2] {
        let fd = prepared.child()[number].unwrap().try_clone_to_owned().unwrap();
        std::fs::File::from(fd).write_all(format!("line {number}\n").as_bytes()).unwrap();
    }
    prepared.attach(None, &mut movers).unwrap().finish(&mut movers);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "line 1\nline 2\n");
}

#[test]
fn a_logging_program_gets_both_outputs_and_its_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("logger");
    let log = dir.path().join("log");
    let text =
        "#!/bin/sh\necho \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1 $2\" >$2\nexec 5>&-\ncat <&3 >>$2\ncat <&4 >>$2\n";
    std::fs::write(&script, text).unwrap();
    std::process::Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let uri = format!("binary://{}?to={}", script.display(), log.display());
    let streams = Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() };
    let (_, mut movers, prepared) = prepared(dir.path(), &streams);
    for (number, word) in [(1, "out"), (2, "err")] {
        let fd = prepared.child()[number].unwrap().try_clone_to_owned().unwrap();
        std::fs::File::from(fd).write_all(word.as_bytes()).unwrap();
    }
    let logger = prepared.attach(None, &mut movers).unwrap().finish(&mut movers).unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(logger.pid), None).unwrap();
    let expected = format!("n/c to {}\nouterr", log.display());
    assert_eq!(std::fs::read_to_string(log).unwrap(), expected);
}
