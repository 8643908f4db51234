//! What only some adapters can do: each check is made where the capability is declared.

use std::collections::BTreeSet;

use llorch_trace::files::write_npy;
use llorch_trace::protocol::{ErrorClass, Response, Sampling};
use llorch_trace::{Dtype, Point, Stage, Tensor};
use serde_json::json;

use super::ask::End;
use super::bench::Bench;
use super::check::Stop;
use super::survey::{Survey, examine_for};
use crate::collect::tensors::read_draws;
use crate::sampling::replay;

/// GPT-2's own vocabulary, of which some ids are known.
const GPT2_VOCAB: usize = 50257;

pub fn tokenize(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("tokenize")?;
    let files = ["tokenizer.json", "vocab.json"].map(|name| bench.setup.model_dir.join(name));
    if !files.iter().any(|file| file.is_file()) {
        return Err(Stop::Skip("the model folder holds no tokenizer".into()));
    }
    bench.ready()?;
    let vocab = bench.setup.dims.vocab_size;
    let known: [(&str, &[u32]); 3] = [
        ("Hello.", &[15496, 13]),
        ("Hello.<|endoftext|>", &[15496, 13, 50256]),
        ("größer, 東京", &[2164, 9101, 39683, 263, 11, 10545, 251, 109, 12859, 105]),
    ];
    for (text, due) in known {
        let request = json!({"type": "tokenize", "id": "t", "text": text});
        let ids = match bench.ask(&request, "tokens", bench.setup.limits.case)? {
            Response::Tokens { id, ids } if id == "t" => ids,
            other => return Err(bench.unexpected(&other, "tokens")),
        };
        if vocab == GPT2_VOCAB && ids != due {
            return Err(bench.wrong(format!("{ids:?}"), format!("{due:?}")));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(bench.wrong(format!("token {id}"), format!("tokens below {vocab}")));
        }
    }
    let n = bench.steps();
    let (_, done) = bench.done(json!({"max_new_tokens": n}))?;
    match done.text {
        Some(_) => Ok(()),
        None => Err(bench.wrong("a done without text", "the text of what was generated")),
    }
}

pub fn probabilities(bench: &mut Bench<'_>) -> Result<(), Stop> {
    needs_probabilities(bench)?;
    let (found, _) = sampled(bench, &Sampling::default(), 0)?;
    follows(bench, &found, &Sampling::default())
}

pub fn sample(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("sample")?;
    needs_probabilities(bench)?;
    let n = bench.steps();
    let settings = Sampling { temperature: 0.9, top_k: 20, top_p: 0.95, seed: 7 };
    let (found, ids) = sampled(bench, &settings, n)?;
    follows(bench, &found, &settings)?;
    for (step, id) in ids.iter().enumerate() {
        let probability = found.get(step, "next.probs").map(|p| p.get(*id as usize));
        if probability.is_some_and(|p| p <= 0.0) {
            let what = format!("token {id} at step {step}, whose probability is 0");
            return Err(bench.wrong(what, "only tokens that were not filtered out"));
        }
    }
    let (_, again) = sampled(bench, &settings, n)?;
    if again != ids {
        return Err(bench.wrong(format!("{ids:?}, then {again:?}"), "the same ids from one seed"));
    }
    if n < 2 {
        return Ok(());
    }
    // So warm that hardly two draws agree: seeds that are not heeded show.
    let mut seen = BTreeSet::new();
    for seed in 0..6 {
        let warm = Sampling { temperature: 5.0, seed, ..Sampling::default() };
        seen.insert(bench.done(json!({"max_new_tokens": n, "sampling": warm}))?.1.generated);
    }
    match seen.len() {
        1 => Err(bench.wrong("the same ids from six seeds", "other ids from another seed")),
        _ => Ok(()),
    }
}

fn needs_probabilities(bench: &Bench<'_>) -> Result<(), Stop> {
    match ["next.probs", "logits.last"].iter().find(|point| !bench.shows(point)) {
        None => Ok(()),
        Some(point) => Err(Stop::Skip(format!("{point} isn't captured"))),
    }
}

fn sampled(
    bench: &mut Bench<'_>,
    settings: &Sampling,
    n: usize,
) -> Result<(Survey, Vec<u32>), Stop> {
    let asked = ["logits.last", "next.probs"];
    let (ran, done) =
        bench.done(json!({"points": asked, "max_new_tokens": n, "sampling": settings}))?;
    let wanted = [Stage::LogitsLast, Stage::NextProbs].map(Point::new);
    let found = examine_for(bench, &ran, &wanted);
    found.sound()?;
    if done.generated.len() != n {
        return Err(bench.wrong(format!("generated {:?}", done.generated), format!("{n} ids")));
    }
    Ok((found, done.generated))
}

