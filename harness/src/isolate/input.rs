//! The tensors that are put in place: the oracle's own, random ones, or the user's file. All are
//! rounded to f32, or to the run's dtype where that has fewer digits, so that every implementation and
//! the float64 recomputation read the very same numbers.

use std::path::{Path, PathBuf};

use llorch_trace::files::{read_npy, write_npy};
use llorch_trace::hash::{sha256_bytes, sha256_file};
use llorch_trace::{Dtype, Point, Tensor};

use super::args::{Ask, Input};
use super::{FOLDER, Isolation, masked_value, random, stages};
use crate::compare::{Numbers, coarser, round};
use crate::evidence::{Case, Plan};
use crate::oracle::replay::inputs_of;
use crate::oracle::{Oracle, Trace, ops};
use crate::result::{InputKind, InputRecord, IsolateRecord};
use crate::run::RunError;

/// Where inputs come from, read and checked.
#[derive(Debug)]
pub struct Source {
    kind: Input,
    file: Option<UserFile>,
}

#[derive(Debug)]
struct UserFile {
    path: PathBuf,
    sha256: String,
    tensor: Tensor,
    /// The points whose place it takes: of each stage the first input that it fits.
    points: Vec<Point>,
}

/// Where a tensor stands that is put in place.
pub fn path(out: &Path, case: &str, step: usize, point: Point) -> PathBuf {
    out.join(FOLDER).join(case).join(format!("{step:04}_{point}.npy"))
}

fn usage(message: String) -> RunError {
    RunError::Usage(format!("failed to isolate: {message}"))
}

impl Source {
    /// Reads the file, if there is one, and makes the cases fit: a case of our own gets as many tokens as
    /// the file has rows.
    pub fn open(ask: &Ask, plan: &mut Plan) -> Result<Source, RunError> {
        let file = match &ask.input {
            Input::File(path) => Some(UserFile::open(path, ask, plan)?),
            _ => None,
        };
        let dims = plan.dims;
        plan.cases.iter_mut().for_each(|case| ask.fit(case, &dims));
        Ok(Source { kind: ask.input.clone(), file })
    }

    /// Makes every tensor that the stages of `plan` read, and writes it below `out`.
    pub fn isolation(
        &self,
        plan: &Plan,
        oracle: &Oracle,
        dtype: Dtype,
        out: &Path,
    ) -> Result<Isolation, RunError> {
        let folder = out.join(FOLDER);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| unwritten(&folder, &e.to_string()))?;
        }
        let runs = stages::runs(&plan.points, plan.dims.n_layer);
        let mut isolation = Isolation::new(self.record(plan, runs.len()), runs, plan);
        let mut points: Vec<Point> =
            plan.points.iter().flat_map(|stage| inputs_of(*stage, plan.dims.n_layer)).collect();
        points.sort();
        points.dedup();
        for case in &plan.cases {
            let fed = &case.forced_ids[..case.forced_ids.len().min(case.steps() - 1)];
            let trace = oracle.trace(&case.ids, fed).map_err(|e| usage(e.to_string()))?;
            for step in 0..case.steps() {
                for &point in &points {
                    let (t, s) = case.sizes(step);
                    let shape = point.shape(&plan.dims, t, s);
                    let (kind, values) = self.values(step, point, &shape, &trace)?;
                    let numbers = fit(point, shape, values, dtype);
                    let file = path(out, &case.name, step, point);
                    let record = write(&file, case, step, point, kind, &numbers)?;
                    isolation.put(record, file, numbers);
                }
            }
        }
        let lines: String = isolation
            .record
            .inputs
            .iter()
            .map(|r| format!("{} {} {} {}\n", r.case, r.step, r.point, r.sha256))
            .collect();
        isolation.record.sha256 = sha256_bytes(lines.as_bytes());
        Ok(isolation)
    }

    fn record(&self, plan: &Plan, runs: usize) -> IsolateRecord {
        IsolateRecord {
            input: match self.kind {
                Input::Oracle => InputKind::Oracle,
                Input::Random(_) => InputKind::Random,
                Input::File(_) => InputKind::File,
            },
            seed: match self.kind {
                Input::Random(seed) => Some(seed),
                _ => None,
            },
            file: self.file.as_ref().map(|f| f.path.display().to_string()),
            file_sha256: self.file.as_ref().map(|f| f.sha256.clone()),
            sha256: String::new(),
            runs,
            stages: plan.points.clone(),
            inputs: Vec::new(),
        }
    }

    fn values(
        &self,
        step: usize,
        point: Point,
        shape: &[usize],
        trace: &Trace,
    ) -> Result<(InputKind, Vec<f64>), RunError> {
        if let Input::Random(seed) = self.kind {
            return Ok((InputKind::Random, random::draw(seed, step, point, shape)));
        }
        if let Some(file) = self.file.as_ref().filter(|f| f.points.contains(&point)) {
            return Ok((InputKind::File, file.tensor.to_f64()));
        }
        let own = trace.get(step, point);
        let own = own.ok_or_else(|| usage(format!("the oracle has no {point} at step {step}")))?;
        Ok((InputKind::Oracle, own.values))
    }
}

