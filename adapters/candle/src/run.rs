//! One case: prefill, then decode steps, each fed the token chosen or forced before it.

use std::time::Instant;

use candle_core::{Device, Tensor};
use llorch_trace::protocol::{RunRequest, Seconds};
use llorch_trace::{Point, Stage};

use crate::failure::{Failure, Result};
use crate::model::Model;
use crate::recorder::Recorder;
use crate::sampling::{Drawer, argmax, probabilities};
use crate::tap::Tap;

#[derive(Debug)]
pub struct Outcome {
    pub generated: Vec<u32>,
    pub seconds: Seconds,
}

/// `cancelled` is asked between steps.
pub fn run(
    model: &mut dyn Model,
    request: &RunRequest,
    recorder: &mut Recorder<'_>,
    mut cancelled: impl FnMut() -> bool,
) -> Result<Outcome> {
    let steps = recorder.plan.steps;
    let mut drawer = Drawer::new(request.sampling.seed);
    let mut generated = Vec::with_capacity(request.max_new_tokens);
    let mut fed = request.ids.clone();
    let mut seconds = Seconds::default();
    model.begin(request.ids.len() + steps - 1);
    for step in 0..steps {
        if cancelled() {
            return Err(Failure::resource("cancelled"));
        }
        recorder.step = step;
        let start = Instant::now();
        let tokens = Tensor::new(fed.as_slice(), &Device::Cpu)?;
        fed = recorder.pass(Point::new(Stage::Tokens), tokens)?.to_vec1()?;
        let logits = model.step(&fed, recorder)?;
        let chosen = choose(&logits, request, &mut drawer, recorder)?;
        let spent = start.elapsed().as_secs_f64();
        match step {
            0 => seconds.prefill = Some(spent),
            _ => *seconds.decode.get_or_insert(0.0) += spent,
        }
        if request.max_new_tokens == 0 {
            break;
        }
        let next = request.forced_ids.as_ref().map_or(chosen, |forced| forced[step]);
        generated.push(next);
        fed = vec![next];
    }
    Ok(Outcome { generated, seconds })
}

/// The token that this step leads to: the largest logit's at temperature 0, else a drawn one.
fn choose(
    logits: &Tensor,
    request: &RunRequest,
    drawer: &mut Drawer,
    recorder: &mut Recorder<'_>,
) -> Result<u32> {
    let [last, largest, next_probs] =
        [Stage::LogitsLast, Stage::Argmax, Stage::NextProbs].map(Point::new);
    let greedy = request.sampling.temperature == 0.0;
    let logits = recorder.pass(last, logits.clone())?;
    let best = Tensor::new(argmax(&logits)?, &Device::Cpu)?;
    let best = recorder.pass(largest, best)?.to_scalar()?;
    if greedy && !recorder.wants(next_probs) {
        return Ok(best);
    }
    let probs = recorder.pass(next_probs, probabilities(&logits, &request.sampling)?)?;
    if greedy || request.forced_ids.is_some() {
        return Ok(best);
    }
    drawer
        .draw(&logits, &probs)
        .map_err(|e| Failure::internal(format!("failed to draw a token: {e}")))
}