/// Whether next.probs is what the settings make of logits.last. How exactly is the judge's business;
/// here a filter or a temperature that is off is told from one that is on.
fn follows(bench: &Bench<'_>, found: &Survey, settings: &Sampling) -> Result<(), Stop> {
    // Rounding may put a token at the cut of top_k or top_p on either side, which moves the others.
    const AT_A_CUT: usize = 2;
    const NOTHING: f64 = 1e-6;
    let mut step = 0;
    while let (Some(logits), Some(probs)) =
        (found.get(step, "logits.last"), found.get(step, "next.probs"))
    {
        let (due, probs) = (replay(&logits.to_f64(), settings), probs.to_f64());
        let total: f64 = probs.iter().sum();
        if (total - 1.0).abs() > 1e-3 {
            return Err(bench.wrong(format!("next.probs at step {step} sums to {total}"), "1"));
        }
        let kept = |i: &usize| (due[*i] > NOTHING) != (probs[*i] > NOTHING);
        let moved = match settings.top_k > 0 || settings.top_p < 1.0 {
            true => (0..due.len()).filter(kept).count(),
            false => 0,
        };
        let kept = |probs: &[f64]| probs.iter().filter(|p| **p > 0.0).count();
        if moved > AT_A_CUT {
            let found = format!("{} tokens have a probability at step {step}", kept(&probs));
            return Err(bench.wrong(found, format!("{}, after top_k and top_p", kept(&due))));
        }
        let apart = if moved > 0 { 0.25 } else { 0.05 };
        let off = |i: &usize| {
            let (a, b) = (due[*i], probs[*i]);
            let at_a_cut = moved > 0 && (a <= NOTHING || b <= NOTHING);
            !at_a_cut && (a - b).abs() > apart * a.max(b) + NOTHING
        };
        if let Some(i) = (0..due.len()).find(off) {
            let found = format!("next.probs at step {step} has {} for token {i}", probs[i]);
            return Err(bench.wrong(found, format!("{}, as logits.last has it", due[i])));
        }
        step += 1;
    }
    Ok(())
}

pub fn draw(bench: &mut Bench<'_>) -> Result<(), Stop> {
    const DRAWS: usize = 1000;
    bench.needs("draw")?;
    bench.ready()?;
    let file = bench.input_file("draw.npy");
    // Four tokens, of which top_k drops the last.
    let row = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln).to_vec();
    write_npy(&file, &Tensor::f32(vec![row.len()], row.clone()))
        .map_err(|e| Stop::Skip(e.to_string()))?;
    let request = |bench: &mut Bench<'_>, temperature: f64, n: usize| {
        let mut request = bench.run_request(json!({"type": "draw",
            "logits": {"file": file, "key": null}, "draws": n,
            "sampling": {"temperature": temperature, "top_k": 3, "top_p": 1, "seed": 7}}));
        if let Some(fields) = request.as_object_mut() {
            fields.remove("ids");
        }
        request
    };
    let mut drawn = Vec::new();
    for n in [DRAWS, 5] {
        let request = request(bench, 1.0, n);
        bench.send(&request)?;
        let ran = bench.hear_run(request)?;
        if let End::Error(error) = &ran.end {
            return Err(bench.unexpected(&Response::Error(error.clone()), "draws, and a done"));
        }
        let [message] = &ran.tensors[..] else {
            let found = format!("{} tensors", ran.tensors.len());
            return Err(bench.wrong(found, "one tensor, draws"));
        };
        let ids = read_draws(message, n, row.len(), &ran.out_dir)
            .map_err(|what| bench.wrong(what, format!("i64 [{n}], tokens from 0 to 3")))?;
        let _ = std::fs::remove_dir_all(&ran.out_dir);
        drawn.push(ids);
    }
    if drawn[0].contains(&3) {
        return Err(bench.wrong("token 3 was drawn", "tokens 0 to 2: top_k drops token 3"));
    }
    if drawn[0][..5] != drawn[1] {
        let found = format!("{:?}, then {:?}", &drawn[0][..5], drawn[1]);
        return Err(bench.wrong(found, "the same draws from one seed, however many"));
    }
    if drawn[0].iter().collect::<BTreeSet<_>>().len() < 3 {
        return Err(bench.wrong("some token was never drawn in 1000", "all three"));
    }
    let cold = request(bench, 0.0, 5);
    let id = cold["id"].as_str().unwrap_or_default().to_string();
    bench.refuses(&cold, ErrorClass::Input, Some(&id))
}

/// In float64 where that is declared; else a request for it is refused.
pub fn f64(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let mut request = bench.load_request(bench.setup.model_dir);
    request["dtype"] = "f64".into();
    bench.forget_model();
    if !bench.can("f64") {
        bench.refuses(&request, ErrorClass::Unsupported, None)?;
        bench.load_again()?;
        return bench.alive();
    }
    bench.load(request)?;
    let asked: Vec<&str> = ["embeddings", "logits.last"].to_vec();
    let asked: Vec<&str> = asked.into_iter().filter(|point| bench.shows(point)).collect();
    let (ran, _) = bench.done(json!({"points": asked}))?;
    let narrow = ran.tensors.iter().find(|t| t.dtype != Dtype::F64);
    let found = narrow.map(|t| format!("{} is {}", t.point, t.dtype));
    let _ = std::fs::remove_dir_all(&ran.out_dir);
    if let Some(found) = found {
        return Err(bench.wrong(found, "f64, which was loaded"));
    }
    bench.forget_model();
    bench.load_again()?;
    bench.alive()
}

/// Everything that was heard so far: whatever wasn't protocol has been written down.
pub fn stdout(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let Some((check, line)) = bench.noise.first() else { return Ok(()) };
    let more = match bench.noise.len() {
        1 => String::new(),
        n => format!("; {n} such lines in all"),
    };
    let found = format!("{line:?}{more}");
    Err(Stop::wrong(format!("what check {check} sends"), found, "JSON objects, one a line"))
}
