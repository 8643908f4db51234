//! What long work tells meanwhile: bars on a terminal, lines elsewhere, nothing with --quiet.
#![allow(clippy::disallowed_methods, reason = "a test starts the program that it tests")]

mod run_support;

use std::process::{Command, Stdio};

use run_support::terminal::on_terminal;
use run_support::{Place, fake, texts};

/// A run of two cases against two references at the same time, none of which is quick.
fn run(place: &Place) -> Command {
    let mut command = place.command("run");
    let slow = |name: &str| fake(&format!("--pause 0.8 --name {name}"));
    command.args(["--subject", &slow("mine"), "--jobs", "2"]);
    command.args(["--ref", &format!("x={}", slow("x")), "--ref", &format!("y={}", slow("y"))]);
    command
}

fn is_bar(line: &str) -> bool {
    ["mine: ", "x: ", "y: "].iter().any(|name| {
        line.strip_prefix(name).is_some_and(|rest| {
            ["starting", "loading", "case "].iter().any(|form| rest.starts_with(form))
        })
    })
}

#[test]
fn bars_tell_what_for_how_long_and_how_much_is_left_and_go_when_all_is_done() {
    let place = Place::new();
    let seen = on_terminal(100, &run(&place), None);
    assert_eq!(seen.code, 0, "{:#?}", seen.left());
    let has =
        |parts: &[&str]| seen.lines().any(|l| is_bar(l) && parts.iter().all(|p| l.contains(p)));
    assert!(has(&["mine: case 1 of 2, ", " s", "[", "] · first, "]), "{:#?}", seen.screens);
    assert!(has(&["mine: case 2 of 2, ", ", about ", " s left"]), "{:#?}", seen.screens);
    let both = seen.screens.iter().any(|screen| {
        let bars: Vec<&String> = screen.iter().filter(|line| is_bar(line)).collect();
        bars.iter().any(|l| l.starts_with("x: ")) && bars.iter().any(|l| l.starts_with("y: "))
    });
    assert!(both, "two references at the same time: {:#?}", seen.screens);

    // What stays are the lines, each whole.
    let left = seen.left();
    assert!(!left.iter().any(|line| is_bar(line)), "{left:#?}");
    for line in ["mine: first: ", "x: second: ", "y: first: ", "   1 ln "] {
        assert!(left.iter().any(|l| l.starts_with(line)), "{line:?} in {left:#?}");
    }
    assert!(seen.cursor_shown && seen.column == 0 && left.last().is_some_and(String::is_empty));
    assert!(seen.stdout.contains("PASS"), "{}", seen.stdout);
}

#[test]
fn a_bar_fits_a_narrow_terminal() {
    let place = Place::new();
    let seen = on_terminal(40, &run(&place), None);
    assert_eq!(seen.code, 0);
    let left: Vec<&str> =
        seen.lines().filter(|line| is_bar(line) && line.contains(" left")).collect();
    assert!(left.iter().any(|l| l.starts_with("mine: case 2 of 2, ")), "{:#?}", seen.screens);
    // A bar that wrapped would leave its second half behind.
    assert!(!seen.left().iter().any(|line| is_bar(line) || line.contains(" left")));
    for screen in &seen.screens {
        let last = screen.last().map_or("", String::as_str);
        assert!(!last.starts_with("tensors"), "{screen:#?}");
    }
}

#[test]
fn ctrl_c_leaves_a_clean_line() {
    let mut command = run_support::diff();
    command.args(["run", "--prompt", "one", "--prompt", "two", "--no-provision", "--offline"]);
    command.args(["--subject", &fake("--pause 600 --name mine")]);
    command.args(["--ref", &format!("x={}", fake(""))]);
    let seen = on_terminal(80, &command, Some("mine: case 1 of 2"));
    assert_eq!(seen.code, 130, "{:#?}", seen.left());
    let left: Vec<&String> = seen.left().iter().filter(|line| !line.is_empty()).collect();
    assert!(left.last().is_some_and(|line| *line == "interrupted"), "{left:#?}");
    // Neither the bar, nor words about children that were ended.
    assert!(!left.iter().any(|line| line.starts_with("mine: ")), "{left:#?}");
    assert!(seen.cursor_shown && seen.column == 0);
}

