//! nano's goldens, `golden/nano/hf-f32` and `hf-f64`: what Hugging Face's GPT-2 computes at every
//! point of every layer. golden/nano/README.md tells their form.

use std::collections::BTreeMap;
use std::path::Path;

use llorch_models::progress::Progress;
use llorch_trace::bundle::CaseRecord;
use llorch_trace::points::CHECKPOINTS;
use llorch_trace::protocol::Sampling;
use llorch_trace::{Bundle, Point, Stage, Tensor};

use super::outcome::GoldenRow;
use crate::compare::{Cells, Comparison, Numbers, Tolerance, compare};
use crate::judge::point_tolerance;
use crate::live::{Ask, Captured, Live, LiveError};
use crate::result::Verdict;

/// The bundles, by the folder that each is in.
pub const NAMES: [&str; 2] = ["hf-f32", "hf-f64"];
pub const PREFIX: &str = "golden/nano/";

/// A key of a golden: a point, and which of its rows are kept where not all are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldenKey {
    pub point: Point,
    pub rows: Option<Vec<usize>>,
}

impl GoldenKey {
    /// `h.2.attn.scores#rows=0,1,15`.
    pub fn parse(text: &str) -> Result<GoldenKey, String> {
        let (point, rows) = match text.split_once("#rows=") {
            None => (text, None),
            Some((point, rows)) => {
                let rows: Result<Vec<usize>, _> = rows.split(',').map(str::parse).collect();
                (point, Some(rows.map_err(|e| format!("{text:?}: {e}"))?))
            }
        };
        let point = point.parse().map_err(|e: llorch_trace::Error| e.to_string())?;
        Ok(GoldenKey { point, rows })
    }

    /// The rows that are kept, along the token axis: the second of heads, else the first.
    pub fn select(&self, tensor: &Tensor) -> Result<Numbers, String> {
        self.select_numbers(Numbers::of(tensor))
    }

    pub fn select_numbers(&self, all: Numbers) -> Result<Numbers, String> {
        let Some(rows) = &self.rows else { return Ok(all) };
        let axis = usize::from(all.shape.len() == 3);
        let (Some(n), inner) = (all.shape.get(axis), all.shape.get(axis + 1..).unwrap_or_default())
        else {
            return Err(format!("{} has shape {:?} and no rows", self.point, all.shape));
        };
        if let Some(row) = rows.iter().find(|row| *row >= n) {
            return Err(format!("{} has {n} rows; the golden keeps row {row}", self.point));
        }
        let inner: usize = inner.iter().product();
        let blocks: usize = all.shape[..axis].iter().product();
        let mut values = Vec::with_capacity(blocks * rows.len() * inner);
        for block in 0..blocks {
            for row in rows {
                let begin = (block * n + row) * inner;
                values.extend_from_slice(&all.values[begin..begin + inner]);
            }
        }
        let mut shape = all.shape.clone();
        shape[axis] = rows.len();
        Ok(Numbers { shape, dtype: all.dtype, values })
    }

    /// Causal cells alone count in scores and probabilities: key j of query t where j ≤ S − T + t.
    pub(super) fn cells(&self, shape: &[usize], tokens: usize) -> Cells {
        match (self.point.stage.is_causal(), shape, &self.rows) {
            (true, [_, _, keys], Some(rows)) => Cells::causal(tokens, *keys, rows.iter().copied()),
            (true, [_, kept, keys], None) => Cells::causal(tokens, *keys, 0..*kept),
            _ => Cells::All,
        }
    }
}

/// Whether the golden was recorded from these weights.
pub fn is_of(bundle: &Bundle, weights_sha256: &str) -> bool {
    recorded_sha256(bundle) == Some(weights_sha256)
}

pub fn recorded_sha256(bundle: &Bundle) -> Option<&str> {
    bundle.manifest.model.get("files")?.get("model.safetensors")?.as_str()
}

/// A case as the golden records it.
pub(super) fn sampling(bundle: &Bundle, case: &str) -> Sampling {
    let recorded =
        bundle.manifest.provenance.get("cases").and_then(|c| c.get(case)?.get("sampling").cloned());
    recorded.and_then(|s| serde_json::from_value(s).ok()).unwrap_or_default()
}

/// What a checkpoint came to.
#[derive(Debug, Default)]
struct Tally {
    compared: usize,
    failed: usize,
    first_failure: Option<String>,
    /// Why points of it can't be had from this subject, by its nature.
    unsupported: Option<String>,
    worst: Option<(f64, String, Option<f64>, f64)>,
}

