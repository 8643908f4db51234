//! One request after another, each with one end: in turn, cancelled, and when stdin ends.

use std::time::Instant;

use llorch_trace::protocol::ErrorClass;
use serde_json::{Value, json};

use super::ask::End;
use super::bench::Bench;
use super::check::Stop;
use crate::supervise::{ExitState, Forced};

/// Two requests sent at one blow: the first is answered to its end before the second.
pub fn in_turn(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let first = bench.run_request(json!({"points": ["h.*"]}));
    let second = bench.run_request(json!({"ids": bench.ids(2, 7), "points": ["logits.last"]}));
    bench.send_lines(&[&first, &second])?;
    for request in [first, second] {
        let ran = bench.hear_run(request)?;
        let _ = std::fs::remove_dir_all(&ran.out_dir);
        if let End::Error(error) = ran.end {
            let found = llorch_trace::protocol::Response::Error(error);
            return Err(bench.unexpected(&found, "a done each"));
        }
    }
    Ok(())
}

/// After `done` nothing more is said of a run. What comes next must be the answer to the next request.
pub fn ends_once(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let n = bench.steps();
    let (ran, _) = bench.done(json!({"points": ["logits.last"], "max_new_tokens": n}))?;
    let _ = std::fs::remove_dir_all(&ran.out_dir);
    let before = bench.sent();
    bench.done(json!({})).map(|_| ()).map_err(|stop| match stop {
        Stop::Wrong(mut wrong) => {
            wrong.sent = format!("{before}, and after its done {}", wrong.sent);
            Stop::Wrong(wrong)
        }
        skip => skip,
    })
}

/// A run that is going on and one that waits are cancelled; an engine may be quicker than we are, so
/// it gets more than one chance.
pub fn cancel(bench: &mut Bench<'_>) -> Result<(), Stop> {
    const CHANCES: usize = 3;
    bench.ready()?;
    for chance in 1..=CHANCES {
        let room = bench.setup.dims.n_positions;
        let fields: Value = match bench.can("generate") {
            true => json!({"ids": bench.ids(1, 13), "max_new_tokens": room}),
            false => json!({"ids": bench.ids(room, 13)}),
        };
        let (going, waiting) = (bench.run_request(fields.clone()), bench.run_request(fields));
        let stop = |run: &Value| json!({"type": "cancel", "id": run["id"]});
        let (stop_going, stop_waiting) = (stop(&going), stop(&waiting));
        bench.send_lines(&[&going, &waiting, &stop_going, &stop_waiting])?;
        let mut finished = Vec::new();
        for run in [going, waiting] {
            let id = run["id"].as_str().unwrap_or_default().to_string();
            let ran = bench.hear_run(run)?;
            let _ = std::fs::remove_dir_all(&ran.out_dir);
            match &ran.end {
                End::Done(_) => finished.push(id),
                End::Error(error) => {
                    bench.is_refusal(error, ErrorClass::Resource, Some(&id))?;
                    if error.message != "cancelled" {
                        let found = format!("message {:?}", error.message);
                        return Err(bench.wrong(found, "message \"cancelled\""));
                    }
                }
            }
        }
        // Whatever has begun may be done before it is told to stop; the one that waits may not.
        if finished.len() < 2 {
            break;
        }
        if chance == CHANCES {
            let found =
                format!("both runs were done, {CHANCES} times, as if nobody had said cancel");
            return Err(bench.wrong(found, "an error of class resource and message `cancelled`"));
        }
    }
    // One that comes too late does nothing, and isn't answered.
    bench.send(&json!({"type": "cancel", "id": "llorch-never"}))?;
    bench.alive()
}

/// Stdin ends behind a request: it is answered, and the process ends by itself with exit code 0.
pub fn end_of_stdin(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let n = bench.steps();
    let request = bench.run_request(json!({"points": ["logits.last"], "max_new_tokens": n}));
    bench.send(&request)?;
    bench.end_input()?;
    let ran = bench.hear_run(request)?;
    let _ = std::fs::remove_dir_all(&ran.out_dir);
    if let End::Error(error) = &ran.end {
        let found = llorch_trace::protocol::Response::Error(error.clone());
        return Err(bench.unexpected(&found, "a done before it ends"));
    }
    ends_well(bench)
}

/// The same with nothing to do.
pub fn idle_end(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    ends_well(bench)
}

fn ends_well(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let began = Instant::now();
    let (finished, sent) = bench.finish()?;
    let sent = format!("the end of stdin, after {sent}");
    let expected = "exit code 0 by itself, and no process left behind";
    match (finished.forced, finished.exit) {
        (Forced::No, Some(ExitState::Exited(0))) if finished.leaked == 0 => Ok(()),
        (Forced::No, Some(ExitState::Exited(0))) => {
            let found = format!("it left {} processes behind, which were killed", finished.leaked);
            Err(Stop::wrong(sent, found, expected))
        }
        (Forced::No, Some(exit)) => Err(Stop::wrong(sent, format!("{exit}"), expected)),
        _ => {
            let seconds = began.elapsed().as_secs();
            Err(Stop::wrong(sent, format!("it ran on and was killed after {seconds} s"), expected))
        }
    }
}
