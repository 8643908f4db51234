//! The history in a bucket, on a real S3 server (`tests/s3`): nothing is lost, whatever happens on the
//! way, and what is wrong is told.
#![allow(clippy::disallowed_methods, reason = "a test starts the program that it tests")]

mod run_support;
mod s3_support;

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use llorch_diff::history::store;
use run_support::{Place, diff, fake, texts};
use s3_support::wire::{Cut, Wire};
use s3_support::{BUCKET, SECRET, Server, with_keys};

const URL: &str = "s3://runs/llorch/main";
const DAY: &str = "2026-01-31";
const OBJECT: &str = "llorch/main/2026-01-31.jsonl";

// Other processes: this program again, running the ignored test below. --------------------------------

const LINES: &str = "LLORCH_TEST_LINES";

/// `NAME:0` to `NAME:N-1`, appended by a process of its own.
fn writer(address: &str, name: &str, lines: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "inner_append", "--ignored", "--nocapture"]);
    command.env(LINES, format!("{name}:{lines}"));
    with_keys(&mut command, address);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn inner_append() {
    let wanted = std::env::var(LINES).expect("run by another test");
    let (name, lines) = wanted.split_once(':').unwrap();
    let store = store::open(URL).unwrap();
    store.check().unwrap();
    for n in 0..lines.parse::<usize>().unwrap() {
        store.append(DAY, &line(name, n)).unwrap();
    }
}

fn line(name: &str, n: usize) -> String {
    format!("{{\"writer\":\"{name}\",\"n\":{n},\"text\":\"{}\"}}", "x".repeat(3000))
}

fn succeeded(child: Child) {
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout}\n{stderr}");
}

/// Panics unless the day has all lines of these writers once, and nothing else.
fn require_all(server: &Server, writers: &[(&str, usize)]) {
    let mut found = server.lines(OBJECT);
    let mut expected: Vec<String> =
        writers.iter().flat_map(|(name, lines)| (0..*lines).map(move |n| line(name, n))).collect();
    found.sort();
    expected.sort();
    assert_eq!(found.len(), expected.len(), "some are missing, or there twice");
    assert_eq!(found, expected);
}

#[test]
fn two_writers_at_the_same_time_lose_nothing() {
    let server = Server::start(&[]);
    let writers = [("a", 15), ("b", 15)];
    let children = writers.map(|(name, n)| writer(&server.address, name, n).spawn().unwrap());
    children.into_iter().for_each(succeeded);
    require_all(&server, &writers);
    // In the order in which each wrote them.
    let of_a: Vec<String> =
        server.lines(OBJECT).into_iter().filter(|l| l.contains("\"writer\":\"a\"")).collect();
    assert_eq!(of_a, (0..15).map(|n| line("a", n)).collect::<Vec<_>>());
}

#[test]
fn a_connection_that_breaks_costs_no_record_and_doubles_none() {
    let server = Server::start(&[]);
    let wire = Wire::new(&server.address, |n| match n % 5 {
        1 => Cut::Half,
        3 => Cut::Answer,
        _ => Cut::No,
    });
    succeeded(writer(&wire.address, "a", 8).spawn().unwrap());
    require_all(&server, &[("a", 8)]);
    assert!(wire.writes.load(Ordering::SeqCst) > 8, "nothing was cut");
}

#[test]
fn a_writer_that_is_killed_in_mid_write_leaves_nothing_half() {
    let server = Server::start(&[]);
    succeeded(writer(&server.address, "a", 2).spawn().unwrap());
    let wire = Wire::new(&server.address, |_| Cut::Stall);
    let mut child = writer(&wire.address, "killed", 1).spawn().unwrap();
    while wire.writes.load(Ordering::SeqCst) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended without writing");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeeded(writer(&server.address, "b", 2).spawn().unwrap());
    require_all(&server, &[("a", 2), ("b", 2)]);
}

