//! `run`: what is asked for comes, once, whole, in the right shape, and is what the steps say.

use llorch_trace::files::write_npy;
use llorch_trace::points::glob_matches;
use llorch_trace::protocol::{ErrorClass, Response};
use llorch_trace::{Point, Tensor};
use serde_json::{Value, json};

use super::ask::End;
use super::bench::Bench;
use super::check::{Stop, none_of};
use super::survey::{Survey, examine, examine_for};

/// The capability of an adapter that has layers and no model around them.
pub const COMPONENTS: &str = "components";
pub const NO_MODEL: &str = "it has components and no model (capability `components`)";

/// The plainest run there is; without it nothing else can be tried.
pub fn plain(bench: &mut Bench<'_>) -> Result<(), Stop> {
    if bench.can(COMPONENTS) {
        bench.ready()?;
        let request = bench.run_request(json!({"points": [], "max_new_tokens": 0}));
        let id = request["id"].as_str().unwrap_or_default().to_string();
        bench.refuses(&request, ErrorClass::Unsupported, Some(&id))?;
        return Err(Stop::Skip(NO_MODEL.into()));
    }
    bench.done(json!({"points": [], "max_new_tokens": 0, "forced_ids": null})).map(|_| ())
}

/// Everything that isn't required has a default.
pub fn defaults(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let id = "defaults";
    let request = json!({"type": "run", "id": id, "ids": bench.prompt()});
    bench.send(&request)?;
    let ran = bench.hear_run(request)?;
    match &ran.end {
        End::Done(done) if ran.tensors.is_empty() && done.generated.is_empty() => Ok(()),
        End::Error(error) => {
            let found = Response::Error(error.clone());
            Err(bench.unexpected(&found, "a done: neither points nor out_dir are required"))
        }
        End::Done(done) => {
            let found = format!("{} tensors, generated {:?}", ran.tensors.len(), done.generated);
            Err(bench.wrong(found, "a done with nothing generated, and no tensor"))
        }
    }
}

/// The run that many checks look at: all points, some decode steps.
fn survey<'b>(bench: &'b mut Bench<'_>) -> Result<&'b Survey, Stop> {
    if bench.survey.is_none() {
        // Until it has gone well: what goes wrong is told once.
        bench.survey = Some(None);
        let steps = bench.steps();
        let (ran, _) = bench.done(json!({"points": ["*"], "max_new_tokens": steps}))?;
        bench.survey = Some(Some(examine(bench, &ran)));
    }
    let gone = "check points failed: there is no run to look at";
    bench.survey.as_ref().and_then(Option::as_ref).ok_or_else(|| Stop::Skip(gone.into()))
}

fn captured<'b>(bench: &'b mut Bench<'_>) -> Result<&'b Survey, Stop> {
    bench.needs("capture")?;
    survey(bench)
}

pub fn points(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.names, &survey.sent, "each point that isn't unsupported, once a step")
}

pub fn shapes(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.shapes, &survey.sent, "the shapes of the table of points, without a batch axis")
}

pub fn dtypes(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.dtypes, &survey.sent, "i64 for tokens and argmax, floats elsewhere")
}

pub fn files(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.files, &survey.sent, "a whole file in out_dir that holds what was announced")
}

pub fn finite(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.values, &survey.sent, "finite values; only masked scores may be infinite")
}

pub fn step_order(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let survey = captured(bench)?;
    none_of(&survey.order, &survey.sent, "all tensors of a step before those of the next")
}

/// The points of one run say the same thing of it.
pub fn consistent(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let (prompt, n) = (bench.prompt(), bench.steps());
    let layers = bench.setup.dims.n_layer;
    let survey = captured(bench)?;
    let mut problems = Vec::new();
    let generated = &survey.done.generated;
    if generated.len() != n {
        problems.push(format!("{} ids generated, asked for {n}", generated.len()));
    }
    for step in 0..n.max(1) {
        let mut note = |what: String| problems.push(format!("step {step}: {what}"));
        let fed: Vec<i64> = match step {
            0 => prompt.iter().map(|id| i64::from(*id)).collect(),
            _ => generated.get(step - 1).map(|id| i64::from(*id)).into_iter().collect(),
        };
        if let Some(tokens) = survey.get(step, "tokens").map(whole)
            && tokens != fed
        {
            note(format!("tokens holds {tokens:?}, fed were {fed:?}"));
        }
        let last = survey.get(step, "logits.last");
        if let (Some(last), Some(logits)) = (last, survey.get(step, "logits")) {
            let values = logits.to_f64();
            if values[values.len() - last.len()..] != last.to_f64() {
                note("logits.last isn't the last row of logits".into());
            }
        }
        let argmax = survey.get(step, "argmax").and_then(|t| whole(t).first().copied());
        if let (Some(argmax), Some(last)) = (argmax, last) {
            let values = last.to_f64();
            let largest =
                (0..values.len()).fold(0, |m, i| if values[i] > values[m] { i } else { m });
            if argmax != largest as i64 {
                note(format!("argmax is {argmax}, logits.last is largest at {largest}"));
            }
        }
        let chosen = generated.get(step).map(|id| i64::from(*id));
        if let (Some(argmax), Some(chosen)) = (argmax, chosen)
            && argmax != chosen
        {
            note(format!("generated {chosen} at temperature 0, argmax is {argmax}"));
        }
        for layer in 0..layers {
            for part in ["k", "v"] {
                let cache = survey.get(step, &format!("h.{layer}.attn.cache.{part}"));
                let new = survey.get(step, &format!("h.{layer}.attn.{part}"));
                if let (Some(cache), Some(new)) = (cache, new)
                    && !ends_with(cache, new)
                {
                    note(format!(
                        "h.{layer}.attn.cache.{part} doesn't end with this step's {part}"
                    ));
                }
            }
        }
    }
    let sent = survey.sent.clone();
    none_of(&problems, &sent, "one story: fed, cached, chosen")
}