impl UserFile {
    fn open(path: &Path, ask: &Ask, plan: &mut Plan) -> Result<UserFile, RunError> {
        let tensor = read_npy(path).map_err(|e| RunError::Usage(e.to_string()))?;
        let shown = path.display();
        if tensor.dtype() == Dtype::I64 {
            return Err(usage(format!("{shown} holds {}; expected floats", tensor.dtype())));
        }
        let dims = plan.dims;
        if ask.own_case {
            // Tokens are the first axis of rows, the second of heads.
            let axis = usize::from(tensor.shape.len() == 3);
            let tokens = tensor.shape.get(axis).copied().unwrap_or(0);
            if !(1..=dims.n_positions).contains(&tokens) {
                let (found, most) = (&tensor.shape, dims.n_positions);
                return Err(usage(format!(
                    "{shown} has shape {found:?}; expected 1 to {most} tokens, in the first axis of [T, E] or the second of [H, T, D]"
                )));
            }
            plan.cases.iter_mut().for_each(|case| case.ids = ask.tokens(&dims, tokens));
        }
        let mut points = Vec::new();
        for case in &plan.cases {
            for stage in &plan.points {
                points.push(place(&tensor, path, *stage, case, plan)?);
            }
        }
        points.sort();
        points.dedup();
        for &point in &points {
            check_finite(&tensor, path, point)?;
        }
        let sha256 = sha256_file(path)
            .map_err(|e| RunError::Usage(format!("failed to read {shown}: {e}")))?;
        Ok(UserFile { path: path.to_path_buf(), sha256, tensor, points })
    }
}

/// The input of a stage that the file is.
fn place(
    tensor: &Tensor,
    path: &Path,
    stage: Point,
    case: &Case,
    plan: &Plan,
) -> Result<Point, RunError> {
    let (t, s) = case.sizes(0);
    let shape = |point: Point| point.shape(&plan.dims, t, s);
    let inputs = inputs_of(stage, plan.dims.n_layer);
    if let Some(fits) = inputs.iter().find(|point| shape(**point) == tensor.shape) {
        return Ok(*fits);
    }
    let expected: Vec<String> =
        inputs.iter().map(|point| format!("{:?} ({point})", shape(*point))).collect();
    let (shown, found, case) = (path.display(), &tensor.shape, &case.name);
    Err(usage(format!(
        "{shown} has shape {found:?}; expected {}, which {stage} reads in case {case}",
        expected.join(" or ")
    )))
}

fn check_finite(tensor: &Tensor, path: &Path, point: Point) -> Result<(), RunError> {
    match crate::collect::tensors::first_non_finite(tensor, point) {
        None => Ok(()),
        Some(found) => {
            Err(usage(format!("{} holds {found}; expected finite numbers", path.display())))
        }
    }
}

/// Rounded, and masked where a query sees nothing.
fn fit(point: Point, shape: Vec<usize>, mut values: Vec<f64>, dtype: Dtype) -> Numbers {
    let dtype = coarser(Dtype::F32, dtype);
    values.iter_mut().for_each(|v| *v = round(*v, dtype));
    if let (Some(masked), [_, t, s]) = (masked_value(point.stage), &shape[..]) {
        for (row, cells) in values.chunks_mut(*s).enumerate() {
            cells[ops::visible(row % t, *t, *s).min(*s)..].fill(masked);
        }
    }
    Numbers { shape, dtype: Dtype::F32, values }
}

fn write(
    file: &Path,
    case: &Case,
    step: usize,
    point: Point,
    source: InputKind,
    numbers: &Numbers,
) -> Result<InputRecord, RunError> {
    let fail = |e: &dyn std::fmt::Display| unwritten(file, &e.to_string());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|e| fail(&e))?;
    }
    let values: Vec<f32> = numbers.values.iter().map(|v| *v as f32).collect();
    let overflow =
        numbers.values.iter().zip(&values).find(|(x, y)| x.is_finite() && !y.is_finite());
    if let Some((x, _)) = overflow {
        return Err(RunError::Usage(format!(
            "the input of {point} holds {x:e}, which f32 can't hold; its largest is {:e}",
            f32::MAX
        )));
    }
    write_npy(file, &Tensor::f32(numbers.shape.clone(), values)).map_err(|e| fail(&e))?;
    Ok(InputRecord {
        case: case.name.clone(),
        step,
        point,
        source,
        shape: numbers.shape.clone(),
        sha256: sha256_file(file).map_err(|e| fail(&e))?,
    })
}

fn unwritten(path: &Path, why: &str) -> RunError {
    RunError::Environment(format!("failed to write {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_cells_are_set_and_the_rest_is_rounded() {
        let point: Point = "h.0.attn.scores".parse().unwrap();
        let x = fit(point, vec![1, 2, 2], vec![0.1, 9.0, 1.0, 2.0], Dtype::F64);
        assert_eq!(x.values, [f64::from(0.1f32), f64::NEG_INFINITY, 1.0, 2.0]);
        let probs = fit("h.0.attn.probs".parse().unwrap(), vec![1, 2, 2], vec![1.0; 4], Dtype::F32);
        assert_eq!(probs.values, [1.0, 0.0, 1.0, 1.0]);
        let coarse = fit("h.0.ln_1".parse().unwrap(), vec![1, 1], vec![1.0 + 1e-4], Dtype::BF16);
        assert_eq!(coarse.values, [1.0]);
    }
}
