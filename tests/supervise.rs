//! Conversations with an adapter that misbehaves: each fault has its own kind, ends in time, and
//! leaves no process behind.
//!
//! The adapter is `tests/fake_adapter/fake_adapter.py` (Python's standard library); what it can do
//! wrong is listed by `fake_adapter.py --mode list`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llorch_diff::supervise::{
    AdapterCommand, ExitState, Failure, FailureKind, Forced, Limits, Session, ToolFailureKind,
    group_is_empty, run_tool,
};
use llorch_trace::protocol::{DoneMessage, RunRequest};
use llorch_trace::{Dtype, Precision};

/// Short enough that a test of a time-out is quick, long enough for a loaded machine to answer.
fn limits() -> Limits {
    Limits {
        hello: Duration::from_secs(20),
        load: Duration::from_secs(20),
        case: Duration::from_secs(30),
        grace: Duration::from_millis(500),
        stderr_cap: 256 << 10,
    }
}

fn fake(mode: &str) -> AdapterCommand {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake_adapter/fake_adapter.py");
    let command = AdapterCommand::new("fake", "python3").arg("-u").arg(script.to_string_lossy());
    if mode.is_empty() { command } else { command.args(["--mode", mode]) }
}

/// A session, its folder, and what came of it.
struct Talk {
    dir: tempfile::TempDir,
    limits: Limits,
    session: Option<Session>,
    leader: i32,
    tensors: usize,
}

impl Talk {
    fn start(mode: &str, limits: Limits) -> Result<Self, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::start(&fake(mode), &limits, &dir.path().join("stderr.txt"))?;
        let leader = session.process_id();
        Ok(Self { dir, limits, session: Some(session), leader, tensors: 0 })
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    fn load(&mut self) -> Result<Precision, Failure> {
        let dir = self.dir.path().to_owned();
        std::fs::write(
            dir.join("config.json"),
            r#"{"n_layer":2,"n_head":2,"n_embd":8,"vocab_size":32}"#,
        )
        .unwrap();
        self.session().load(&dir, Dtype::F32, 1)
    }

    fn run(&mut self) -> Result<DoneMessage, Failure> {
        let request = RunRequest {
            id: "case-1".into(),
            ids: vec![3, 1],
            points: vec!["*".into()],
            max_new_tokens: 3,
            out_dir: self.dir.path().to_owned(),
            ..RunRequest::default()
        };
        let mut seen: Vec<PathBuf> = Vec::new();
        let result = self
            .session
            .as_mut()
            .unwrap()
            .run(request, &mut |tensor| seen.push(tensor.file.clone()));
        self.tensors += seen.len();
        result
    }

    fn stderr_file(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("stderr.txt")).unwrap()
    }
}

/// The failure of a run that got as far as `load`, and the proof that nothing is left.
fn failure_of_run(mode: &str) -> Failure {
    failure_within(mode, limits())
}

fn failure_within(mode: &str, limits: Limits) -> Failure {
    let mut talk = Talk::start(mode, limits).unwrap();
    talk.load().unwrap();
    let failure = talk.run().unwrap_err();
    assert!(group_is_empty(talk.leader), "{mode}: the process group is alive after {failure}");
    assert!(talk.session().dead().is_some(), "{mode}: the session takes more requests");
    assert_eq!(talk.run().unwrap_err().kind, failure.kind, "{mode}: a dead session answers");
    failure
}

fn short_case() -> Limits {
    Limits { case: Duration::from_millis(700), ..limits() }
}

#[test]
fn a_good_adapter_answers_everything_and_ends_by_itself() {
    let mut talk = Talk::start("", limits()).unwrap();
    assert_eq!(talk.session().hello().name, "fake");
    assert!(talk.session().hello().can("tokenize"));
    talk.load().unwrap();
    assert_eq!(talk.session().tokenize("Hello.").unwrap(), [15496, 13]);
    let done = talk.run().unwrap();
    assert_eq!((done.id.as_str(), done.generated.len()), ("case-1", 3));
    // 2 + 2 layers of 16 + 5 points, at 3 steps.
    assert_eq!(talk.tensors, 3 * (2 + 2 * 16 + 5));
    let again = talk.run().unwrap();
    assert_eq!(again.generated, done.generated, "one process serves many cases");

    let finished = talk.session.take().unwrap().finish();
    assert_eq!(finished.exit, Some(ExitState::Exited(0)));
    assert_eq!((finished.forced, finished.leaked), (Forced::No, 0));
    assert!(group_is_empty(talk.leader));
}