impl Tally {
    fn take(&mut self, place: &str, compared: Result<Comparison, String>) {
        self.compared += 1;
        let c = match compared {
            Ok(c) => c,
            Err(why) => return self.fail(format!("{place}: {why}")),
        };
        let used = match (c.metrics.max_abs, c.tolerance) {
            (None, _) => f64::INFINITY,
            (Some(d), t) if t > 0.0 => d / t,
            (Some(d), _) => d,
        };
        // The worst by what is allowed; the first one where nothing differs.
        if self.worst.as_ref().is_none_or(|(most, ..)| used > *most) {
            self.worst = Some((used, place.into(), c.metrics.max_abs, c.tolerance));
        }
        if !c.within() {
            let m = &c.metrics;
            let number = |x: Option<f64>| x.map_or("not finite".into(), |x| x.to_string());
            let [found, expected] = m.worst_values.map(number);
            let how_many = format!("{} of {} elements exceed the tolerance", m.exceeding, m.total);
            let at = &m.worst;
            self.fail(format!(
                "{place}: {how_many}, the worst at {at:?}: {found} against {expected}"
            ));
        }
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(why);
    }

    fn row(self, golden: &str, what: String) -> GoldenRow {
        let (_, worst, max_abs, tolerance) = self.worst.unwrap_or_default();
        let (verdict, reason) = match (self.first_failure, self.failed, self.unsupported) {
            (Some(first), 1, _) => (Verdict::Fail, first),
            (Some(first), n, _) => (Verdict::Fail, format!("{first}; and {} more", n - 1)),
            (None, _, Some(why)) if self.compared == 0 => (Verdict::Unchecked, why),
            (None, _, Some(why)) => (Verdict::Pass, format!("not all of its points: {why}")),
            (None, _, None) => (Verdict::Pass, String::new()),
        };
        let golden = golden.to_string();
        GoldenRow {
            golden,
            what,
            compared: self.compared,
            worst,
            max_abs,
            tolerance,
            verdict,
            reason,
            missing: false,
        }
    }
}

/// Runs every case of the golden through the subject: a row for each checkpoint.
pub fn check(live: &mut Live, bundle: &Bundle, golden: &str) -> Result<Vec<GoldenRow>, LiveError> {
    let mut tallies: BTreeMap<u8, Tally> = BTreeMap::new();
    let hello = live.hello().clone();
    let bar = Progress::new(false).steps(golden, "case", bundle.manifest.cases.len());
    for (n, (case, record)) in bundle.manifest.cases.iter().enumerate() {
        bar.set(n as u64);
        bar.detail(case);
        let mut generated = record.generated.clone().unwrap_or_default();
        if !hello.can("generate") {
            generated.clear();
        }
        let captured = live.run(Ask {
            ids: record.ids.clone(),
            points: vec!["*".into()],
            max_new_tokens: generated.len(),
            forced_ids: (!generated.is_empty()).then(|| generated.clone()),
            sampling: sampling(bundle, case),
            ..Ask::default()
        })?;
        for entry in bundle.manifest.tensors.iter().filter(|e| e.case == *case) {
            let place = format!("{case}, step {}, {}", entry.step, entry.point);
            let key = match GoldenKey::parse(&entry.point) {
                Ok(key) => key,
                Err(why) => {
                    tallies.entry(0).or_default().fail(why);
                    continue;
                }
            };
            let declared = hello.unsupported_reason(&key.point.to_string());
            let no_steps =
                (entry.step > 0 && !hello.can("generate")).then_some("it has no decode steps");
            if let Some(why) = declared.or(no_steps) {
                let tally = tallies.entry(key.point.checkpoint().number).or_default();
                tally.unsupported.get_or_insert(why.to_string());
                continue;
            }
            let compared = one(bundle, &captured, case, record, entry.step, &entry.point, &key);
            tallies.entry(key.point.checkpoint().number).or_default().take(&place, compared);
        }
        if !hello.can("generate") {
            let why = "it does not generate".to_string();
            tallies.entry(12).or_default().unsupported = Some(why);
            continue;
        }
        let free = live.run(Ask {
            ids: record.ids.clone(),
            max_new_tokens: generated.len(),
            ..Ask::default()
        })?;
        let tally = tallies.entry(12).or_default();
        tally.take(&format!("{case}, generated ids"), compare_ids(&free.generated, &generated));
        if let (Some(found), Some(expected)) = (&free.text, &record.text)
            && found != expected
        {
            tally.fail(format!("{case}: text {found:?} against {expected:?}"));
        }
    }
    let name = |n: u8| format!("{n} {}", CHECKPOINTS[usize::from(n).min(12)].name);
    Ok(tallies.into_iter().map(|(n, tally)| tally.row(golden, name(n))).collect())
}

fn compare_ids(found: &[u32], expected: &[u32]) -> Result<Comparison, String> {
    let numbers = |ids: &[u32]| Numbers {
        shape: vec![ids.len()],
        dtype: llorch_trace::Dtype::I64,
        values: ids.iter().map(|id| f64::from(*id)).collect(),
    };
    compare(&numbers(found), &numbers(expected), Tolerance::Exact, &Cells::All)
}

