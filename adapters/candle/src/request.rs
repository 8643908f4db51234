//! A run request, checked: what passes here cannot make Candle index out of range.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use llorch_trace::protocol::{Inject, RunRequest};
use llorch_trace::{Point, PointSet, all_points, files};

use crate::failure::{Failure, Result};
use crate::model::Model;
use crate::tensors;

/// What a run captures and replaces.
pub struct Plan {
    pub steps: usize,
    pub captured: HashSet<Point>,
    /// By step and point; each of the shape and dtype that the model computes there.
    pub injected: HashMap<(usize, Point), Tensor>,
}

pub fn plan(request: &RunRequest, model: &dyn Model) -> Result<Plan> {
    check_ids(request, model)?;
    check_sampling(request)?;
    if !request.beside.is_empty() {
        let what = "failed to run several sequences at once: expected none in `beside`";
        return Err(Failure::unsupported(what));
    }
    let steps = request.max_new_tokens.max(1);
    let globs = PointSet::new(&request.points);
    let captured = all_points(model.dims().n_layer)
        .into_iter()
        .filter(|p| model.exposes(*p) && globs.contains_point(*p))
        .collect();
    let mut injected = HashMap::new();
    for inject in &request.inject {
        let (point, tensor) = read_injected(inject, request, steps, model)?;
        if injected.insert((inject.step, point), tensor).is_some() {
            return Err(Failure::input(format!(
                "{point} is injected twice at step {}",
                inject.step
            )));
        }
    }
    Ok(Plan { steps, captured, injected })
}

fn check_ids(request: &RunRequest, model: &dyn Model) -> Result<()> {
    let dims = model.dims();
    let forced = request.forced_ids.as_deref().unwrap_or(&[]);
    if request.ids.is_empty() {
        return Err(Failure::input("ids is empty; expected one token or more"));
    }
    if request.forced_ids.is_some() && forced.len() != request.max_new_tokens {
        return Err(Failure::input(format!(
            "forced_ids has {} entries; expected max_new_tokens, {}",
            forced.len(),
            request.max_new_tokens
        )));
    }
    if let Some(id) = request.ids.iter().chain(forced).find(|id| **id as usize >= dims.vocab_size) {
        return Err(Failure::input(format!(
            "token id {id} is not below vocab_size {}",
            dims.vocab_size
        )));
    }
    // The last new token is not fed.
    let fed = request.ids.len().saturating_add(request.max_new_tokens.saturating_sub(1));
    if fed > dims.n_positions {
        return Err(Failure::input(format!(
            "context overflow: {} ids and {} new tokens need {fed} positions; the model has {}",
            request.ids.len(),
            request.max_new_tokens,
            dims.n_positions
        )));
    }
    Ok(())
}

fn check_sampling(request: &RunRequest) -> Result<()> {
    let s = &request.sampling;
    if !(s.temperature.is_finite() && s.temperature >= 0.0) {
        return Err(Failure::input(format!(
            "temperature is {}; expected 0 or more",
            s.temperature
        )));
    }
    if !(s.top_p > 0.0 && s.top_p <= 1.0) {
        return Err(Failure::input(format!(
            "top_p is {}; expected more than 0, at most 1",
            s.top_p
        )));
    }
    Ok(())
}

fn read_injected(
    inject: &Inject,
    request: &RunRequest,
    steps: usize,
    model: &dyn Model,
) -> Result<(Point, Tensor)> {
    let point: Point = inject.point.parse().map_err(|e| Failure::input(format!("inject: {e}")))?;
    let known = all_points(model.dims().n_layer).contains(&point);
    if !known || !model.exposes(point) {
        return Err(Failure::unsupported(format!("inject: nothing can be put at {point} here")));
    }
    if inject.step >= steps {
        return Err(Failure::input(format!(
            "inject: {point} at step {}, but the run has {steps} steps",
            inject.step
        )));
    }
    let t = if inject.step == 0 { request.ids.len() } else { 1 };
    let expected = point.shape(model.dims(), t, request.ids.len() + inject.step);
    let tensor = read_tensor(&inject.file, inject.key.as_deref(), &request.out_dir)?;
    if tensor.shape != expected {
        return Err(Failure::input(format!(
            "inject: {} holds shape {:?} for {point}; expected {expected:?}",
            inject.file.display(),
            tensor.shape
        )));
    }
    let tensor = tensors::from_file(&tensor)?;
    if !point.is_integer() {
        return Ok((point, tensor.to_dtype(model.dtype())?));
    }
    let vocab = model.dims().vocab_size as i64;
    let ids: Vec<i64> = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?;
    match ids.iter().find(|id| !(0..vocab).contains(*id)) {
        Some(id) => {
            Err(Failure::input(format!("inject: {point} holds token id {id}, not in 0..{vocab}")))
        }
        None => Ok((point, tensor.to_dtype(DType::U32)?)),
    }
}

fn read_tensor(file: &Path, key: Option<&str>, out_dir: &Path) -> Result<llorch_trace::Tensor> {
    let path = out_dir.join(file);
    let read = match key {
        Some(key) => files::read_safetensors(&path, key),
        None => files::read_npy(&path),
    };
    read.map_err(|e| Failure::input(format!("inject: {e}")))
}
