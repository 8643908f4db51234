//! `load`: a model that is there, one that isn't, one that is damaged, and another one.

use std::path::{Path, PathBuf};

use llorch_trace::Dims;
use llorch_trace::files::{SafetensorsFile, list_safetensors};
use llorch_trace::protocol::{ErrorClass, Response};
use serde_json::json;

use super::ask::Ran;
use super::bench::Bench;
use super::check::Stop;

pub fn before_load(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.unloaded()?;
    refuses_to_run(bench)
}

pub fn load(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.unloaded()?;
    let request = bench.load_request(bench.setup.model_dir);
    match bench.ask(&request, "loaded", bench.setup.limits.load)? {
        Response::Loaded { seconds, .. } if seconds.is_some_and(|s| !s.is_finite() || s < 0.0) => {
            Err(bench.wrong(format!("seconds is {seconds:?}"), "a number from 0, or none"))
        }
        Response::Loaded { .. } => bench.load_again(),
        other => Err(bench.unexpected(&other, "loaded")),
    }
}

pub fn no_such_model(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let nowhere = bench.model_folder("llorch-no-such-folder");
    refuses_model(bench, &nowhere)?;
    refuses_to_run(bench)?;
    bench.load_again()?;
    bench.alive()
}

/// Nothing is ever initialised at random, or cut to fit.
pub fn damaged_model(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    for damage in [Damage::Missing, Damage::Misshapen] {
        let folder = damaged(bench, damage).map_err(Stop::Skip)?;
        refuses_model(bench, &folder)?;
        refuses_to_run(bench)?;
    }
    bench.load_again()?;
    bench.alive()
}

pub fn second_load(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let (folder, dims) = bench.setup.other.clone();
    let request = bench.load_request(&folder);
    bench.forget_model();
    bench.load(request)?;
    let points: Vec<&str> = bench.shows("ln_f").then_some("ln_f").into_iter().collect();
    let (ran, _) = bench.done(json!({"ids": [1, 2, 3], "points": points}))?;
    let right = |dims: &Dims| ran.tensors.iter().all(|t| t.shape == [3, dims.n_embd]);
    let _ = std::fs::remove_dir_all(&ran.out_dir);
    if !right(&dims) {
        let found = format!("ln_f of shape {:?}", shapes(&ran));
        return Err(bench.wrong(found, format!("[3, {}], as the second model has it", dims.n_embd)));
    }
    // Its vocabulary counts as well.
    let beyond = json!({"ids": [dims.vocab_size]});
    let request = bench.run_request(beyond);
    let id = request["id"].as_str().unwrap_or_default().to_string();
    bench.refuses(&request, ErrorClass::Input, Some(&id))?;
    bench.forget_model();
    bench.load_again()?;
    bench.alive()
}

fn shapes(ran: &Ran) -> Vec<Vec<usize>> {
    ran.tensors.iter().map(|t| t.shape.clone()).collect()
}

fn refuses_model(bench: &mut Bench<'_>, folder: &Path) -> Result<(), Stop> {
    let request = bench.load_request(folder);
    bench.forget_model();
    bench.send(&request)?;
    bench.hears_refusal(ErrorClass::Input, None)
}

/// Without a model there is nothing to run.
fn refuses_to_run(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let before = bench.sent();
    let request = bench.run_request(json!({}));
    let id = request["id"].as_str().unwrap_or_default().to_string();
    let refused = bench.refuses(&request, ErrorClass::Input, Some(&id));
    refused.map_err(|stop| match stop {
        Stop::Wrong(mut wrong) => {
            wrong.sent = format!("{before}, then {}", wrong.sent);
            Stop::Wrong(wrong)
        }
        skip => skip,
    })
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Missing,
    Misshapen,
}

/// The other model, which is small, without one of its tensors or with one cut short.
fn damaged(bench: &Bench<'_>, damage: Damage) -> Result<PathBuf, String> {
    const VICTIM: &str = "h.0.ln_1.weight";
    let source = &bench.setup.other.0;
    let folder = bench.model_folder(&format!("{damage:?}").to_lowercase());
    let failed = |what: String| format!("failed to make a damaged model: {what}");
    let io = |error: std::io::Error| failed(error.to_string());
    std::fs::create_dir_all(&folder).map_err(io)?;
    std::fs::copy(source.join("config.json"), folder.join("config.json")).map_err(io)?;
    let weights = source.join("model.safetensors");
    let names = list_safetensors(&weights).map_err(|e| failed(e.to_string()))?;
    let file = SafetensorsFile::open(&weights).map_err(|e| failed(e.to_string()))?;
    let mut tensors = Vec::new();
    for (name, _, _) in names {
        let mut tensor = file.get(&name).map_err(|e| failed(e.to_string()))?.to_f64();
        let mut shape = file.shape(&name).map_err(|e| failed(e.to_string()))?.to_vec();
        if name.trim_start_matches("transformer.") == VICTIM {
            match damage {
                Damage::Missing => continue,
                Damage::Misshapen => {
                    tensor.pop();
                    shape = vec![tensor.len()];
                }
            }
        }
        let bytes: Vec<u8> = tensor.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &tensors {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|e| failed(e.to_string()))?));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))?;
    std::fs::write(folder.join("model.safetensors"), bytes).map_err(io)?;
    Ok(folder)
}