fn one(
    bundle: &Bundle,
    captured: &Captured,
    case: &str,
    record: &CaseRecord,
    step: usize,
    key: &str,
    golden: &GoldenKey,
) -> Result<Comparison, String> {
    let expected = Numbers::of(&bundle.get(case, step, key).map_err(|e| e.to_string())?);
    let found = golden.select(captured.get(step, golden.point)?)?;
    let tokens = if step == 0 { record.ids.len() } else { 1 };
    let cells = golden.cells(&expected.shape, tokens);
    if golden.point.stage == Stage::NextProbs {
        let relative = probability_slack(bundle, captured, case, step);
        let p = |i: usize| found.values[i].abs().max(expected.values[i].abs());
        let allowed = |i: usize| point_tolerance(golden.point) + relative * p(i);
        if found.shape == expected.shape {
            return compare(&found, &expected, Tolerance::Absolute(&allowed), &cells);
        }
    }
    let tolerance = match point_tolerance(golden.point) {
        0.0 => Tolerance::Exact,
        t => Tolerance::Mixed(t),
    };
    compare(&found, &expected, tolerance, &cells)
}

/// 2·Δ/τ: what a difference Δ of the logits does to a probability, relatively. Where the golden keeps
/// no logits of that step, what rounding does to logits of that size, 64 ulps.
fn probability_slack(bundle: &Bundle, captured: &Captured, case: &str, step: usize) -> f64 {
    let point = Point::new(Stage::LogitsLast);
    let Ok(ours) = captured.get(step, point).map(Tensor::to_f64) else { return 0.0 };
    let largest = ours.iter().fold(1f64, |m, x| m.max(x.abs()));
    let delta = match bundle.get(case, step, &point.to_string()) {
        Ok(theirs) => {
            let pairs = ours.iter().zip(theirs.to_f64());
            let delta = pairs.fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            delta.min(point_tolerance(point) * largest)
        }
        Err(_) => 64.0 * f64::from(f32::EPSILON) * largest,
    };
    let tau = match sampling(bundle, case).temperature {
        0.0 => 1.0,
        t => t,
    };
    2.0 * delta / tau
}

/// Writes the embedded goldens below `dir`, where bundles can be opened.
pub fn extract(dir: &Path) -> std::io::Result<()> {
    for path in crate::assets::list(PREFIX) {
        let Some(bytes) = crate::assets::get(&path) else { continue };
        let target = dir.join(path.trim_start_matches(PREFIX));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(target, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_along_the_token_axis() {
        let rows = GoldenKey::parse("h.2.attn.k#rows=0,2").unwrap();
        let heads = Tensor::f32(vec![2, 3, 2], (0..12).map(|i| i as f32).collect());
        let kept = rows.select(&heads).unwrap();
        assert_eq!(
            (kept.shape, kept.values),
            (vec![2, 2, 2], vec![0., 1., 4., 5., 6., 7., 10., 11.])
        );
        let plain = GoldenKey::parse("h.2#rows=1").unwrap();
        let kept = plain.select(&Tensor::f32(vec![2, 2], vec![1., 2., 3., 4.])).unwrap();
        assert_eq!((kept.shape, kept.values), (vec![1, 2], vec![3., 4.]));
        assert!(
            plain.select(&Tensor::f32(vec![1, 2], vec![1., 2.])).unwrap_err().contains("1 rows")
        );
        assert!(GoldenKey::parse("h.2#rows=x").is_err() && GoldenKey::parse("h.x").is_err());
    }

    #[test]
    fn causal_cells_of_sampled_rows_are_those_of_their_own_queries() {
        let key = GoldenKey::parse("h.0.attn.scores#rows=0,2").unwrap();
        let cells = key.cells(&[1, 2, 3], 3);
        assert_eq!((0..6).filter(|i| cells.contain(*i)).collect::<Vec<_>>(), [0, 3, 4, 5]);
        let cached = GoldenKey::parse("h.0.attn.scores").unwrap();
        let all = cached.cells(&[1, 1, 5], 1);
        assert!((0..5).all(|i| all.contain(i)));
    }

    #[test]
    fn the_goldens_travel_with_the_program() {
        let dir = tempfile::tempdir().unwrap();
        extract(dir.path()).unwrap();
        for name in NAMES {
            let bundle = Bundle::open(&dir.path().join(name)).unwrap();
            bundle.verify().unwrap();
            assert!(recorded_sha256(&bundle).is_some());
            for entry in &bundle.manifest.tensors {
                GoldenKey::parse(&entry.point).unwrap();
            }
            // Every checkpoint that has tensors, in every layer.
            let dims = llorch_trace::Dims {
                n_layer: 4,
                n_head: 4,
                n_embd: 128,
                n_inner: 512,
                vocab_size: 50257,
                n_positions: 256,
            };
            for point in llorch_trace::all_points(dims.n_layer) {
                let held = bundle
                    .manifest
                    .tensors
                    .iter()
                    .any(|e| GoldenKey::parse(&e.point).unwrap().point == point);
                assert!(held, "{name} lacks {point}");
            }
        }
    }
}