/// Of [H,S,D] and [H,T,D]: whether the last T keys of the first are the second, bit for bit.
fn ends_with(cache: &Tensor, new: &Tensor) -> bool {
    let (&[h, s, d], &[_, t, _]) = (&cache.shape[..], &new.shape[..]) else { return false };
    let (cache, new) = (cache.to_f64(), new.to_f64());
    (0..h).all(|head| {
        let from = (head * s + s - t) * d;
        cache[from..from + t * d] == new[head * t * d..(head + 1) * t * d]
    })
}

fn whole(tensor: &Tensor) -> Vec<i64> {
    tensor.to_f64().iter().map(|v| *v as i64).collect()
}

pub fn globs(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("capture")?;
    let asked = ["h.*.ln_1", "h.0*k", "logits.last", "llorch.no.such.*", "h.*.attn.soul", "tokens"];
    let fits = |point: &Point| asked.iter().any(|glob| glob_matches(glob, &point.to_string()));
    let wanted: Vec<Point> = bench.points().into_iter().filter(fits).collect();
    let (ran, _) = bench.done(json!({"points": asked}))?;
    let found = examine_for(bench, &ran, &wanted);
    none_of(&found.names, &found.sent, "what the globs match, and nothing else")?;
    let (ran, _) = bench.done(json!({"points": ["llorch.no.such.point"]}))?;
    match ran.tensors.first() {
        None => Ok(()),
        Some(tensor) => Err(bench.wrong(format!("a tensor of {}", tensor.point), "a done alone")),
    }
}

/// N = 0 chooses nothing, N = 1 one token; both are the prefill alone.
pub fn prefill_only(bench: &mut Bench<'_>) -> Result<(), Stop> {
    for n in [0, 1] {
        let (ran, done) = bench.done(json!({"points": ["*"], "max_new_tokens": n}))?;
        let found = examine(bench, &ran);
        found.sound()?;
        if done.generated.len() != n {
            return Err(bench.wrong(format!("generated {:?}", done.generated), format!("{n} ids")));
        }
    }
    Ok(())
}

pub fn one_token(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let ids = bench.ids(1, 0);
    let steps = bench.steps().min(bench.setup.dims.n_positions);
    let (ran, _) = bench.done(json!({"ids": ids, "points": ["*"], "max_new_tokens": steps}))?;
    examine(bench, &ran).sound()
}

/// Every position the model has, and the largest tensor that it shows of them.
pub fn full_context(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let n = bench.setup.dims.n_positions;
    let ids = bench.ids(n, 3);
    let (dims, points) = (bench.setup.dims, bench.points());
    let size = |point: &Point| point.shape(&dims, n, n).iter().product::<usize>();
    let largest = points.into_iter().max_by_key(size);
    let asked: Vec<String> = largest.iter().map(Point::to_string).collect();
    let (ran, done) = bench.done(json!({"ids": ids, "points": asked, "max_new_tokens": 1}))?;
    let found = examine_for(bench, &ran, &Vec::from_iter(largest));
    found.sound()?;
    match done.generated.len() {
        1 => Ok(()),
        _ => Err(bench.wrong(format!("generated {:?}", done.generated), "one id")),
    }
}

