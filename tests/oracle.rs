//! The float64 oracle against Hugging Face's model in float64, stage by stage, from goldens: no Python
//! is needed.

use std::path::Path;

use llorch_diff::compare::Numbers;
use llorch_diff::oracle::{Inputs, Job, Oracle, Trace};
use llorch_trace::{Bundle, Dtype, Point, Stage};

/// The bound of docs/TOLERANCES.md: room for float64's rounding over all blocks, none for a mistake.
const BOUND: f64 = 1e-10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn oracle() -> Oracle {
    Oracle::open(&root().join("golden/models/nano")).unwrap()
}

/// The case `hello` of the goldens: its ids and what was generated.
fn golden() -> (Bundle, Vec<u32>, Vec<u32>) {
    let golden = Bundle::open(&root().join("golden/nano/hf-f64")).unwrap();
    let case = &golden.manifest.cases["hello"];
    let (ids, chosen) = (case.ids.clone(), case.generated.clone().unwrap());
    (golden, ids, chosen)
}

#[test]
fn the_oracle_chooses_the_tokens_that_hf_chooses() {
    let (_, ids, chosen) = golden();
    assert_eq!(oracle().continue_greedily(&ids, chosen.len()).unwrap().ids, chosen);
}

#[test]
fn the_oracle_agrees_with_hf_in_float64_at_every_golden_stage() {
    let (golden, ids, chosen) = golden();
    let trace = oracle().trace(&ids, &chosen[..chosen.len() - 1]).unwrap();
    let mut stages: Vec<Stage> = Vec::new();
    for entry in golden.manifest.tensors.iter().filter(|e| e.dtype == Dtype::F64) {
        let (name, rows) = match entry.point.split_once("#rows=") {
            Some((name, rows)) => {
                (name, Some(rows.split(',').map(|n| n.parse().unwrap()).collect()))
            }
            None => (entry.point.as_str(), None::<Vec<usize>>),
        };
        let point: Point = name.parse().unwrap();
        if point.stage == Stage::NextProbs {
            continue; // softmax of logits.last, tested with the sampler
        }
        let expected = Numbers::of(&golden.get(&entry.case, entry.step, &entry.point).unwrap());
        let ours = trace.get(entry.step, point).unwrap_or_else(|| panic!("{name}: no stage"));
        let ours = rows.map_or(ours.clone(), |rows| pick(&ours, &rows));
        assert_eq!(ours.shape, expected.shape, "{name}");
        let counts = |i: usize| !point.stage.is_causal() || ours.values[i].is_finite();
        let (mut largest, mut off) = (0.0f64, 0.0f64);
        for i in (0..expected.values.len()).filter(|&i| counts(i)) {
            largest = largest.max(expected.values[i].abs());
            off = off.max((ours.values[i] - expected.values[i]).abs());
        }
        assert!(off / largest <= BOUND, "{name}, step {}: {off:e} of {largest}", entry.step);
        stages.push(point.stage);
    }
    stages.sort();
    stages.dedup();
    assert_eq!(
        stages.len(),
        20,
        "embeddings, 16 stages of a block, ln_f, logits and the last of them: {stages:?}"
    );
}

/// Rows of a [T, ·] tensor.
fn pick(x: &Numbers, rows: &[usize]) -> Numbers {
    let width: usize = x.shape[1..].iter().product();
    let values = rows.iter().flat_map(|r| x.values[r * width..(r + 1) * width].to_vec()).collect();
    let mut shape = x.shape.clone();
    shape[0] = rows.len();
    Numbers::f64(shape, values)
}

/// A trace as the inputs of its own replay.
struct Own<'a> {
    trace: &'a Trace,
    ids: Vec<u32>,
    fed: Vec<u32>,
}

impl Inputs for Own<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        self.trace.get(step, point)
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        if step == 0 { self.ids.clone() } else { vec![self.fed[step - 1]] }
    }

    fn past(&self, step: usize) -> usize {
        if step == 0 { 0 } else { self.ids.len() + step - 1 }
    }
}

#[test]
fn every_stage_replayed_from_the_oracles_own_inputs_is_the_oracles() {
    let (oracle, (_, ids, chosen)) = (oracle(), golden());
    let fed = chosen[..3].to_vec();
    let trace = oracle.trace(&ids, &fed).unwrap();
    let inputs = Own { trace: &trace, ids, fed };
    let points = llorch_trace::all_points(oracle.dims.n_layer);
    let tensors = points.iter().filter(|p| !p.is_integer() && p.stage != Stage::NextProbs);
    for point in tensors {
        for step in [0, 3] {
            let job = Job { step, inputs: &inputs, u: Dtype::F64.unit_roundoff() };
            let replayed = oracle.replay(*point, job).unwrap().unwrap();
            let expected = trace.get(step, *point).unwrap();
            assert_eq!(replayed.value.shape, expected.shape, "{point}");
            for (i, (x, y)) in replayed.value.values.iter().zip(&expected.values).enumerate() {
                let off = if x == y { 0.0 } else { (x - y).abs() };
                assert!(off <= replayed.bounds[i].band, "{point} step {step} [{i}]: {x} and {y}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let oracle = oracle();
    let says = |ids: &[u32], n| oracle.continue_greedily(ids, n).unwrap_err().to_string();
    assert!(says(&[], 1).contains("no token ids"));
    assert!(says(&[50257], 1).contains("50257"));
    assert!(says(&[1; 8], 100_000).contains("positions"));
    assert!(Oracle::open(Path::new("/nowhere")).is_err());
}
