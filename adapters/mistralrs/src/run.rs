//! One run: each captured stage from what was put in front of it.

use std::time::Instant;

use llorch_trace::protocol::{RunRequest, Seconds};
use llorch_trace::{Point, all_points};

use crate::failure::{Failure, Result};
use crate::model::{Model, NO_GPT2};
use crate::recorder::Recorder;
use crate::tap::Tap;

#[derive(Debug)]
pub struct Outcome {
    pub generated: Vec<u32>,
    pub seconds: Seconds,
}

pub fn run(
    model: &mut dyn Model,
    request: &RunRequest,
    recorder: &mut Recorder<'_>,
    mut cancelled: impl FnMut() -> bool,
) -> Result<Outcome> {
    if request.max_new_tokens > 0 {
        return Err(Failure::unsupported(format!("generate: {NO_GPT2}")));
    }
    if recorder.plan.injected.is_empty() {
        return Err(Failure::unsupported(format!(
            "{NO_GPT2}; its layers are compared by run --isolate"
        )));
    }
    let start = Instant::now();
    let wanted: Vec<Point> = all_points(model.dims().n_layer)
        .into_iter()
        .filter(|point| recorder.plan.captured.contains(point))
        .collect();
    // All of them before the first is sent: a run that ends with an error shows nothing.
    let mut made: Vec<(Point, candle_core::Tensor)> = Vec::new();
    for point in wanted {
        if cancelled() {
            return Err(Failure::resource("cancelled"));
        }
        let given = |input: Point| recorder.plan.injected.get(&(0, input)).cloned();
        let value = match given(point) {
            Some(put) => put,
            None => model.stage(point, &given)?,
        };
        made.push((point, value));
    }
    for (point, value) in made {
        recorder.pass(point, value)?;
    }
    let seconds = Seconds { prefill: Some(start.elapsed().as_secs_f64()), ..Seconds::default() };
    Ok(Outcome { generated: Vec::new(), seconds })
}