/// Forced ids are fed and come back; argmax stays the model's own.
pub fn forced(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("generate")?;
    let n = bench.steps();
    let forced = bench.ids(n, 101);
    let fields = json!({"points": ["*"], "max_new_tokens": n, "forced_ids": forced});
    let (ran, done) = bench.done(fields)?;
    let found = examine(bench, &ran);
    found.sound()?;
    if done.generated != forced {
        let what = format!("generated {:?}", done.generated);
        return Err(bench.wrong(what, format!("the forced ids {forced:?}")));
    }
    for step in 1..n {
        let due = i64::from(forced[step - 1]);
        if let Some(tokens) = found.get(step, "tokens").map(whole)
            && tokens != [due]
        {
            return Err(bench.wrong(
                format!("tokens at step {step} holds {tokens:?}"),
                format!("the forced id {due}"),
            ));
        }
    }
    for step in 0..n {
        let argmax = found.get(step, "argmax").and_then(|t| whole(t).first().copied());
        let own = found.get(step, "logits.last").map(|last| {
            let values = last.to_f64();
            (0..values.len()).fold(0, |m, i| if values[i] > values[m] { i } else { m }) as i64
        });
        if let (Some(argmax), Some(own)) = (argmax, own)
            && argmax != own
        {
            return Err(bench.wrong(
                format!("argmax at step {step} is {argmax}"),
                format!("the model's own choice, {own}"),
            ));
        }
    }
    Ok(())
}

/// `out_dir` is made if it doesn't exist, and nothing is written beside it.
pub fn out_dir(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("capture")?;
    let mut request = bench.run_request(json!({"points": ["h.0*", "logits.last"]}));
    let deep = format!("{}/made/by/it", request["out_dir"].as_str().unwrap_or_default());
    request["out_dir"] = Value::from(deep);
    bench.ready()?;
    bench.send(&request)?;
    let ran = bench.hear_run(request)?;
    let fits = |p: &Point| ["h.0*", "logits.last"].iter().any(|g| glob_matches(g, &p.to_string()));
    let wanted: Vec<Point> = bench.points().into_iter().filter(fits).collect();
    let found = examine_for(bench, &ran, &wanted);
    found.sound()?;
    match bench.strays().first() {
        None => Ok(()),
        Some(path) => Err(bench.wrong(
            format!("{} was written", path.display()),
            "nothing outside the out_dir of a run",
        )),
    }
}

/// What is injected is what is captured there, and what everything behind it reads.
pub fn inject(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("inject")?;
    let (place, behind) = match bench.can(COMPONENTS) {
        true => ("h.0.ln_1", "h.0.attn.q"),
        false => ("embeddings", "logits.last"),
    };
    if !bench.shows(place) || !bench.shows(behind) {
        return Err(Stop::Skip(format!("{place} or {behind} isn't captured")));
    }
    let parsed = |name: &str| name.parse::<Point>().map_err(|e| Stop::Skip(e.to_string()));
    let wanted: Vec<Point> = vec![parsed(place)?, parsed(behind)?];
    let asked = [place, behind];
    let file = bench.input_file("inject.npy");
    let put = |values: Vec<f64>, shape: Vec<usize>| {
        let values = values.into_iter().map(|v| v as f32).collect();
        write_npy(&file, &Tensor::f32(shape, values)).map_err(|e| Stop::Skip(e.to_string()))
    };
    let entry = json!([{"point": place, "step": 0, "file": file, "key": null}]);
    // Components have no value of their own to begin with: something is put there for a start.
    let first = match bench.can(COMPONENTS) {
        true => {
            let shape = vec![bench.prompt().len(), bench.setup.dims.n_embd];
            put((0..shape[0] * shape[1]).map(|i| (i as f64).sin()).collect(), shape)?;
            json!({"points": asked, "inject": entry})
        }
        false => json!({"points": asked}),
    };
    let (ran, _) = bench.done(first)?;
    let before = examine_for(bench, &ran, &wanted);
    before.sound()?;
    let (Some(own), Some(next)) = (before.get(0, place), before.get(0, behind)) else {
        return Err(bench.wrong("no tensors", "those that were asked for"));
    };
    let other: Vec<f64> = own.to_f64().iter().rev().map(|v| v * 2.0 + 0.25).collect();
    put(other.clone(), own.shape.clone())?;
    let (ran, _) = bench.done(json!({"points": asked, "inject": entry}))?;
    let after = examine_for(bench, &ran, &wanted);
    after.sound()?;
    let as_f32 = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
    if after.get(0, place).map(|t| as_f32(&t.to_f64())) != Some(as_f32(&other)) {
        return Err(bench.wrong(format!("{place} isn't what was put there"), "the injected values"));
    }
    if after.get(0, behind).is_some_and(|t| t.to_f64() == next.to_f64()) {
        return Err(bench.wrong(
            format!("{behind} is what it was without the injection"),
            format!("what follows from the injected {place}"),
        ));
    }
    put(vec![0.5; 3], vec![3])?;
    let request = bench.run_request(json!({"points": asked, "inject": entry}));
    let id = request["id"].as_str().unwrap_or_default().to_string();
    bench.refuses(&request, ErrorClass::Input, Some(&id))?;
    bench.alive()
}