#[test]
fn a_torn_last_line_stays_alone() {
    let server = Server::start(&[]);
    let object = server.object(OBJECT);
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(&object, "{\"whole\":1}\n{\"hal").unwrap();
    succeeded(writer(&server.address, "a", 1).spawn().unwrap());
    assert_eq!(server.lines(OBJECT), ["{\"whole\":1}", "{\"hal", &line("a", 0)]);
}

/// A run that is remembered, and the history that has it.
#[test]
fn a_run_is_remembered_in_a_bucket() {
    let server = Server::start(&[]);
    let place = Place::new();
    let mut run = place.command("run");
    run.args(["--subject", &fake("--name mine"), "--ref", &format!("x={}", fake(""))]);
    run.args(["--history", URL]);
    let output = with_keys(&mut run, &server.address).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", texts(&output).1);
    let output = history(&server.address, |_| {});
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.contains("mine") || stdout.contains("PASS"), "{stdout}");
    assert_eq!(stderr, "");
}

fn history(address: &str, change: impl Fn(&mut Command)) -> Output {
    let mut command = diff();
    command.args(["history", "--history", URL]);
    change(with_keys(&mut command, address));
    command.output().unwrap()
}

/// What a run says that can't be remembered, before it runs anything.
fn refused(address: &str, change: impl Fn(&mut Command)) -> String {
    let place = Place::new();
    let mut run = place.command("run");
    run.args(["--subject", &fake(""), "--ref", &format!("x={}", fake("")), "--history", URL]);
    change(with_keys(&mut run, address));
    let output = run.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{stdout}\n{stderr}");
    assert!(stdout.is_empty(), "{stdout}");
    assert!(stderr.contains(URL) && stderr.lines().count() == 1, "{stderr}");
    assert!(!stderr.contains(SECRET), "{stderr}");
    stderr
}

#[test]
fn what_is_wrong_is_told_before_anything_runs() {
    let server = Server::start(&[]);
    let at = &server.address;
    let wrong = |change: &dyn Fn(&mut Command)| refused(at, change);

    let key = wrong(&|c| {
        c.env("AWS_ACCESS_KEY_ID", "AKIDOTHER");
    });
    assert!(
        key.contains("doesn't know these credentials") || key.contains("refuses access"),
        "{key}"
    );
    let secret = wrong(&|c| {
        c.env("AWS_SECRET_ACCESS_KEY", "another");
    });
    assert!(secret.contains("SignatureDoesNotMatch") && !secret.contains("another"), "{secret}");
    let http = wrong(&|c| {
        c.env_remove("AWS_ALLOW_HTTP");
    });
    assert!(http.contains("AWS_ALLOW_HTTP=true"), "{http}");
    let none = wrong(&|c| {
        c.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        // What this machine would be asked; nobody is there.
        c.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9");
    });
    assert!(none.contains("no credentials") && none.contains("AWS_ACCESS_KEY_ID"), "{none}");
    let nobody = wrong(&|c| {
        c.env("AWS_ENDPOINT", "http://127.0.0.1:9");
    });
    assert!(nobody.contains("http://127.0.0.1:9") && nobody.contains("refused"), "{nobody}");

    std::fs::remove_dir(server.dir.path().join(BUCKET)).unwrap();
    let bucket = wrong(&|_| {});
    assert!(bucket.contains("has no bucket runs"), "{bucket}");
    let output = history(at, |_| {});
    assert_eq!(output.status.code(), Some(3), "{}", texts(&output).0);
    assert!(texts(&output).1.contains("has no bucket runs"), "{}", texts(&output).1);
}

#[test]
fn a_store_that_would_lose_records_is_refused() {
    let server = Server::start(&["--ignore-conditions"]);
    let told = refused(&server.address, |_| {});
    assert!(told.contains("doesn't honour If-"), "{told}");
    assert!(!server.object(OBJECT).exists());
}