#[test]
fn a_program_that_does_not_exist_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let command = AdapterCommand::new("ghost", "/no/such/program");
    let failure = Session::start(&command, &limits(), &dir.path().join("stderr.txt")).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Spawn);
    assert!(failure.message.contains("/no/such/program"), "{failure}");
}

#[test]
fn a_hang_at_hello_times_out() {
    let short = Limits { hello: Duration::from_millis(700), ..limits() };
    let failure = Talk::start("hang-at-hello", short).map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::HelloTimeout);
    assert!(failure.message.contains("didn't answer hello within 0.7 s"), "{failure}");
}

#[test]
fn an_exit_before_hello_is_a_crash_with_its_code() {
    let failure = Talk::start("exit-at-start", limits()).map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(7) });
}

#[test]
fn another_protocol_version_is_refused() {
    let failure = Talk::start("wrong-version", limits()).map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Protocol);
    assert!(failure.message.contains("protocol 2"), "{failure}");
}

#[test]
fn a_banner_on_stdout_is_garbage_and_is_quoted() {
    let failure = Talk::start("garbage-at-start", limits()).map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Garbage);
    assert!(failure.message.contains("Welcome to FakeML 1.0!"), "{failure}");
}

#[test]
fn an_error_in_answer_to_hello_is_the_adapters_own() {
    let failure = Talk::start("error-at-hello", limits()).map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Internal);
    assert!(failure.message.contains("no library of that name"), "{failure}");
}

#[test]
fn a_hang_at_load_times_out() {
    let short = Limits { load: Duration::from_millis(700), ..limits() };
    let mut talk = Talk::start("hang-at-load", short).unwrap();
    assert_eq!(talk.load().unwrap_err().kind, FailureKind::LoadTimeout);
    assert!(group_is_empty(talk.leader));
}

#[test]
fn an_error_at_load_leaves_the_adapter_alive() {
    let mut talk = Talk::start("error-at-load", limits()).unwrap();
    let failure = talk.load().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Resource);
    assert!(failure.is_recoverable());
    assert_eq!(talk.session().tokenize("Hello.").unwrap(), [15496, 13]);
}

#[test]
fn a_hang_at_run_times_out() {
    let failure = failure_within("hang-at-run", short_case());
    assert_eq!(failure.kind, FailureKind::CaseTimeout);
}

#[test]
fn a_child_that_ignores_term_is_killed() {
    let began = Instant::now();
    let failure = failure_within("ignore-term", short_case());
    assert_eq!(failure.kind, FailureKind::CaseTimeout);
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
}

#[test]
fn a_crash_names_the_signal() {
    let failure = failure_of_run("crash");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Signalled(11) });
    assert!(failure.message.contains("SIGSEGV"), "{failure}");
}

#[test]
fn an_exit_in_the_middle_of_a_run_is_a_crash_even_with_code_zero() {
    let failure = failure_of_run("exit-mid-run");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(3) });
    let failure = failure_of_run("exit-zero-mid-run");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(0) });
}

#[test]
fn the_last_lines_of_stderr_explain_a_crash() {
    let failure = failure_of_run("stderr-then-crash");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(1) });
    assert!(
        failure.stderr_tail.ends_with("FakeError: the cat sat on the GPU"),
        "{}",
        failure.stderr_tail
    );
    assert!(failure.to_string().contains("  | FakeError"), "{failure}");
}

#[test]
fn garbage_on_stdout_is_quoted_with_escapes() {
    let failure = failure_of_run("garbage");
    assert_eq!(failure.kind, FailureKind::Garbage);
    assert!(failure.message.contains("Loading weights: 42%"), "{failure}");
    let failure = failure_of_run("binary");
    assert_eq!(failure.kind, FailureKind::Garbage);
    assert!(failure.message.contains("binary") && !failure.message.contains('\0'), "{failure:?}");
}

#[test]
fn half_a_line_and_a_hang_is_a_time_out_that_says_so() {
    let failure = failure_within("half-line", short_case());
    assert_eq!(failure.kind, FailureKind::CaseTimeout);
    assert!(failure.message.contains("unfinished line of 21 bytes"), "{failure}");
}

