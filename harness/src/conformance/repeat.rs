//! The same request again: nothing of another run is left over, and the bytes are the same.

use serde_json::json;

use super::bench::Bench;
use super::check::Stop;
use super::survey::{Survey, examine};

/// Without the promise of equal bytes, what is left over is told from rounding by its size.
const ROUNDING: f64 = 1e-3;

fn run(bench: &mut Bench<'_>, from: usize) -> Result<Survey, Stop> {
    let ids = match from {
        0 => bench.prompt(),
        from => bench.ids(bench.setup.dims.n_positions.saturating_sub(3).clamp(1, 9), from),
    };
    let n = bench.steps();
    let (ran, _) = bench.done(json!({"ids": ids, "points": ["*"], "max_new_tokens": n}))?;
    let survey = examine(bench, &ran);
    survey.sound()?;
    Ok(survey)
}

/// A run, another one, and the first again, in one process.
pub fn leftovers(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let first = run(bench, 0)?;
    run(bench, 977)?;
    let again = run(bench, 0)?;
    let expected = "what it was before the other run";
    if bench.can("deterministic") {
        return match first.first_difference(&again) {
            None => Ok(()),
            Some(at) => Err(bench.wrong(format!("after another run it differs: {at}"), expected)),
        };
    }
    let (largest, at) = first.largest_difference(&again);
    match largest > ROUNDING || first.tensors.len() != again.tensors.len() {
        false => Ok(()),
        true => Err(bench.wrong(format!("after another run it differs: {at}"), expected)),
    }
}

/// Twice in one process, and in another process.
pub fn deterministic(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("deterministic")?;
    let first = run(bench, 0)?;
    let again = run(bench, 0)?;
    if let Some(at) = first.first_difference(&again) {
        return Err(bench.wrong(format!("the second time it differs: {at}"), "the same bytes"));
    }
    let elsewhere = bench
        .survey
        .as_ref()
        .and_then(Option::as_ref)
        .and_then(|other| other.first_difference(&first));
    match elsewhere {
        None => Ok(()),
        Some(at) => Err(bench.wrong(
            format!("it differs from what another process said: {at}"),
            "the same bytes in every process",
        )),
    }
}