/// One reference dies of the interrupt at once, another keeps the program for its grace period: what
/// dies meanwhile has neither crashed nor is it started again.
#[test]
fn what_an_interrupt_ends_is_no_crash() {
    let mut command = run_support::diff();
    command.args(["run", "--prompt", "one", "--prompt", "two", "--no-provision", "--offline"]);
    command.args(["--jobs", "2", "--subject", &fake("--name mine")]);
    command.args(["--ref", &format!("x={}", fake("--mode ignore-term"))]);
    command.args(["--ref", &format!("y={}", fake("--mode hang-at-tokenize --name y"))]);
    let seen = on_terminal(80, &command, Some("y: case 1 of 2"));
    assert_eq!(seen.code, 130, "{:#?}", seen.left());
    let left: Vec<&String> = seen.left().iter().filter(|line| !line.is_empty()).collect();
    assert!(left.last().is_some_and(|line| *line == "interrupted"), "{left:#?}");
    assert!(!left.iter().any(|line| line.contains("ended") || line.contains("again")), "{left:#?}");
}

#[test]
fn without_a_terminal_that_can_redraw_there_are_lines_and_no_escape_code() {
    let place = Place::new();
    let output = run(&place).output().unwrap();
    let (_, stderr) = texts(&output);
    assert!(!stderr.contains('\u{1b}') && !stderr.contains('\r'), "{stderr:?}");
    // A line from the beginning of the work, and those of what is done.
    assert!(stderr.lines().any(is_bar), "{stderr}");
    assert!(stderr.contains("mine: first: "), "{stderr}");

    let seen = on_terminal(80, run(&place).env("TERM", "dumb"), None);
    assert!(!seen.raw.contains(&0x1b), "{}", String::from_utf8_lossy(&seen.raw));
    assert!(seen.lines().any(is_bar), "{:#?}", seen.left());
}

#[test]
fn colours_are_for_nobody_so_no_color_changes_nothing() {
    let place = Place::new();
    let seen = on_terminal(80, run(&place).env("NO_COLOR", "1"), None);
    let raw = String::from_utf8_lossy(&seen.raw);
    assert!(
        !raw.split('\u{1b}').skip(1).any(|code| code.split_once('m').is_some_and(
            |(numbers, _)| {
                numbers
                    .strip_prefix('[')
                    .is_some_and(|n| n.chars().all(|c| c.is_ascii_digit() || c == ';'))
            }
        )),
        "{raw:?}"
    );
}

#[test]
fn quiet_is_empty_on_success_wherever_it_stands() {
    let place = Place::new();
    let out = place.path("out");
    let mut command = run(&place);
    let output = command.args(["--quiet", "--out", out.to_str().unwrap()]).output().unwrap();
    assert_eq!(texts(&output).1, "");
    let (out, npy) = (out.to_str().unwrap(), place.path("npy"));
    let npy = npy.to_str().unwrap();
    let commands: [&[&str]; 7] = [
        &["-q", "judge", out],
        &["report", out, "--format", "md", "--quiet"],
        &["bisect", "--from", out, "-q"],
        &["--quiet", "export", "--from", out, "--npy", npy],
        &["compare", npy, "--quiet"],
        &["adapters", "list", "--quiet"],
        &["golden", "check", "--quiet", "--subject", "llorch-cpud-that-is-not-there"],
    ];
    for words in commands {
        let output = run_support::diff().args(words).output().unwrap();
        let (_, stderr) = texts(&output);
        match output.status.code() {
            Some(2..) => assert!(
                stderr.starts_with("error: ") && stderr.lines().count() == 1,
                "{words:?}: {stderr}"
            ),
            _ => assert_eq!(stderr, "", "{words:?}"),
        }
    }
    let seen = on_terminal(80, run(&place).arg("--quiet"), None);
    assert_eq!(String::from_utf8_lossy(&seen.raw), "");
}

#[test]
fn a_reader_of_stderr_that_leaves_ends_nothing() {
    let place = Place::new();
    let mut child = run(&place).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(texts(&output).0.contains("PASS"));
}

/// `refs/nano/train.py` tells with this; no training is needed to see it.
#[test]
fn a_script_tells_the_same_way() {
    let script = "import time\n\
        from progress import Progress\n\
        with Progress('training nano') as shown:\n\
        \x20   for step in range(5):\n\
        \x20       time.sleep(0.3)\n\
        \x20       shown.tell((step + 1) / 6, f'step {step}, ' + 'x' * 200)\n";
    let mut python = Command::new("python3");
    python
        .args(["-B", "-c", script])
        .env("PYTHONPATH", run_support::repository().join("refs/nano"));
    let seen = on_terminal(80, &python, None);
    assert_eq!(seen.code, 0, "{:#?}", seen.left());
    let mut lines = seen.lines();
    let told = |l: &str| l.starts_with("training nano: 50%, ") && l.contains(" left (step 2, xx");
    assert!(lines.any(told), "{:#?}", seen.screens);
    assert!(seen.screens.iter().all(|screen| screen.len() == 1), "it wrapped: {:#?}", seen.screens);
    assert_eq!(seen.left(), [""]);
    let plain = python.output().unwrap();
    assert_eq!(texts(&plain).1, "", "a line comes every 15 s only");
}