#[test]
fn half_a_line_and_an_exit_is_a_crash_that_quotes_it() {
    let failure = failure_of_run("half-line-exit");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(0) });
    assert!(failure.message.contains(r#"{"type":"done","id":""#), "{failure}");
}

#[test]
fn a_line_too_long_to_be_a_message_is_garbage() {
    for mode in ["huge-line", "endless-line"] {
        let failure = failure_of_run(mode);
        assert_eq!(failure.kind, FailureKind::Garbage, "{mode}: {failure}");
        assert!(failure.message.len() < 500, "{mode}: the whole line is quoted");
    }
}

#[test]
fn messages_that_break_the_protocol_are_named() {
    for (mode, expected) in [
        ("wrong-id", "somebody-else"),
        ("unknown-type", "progress"),
        ("bad-message", "shape"),
        ("load-twice", "sent `loaded` where `tensor or done` was due"),
        ("closes-stdout", "closed its stdout"),
    ] {
        let failure = failure_of_run(mode);
        assert_eq!(failure.kind, FailureKind::Protocol, "{mode}: {failure}");
        assert!(failure.message.contains(expected), "{mode}: {failure}");
    }
}

#[test]
fn each_error_class_has_its_kind_and_the_adapter_lives_on() {
    for (mode, kind) in [
        ("error-unsupported", FailureKind::Unsupported),
        ("error-input", FailureKind::Input),
        ("error-resource", FailureKind::Resource),
        ("error-internal", FailureKind::Internal),
    ] {
        let mut talk = Talk::start(mode, limits()).unwrap();
        talk.load().unwrap();
        let failure = talk.run().unwrap_err();
        assert_eq!(failure.kind, kind);
        assert!(failure.is_recoverable() && failure.message.contains("as ordered"), "{failure}");
        assert_eq!(talk.session.take().unwrap().finish().exit, Some(ExitState::Exited(0)));
    }
    let mut talk = Talk::start("error-once", limits()).unwrap();
    talk.load().unwrap();
    assert!(talk.run().is_err());
    assert_eq!(talk.run().unwrap().generated.len(), 3, "the case after an error goes well");
}

#[test]
fn a_grandchild_that_holds_stdout_does_not_hold_us() {
    let began = Instant::now();
    let failure = failure_of_run("grandchild");
    assert_eq!(failure.kind, FailureKind::Crash { exit: ExitState::Exited(5) });
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
}

#[test]
fn what_an_adapter_leaves_behind_is_reported_and_gone() {
    let mut talk = Talk::start("grandchild-at-end", limits()).unwrap();
    talk.load().unwrap();
    talk.run().unwrap();
    let finished = talk.session.take().unwrap().finish();
    assert_eq!(finished.exit, Some(ExitState::Exited(0)));
    assert_eq!(finished.leaked, 1);
    assert!(group_is_empty(talk.leader));
}

#[cfg(target_os = "linux")] // elsewhere what leaves the group survives, as documented
#[test]
fn what_leaves_the_process_group_is_found_too() {
    let mut talk = Talk::start("escapee", limits()).unwrap();
    talk.load().unwrap();
    talk.run().unwrap();
    let finished = talk.session.take().unwrap().finish();
    assert_eq!((finished.exit, finished.leaked), (Some(ExitState::Exited(0)), 1));
}

#[test]
fn an_adapter_that_ignores_the_end_of_stdin_is_ended() {
    let mut talk = Talk::start("ignore-end", limits()).unwrap();
    talk.load().unwrap();
    let finished = talk.session.take().unwrap().finish();
    assert_eq!(finished.forced, Forced::Term);
    assert!(group_is_empty(talk.leader));
}

#[test]
fn an_adapter_that_never_reads_does_not_block_the_writer() {
    let mut talk =
        Talk::start("deaf", Limits { load: Duration::from_secs(1), ..limits() }).unwrap();
    let began = Instant::now();
    // More than any pipe holds.
    let long = PathBuf::from(format!("/{}", "x/".repeat(4 << 20)));
    let failure = talk.session().load(&long, Dtype::F32, 1).unwrap_err();
    assert_eq!(failure.kind, FailureKind::LoadTimeout);
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert!(group_is_empty(talk.leader));
}

#[test]
fn a_flood_on_stderr_is_capped_and_does_not_stall_the_adapter() {
    let mut talk = Talk::start("flood-stderr", limits()).unwrap();
    talk.load().unwrap();
    talk.run().unwrap();
    let cap = talk.limits.stderr_cap;
    let summary = talk.session.take().unwrap().finish().stderr;
    assert!(summary.total > 30 << 20, "{} bytes came", summary.total);
    assert_eq!(summary.cut, summary.total - cap);
    let file = talk.stderr_file();
    assert!((file.len() as u64) < cap + 100, "{} bytes were kept", file.len());
    assert!(file.starts_with(b"line 0 ") && file.ends_with(b"the end of the flood\n"));
    assert!(summary.tail.ends_with("the end of the flood"));
}

#[test]
fn unknown_fields_and_blank_lines_do_no_harm() {
    let mut talk = Talk::start("unknown-fields,blank-lines", limits()).unwrap();
    talk.load().unwrap();
    assert_eq!(talk.run().unwrap().generated.len(), 3);
}

#[test]
fn a_session_that_is_dropped_takes_its_group_with_it() {
    let mut talk = Talk::start("grandchild-at-end", limits()).unwrap();
    talk.load().unwrap();
    let leader = talk.leader;
    drop(talk);
    assert!(group_is_empty(leader));
}

#[test]
fn time_spent_on_tensors_is_not_the_adapters() {
    let mut talk = Talk::start("", Limits { case: Duration::from_secs(3), ..limits() }).unwrap();
    talk.load().unwrap();
    let request = RunRequest {
        id: "slow".into(),
        ids: vec![1],
        points: vec!["h.0*".into()],
        out_dir: talk.dir.path().to_owned(),
        ..RunRequest::default()
    };
    let mut tensors = 0;
    let nap = Duration::from_millis(250);
    talk.session()
        .run(request, &mut |_| {
            tensors += 1;
            std::thread::sleep(nap)
        })
        .unwrap();
    assert!(nap * tensors > Duration::from_secs(3), "{tensors} tensors came");
}

#[test]
fn python_settings_of_the_user_do_not_reach_an_adapter() {
    // This program again, in an environment with the setting, runs the test below.
    let inner = AdapterCommand::new("inner", std::env::current_exe().unwrap())
        .args(["--exact", "inside_an_environment_with_python_settings", "--ignored"])
        .env("PYTHONPATH", "/evil");
    let output = run_tool(&inner, Duration::from_secs(20), None).unwrap();
    assert!(output.stdout.contains("1 passed"), "{}", output.stdout);
}

#[test]
#[ignore = "run by the test above, in the environment that it needs"]
fn inside_an_environment_with_python_settings() {
    assert_eq!(std::env::var("PYTHONPATH").as_deref(), Ok("/evil"));
    let command = AdapterCommand::new("env", "sh").args(["-c", "echo ${PYTHONPATH-unset} $EXTRA"]);
    let command = command.env("EXTRA", "replaced").env("EXTRA", "given");
    let output = run_tool(&command, Duration::from_secs(10), None).unwrap();
    assert_eq!(output.stdout, "unset given\n");
}

#[test]
fn what_cargo_says_of_our_package_reaches_no_child() {
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "run by cargo");
    let script = "echo ${CARGO_PKG_NAME-unset} ${CARGO_MANIFEST_DIR-unset} ${PATH:+kept}";
    let command = AdapterCommand::new("env", "sh").args(["-c", script]);
    let output = run_tool(&command, Duration::from_secs(10), None).unwrap();
    assert_eq!(output.stdout, "unset unset kept\n");
}

#[test]
fn a_tool_is_logged_and_its_failure_quotes_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("logs/tool.log");
    let script = "for i in $(seq 100); do echo line $i; done; echo went wrong >&2; exit 9";
    let command = AdapterCommand::new("tool", "sh").args(["-c", script]);
    let failure = run_tool(&command, Duration::from_secs(10), Some(&log)).unwrap_err();
    assert_eq!(failure.kind, ToolFailureKind::Exit(ExitState::Exited(9)));
    assert_eq!(failure.tail, "went wrong");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.starts_with("$ sh -c ") && log.contains("line 1\n") && log.contains("line 100\n"));
}

/// At a fixed number of lines a second this would take minutes, as a verbose compiler once did.
#[test]
fn a_tool_that_says_much_on_stderr_is_not_slowed_down() {
    let script = "seq 100000 >&2; echo done";
    let command = AdapterCommand::new("tool", "sh").args(["-c", script]);
    let output = run_tool(&command, Duration::from_secs(60), None).unwrap();
    assert_eq!(output.stdout, "done\n");
}

#[test]
fn a_tool_that_hangs_is_ended() {
    let command = AdapterCommand::new("tool", "sh").args(["-c", "echo begun; sleep 60"]);
    let began = Instant::now();
    let failure = run_tool(&command, Duration::from_millis(500), None).unwrap_err();
    assert_eq!(failure.kind, ToolFailureKind::Timeout);
    assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
    assert_eq!(failure.tail, "begun");
}

#[test]
fn a_tool_may_leave_a_background_process_that_holds_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let script = format!("sleep 30 & echo $! > {}; echo done", pid_file.display());
    let command = AdapterCommand::new("tool", "sh").args(["-c", &script]);
    let output = run_tool(&command, Duration::from_secs(10), None).unwrap();
    assert_eq!(output.stdout, "done\n");
    assert!(output.seconds < 8.0, "it took {} s", output.seconds);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let kill = AdapterCommand::new("kill", "sh").args(["-c", &format!("kill {}", pid.trim())]);
    run_tool(&kill, Duration::from_secs(10), None).expect("the background process was let be");
}
