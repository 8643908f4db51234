//! The softmax over the keys: which of them it sees, and of what it is taken.

use llorch_trace::Stage;
use ndarray::{Array3, Axis};

use super::rounding::{NARROW, output_fits, rounded};
use super::site::{Found, Site};
use crate::compare::round;
use crate::oracle::{bounds, ops, replay};

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(scores) = site.heads(site.point_of_scores()) else { return };
    if scores.len() != site.given.values.len() {
        return;
    }
    let probs = Softmax { site, scores: &scores };
    probs.masks(found);
    probs.scales(found);
    probs.other_sums(found);
    probs.rounded(found);
    if found.all.is_empty() {
        probs.reduced(found);
    }
}

impl Site<'_> {
    fn point_of_scores(&self) -> llorch_trace::Point {
        self.own(Stage::Scores)
    }
}

struct Softmax<'a> {
    site: &'a Site<'a>,
    scores: &'a Array3<f64>,
}

impl Softmax<'_> {
    /// Whether the softmax over the first `seen(t)` keys, of the scores as `change` makes them, is
    /// what was given.
    fn gives(
        &self,
        scores: &Array3<f64>,
        seen: &dyn Fn(usize) -> usize,
        change: &dyn Fn(f64) -> f64,
    ) -> Option<bool> {
        let (_, t, s) = scores.dim();
        let target = self.site.target();
        for (row, cells) in scores.rows().into_iter().enumerate() {
            let seen = seen(row % t).clamp(1, s);
            let cells: Vec<f64> = cells.iter().take(seen).map(|v| change(*v)).collect();
            let (probs, off) = (ops::softmax(&cells), bounds::softmax(&cells, self.site.u));
            let fits = (0..s).filter(|key| self.site.counts[row * s + key]).all(|key| {
                let value = probs.get(key).copied().unwrap_or(0.0);
                // What is masked is 0, or so little that it makes no difference.
                let bound = off.get(key).map_or(f64::from(f32::MIN_POSITIVE), |p| p.bound);
                target.element_fits(row * s + key, value, bound)
            });
            if !fits {
                return Some(false);
            }
        }
        Some(true)
    }

    fn masks(&self, found: &mut Found) {
        if !found.asks(Some("mask_shifted")) {
            return;
        }
        let (t, s) = self.site.sizes;
        let all = self.unmasked();
        let seen = |row: usize| ops::visible(row, t, s);
        let ways: [(&str, &dyn Fn(usize) -> usize); 6] = [
            ("with the mask shifted by 1: 1 key too many", &|row| seen(row) + 1),
            ("with the mask shifted by 1: 1 key too few", &|row| seen(row).saturating_sub(1)),
            ("with the mask shifted by 2: 2 keys too many", &|row| seen(row) + 2),
            ("with the mask shifted by 2: 2 keys too few", &|row| seen(row).saturating_sub(2)),
            ("without the mask", &|_| s),
            ("with a mask that forgets what is cached", &|row| row + 1),
        ];
        for (text, seen) in ways {
            found.test("mask_shifted", text, || self.gives(&all, seen, &|v| v));
        }
    }

    /// The scores, and behind the mask those that the queries and keys make.
    fn unmasked(&self) -> Array3<f64> {
        let site = self.site;
        let mut all = self.scores.clone();
        let (q, k) = (
            site.heads(site.own(Stage::Q)),
            replay::keys(&site.job(), Stage::CacheK, site.layer()),
        );
        let (Some(q), Some(k)) = (q, k) else { return all };
        if (q.dim().0, q.dim().1, k.dim().1) != all.dim() || q.dim().2 != k.dim().2 {
            return all;
        }
        let scale = site.oracle.scale(site.layer());
        for head in 0..q.dim().0 {
            let cells = q.index_axis(Axis(0), head).dot(&k.index_axis(Axis(0), head).t()) * scale;
            for ((row, key), value) in cells.indexed_iter() {
                let i = (head * all.dim().1 + row) * all.dim().2 + key;
                if !site.counts[i] {
                    all[[head, row, key]] = *value;
                }
            }
        }
        all
    }

    fn scales(&self, found: &mut Found) {
        let dims = &self.site.oracle.dims;
        let (t, s) = self.site.sizes;
        let seen = |row: usize| ops::visible(row, t, s);
        let root = (dims.head_dim() as f64).sqrt();
        let width = (dims.n_embd as f64).sqrt();
        let by = |factor: f64| self.gives(self.scores, &seen, &move |v| v * factor);
        found.test("scale_missing", "with scores that are not scaled", || by(root));
        found.test("scale_doubled", "with scores that are scaled twice", || by(1.0 / root));
        found.test("scale_by_width", "with scores scaled by 1/√E", || by(root / width));
    }

    /// Softmaxes whose sums run over something else.
    fn other_sums(&self, found: &mut Found) {
        let (t, s) = self.site.sizes;
        found.test(None, "with probabilities that sum to 1 over the queries", || {
            let mut value = vec![0.0; self.scores.len()];
            for (head, scores) in self.scores.outer_iter().enumerate() {
                for key in 0..s {
                    let seen = |row: &usize| key < ops::visible(*row, t, s);
                    let rows: Vec<usize> = (0..t).filter(seen).collect();
                    let column: Vec<f64> = rows.iter().map(|row| scores[[*row, key]]).collect();
                    let probs = ops::softmax(&column);
                    for (row, p) in rows.iter().zip(probs) {
                        value[(head * t + row) * s + key] = p;
                    }
                }
            }
            let bound = |i: usize| 1e-4 * value[i] + f64::from(f32::MIN_POSITIVE);
            Some(self.site.target().fits(|i| value[i], bound))
        });
        found.test(None, "with 1 added to the sum below the fraction", || {
            let row_max = |row: usize| {
                let row = &self.row(row);
                row.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            };
            // e/(Σe + 1), the exponentials taken of s − max.
            let value = |i: usize| {
                let sum: f64 = self.row(i / s).iter().map(|v| (v - row_max(i / s)).exp()).sum();
                self.site.honest.value.values[i] * sum / (sum + 1.0)
            };
            Some(self.site.target().fits(value, |i| self.site.honest.bounds[i].bound))
        });
    }

    /// The visible scores of a row.
    fn row(&self, row: usize) -> Vec<f64> {
        let (t, s) = self.site.sizes;
        let seen = ops::visible(row % t, t, s);
        self.scores.index_axis(Axis(0), row / t).row(row % t).iter().take(seen).copied().collect()
    }

    fn rounded(&self, found: &mut Found) {
        let (t, s) = self.site.sizes;
        for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > self.site.u) {
            found.test(slug, format!("with the scores rounded to {to}"), || {
                self.gives(&rounded(self.scores, to), &|row| ops::visible(row, t, s), &|v| v)
            });
            found.test(slug, format!("with the exponentials rounded to {to}"), || {
                let exponentials: Vec<Vec<f64>> = (0..self.scores.len() / s)
                    .map(|row| {
                        let row = self.row(row);
                        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        row.iter().map(|v| round((v - max).exp(), to)).collect()
                    })
                    .collect();
                let sums: Vec<f64> = exponentials.iter().map(|row| row.iter().sum()).collect();
                let value =
                    |i: usize| exponentials[i / s].get(i % s).map_or(0.0, |e| e / sums[i / s]);
                // An exponential at the edge of two numbers may be rounded to either.
                let bound = |i: usize| self.site.honest.bounds[i].bound;
                Some(self.site.target().fits(value, bound))
            });
            found.test(slug, format!("with scores and output rounded to {to}"), || {
                let scores = rounded(self.scores, to);
                let value = ops::causal_softmax(scores.view());
                let value: Vec<f64> = value.iter().copied().collect();
                Some(output_fits(self.site, to, |i| value[i], |i| self.site.honest.bounds[i].bound))
            });
        }
    }

    /// A sum of reduced precision makes a factor of each row, near 1 and another in every row.
    fn reduced(&self, found: &mut Found) {
        if !found.asks(Some("reduced_sum")) {
            return;
        }
        let s = self.site.sizes.1;
        let (mut worst, mut signs, mut longest) = (0.0f64, [0usize; 2], 1);
        for row in 0..self.scores.len() / s {
            let cells: Vec<usize> =
                (row * s..(row + 1) * s).filter(|&i| self.site.counts[i]).collect();
            let (mut products, mut squares) = (0.0, 0.0);
            for &i in &cells {
                let honest = self.site.honest.value.values[i];
                products += self.site.given.values[i] * honest;
                squares += honest * honest;
            }
            let factor = products / squares;
            let target = self.site.target();
            let fits = cells.iter().all(|&i| {
                let bound = 2.0 * self.site.honest.bounds[i].bound;
                target.element_fits(i, factor * self.site.honest.value.values[i], bound)
            });
            if !fits || !factor.is_finite() {
                return;
            }
            if (factor - 1.0).abs() > 16.0 * self.site.u {
                signs[usize::from(factor > 1.0)] += 1;
                longest = longest.max(cells.len());
            }
            worst = worst.max((factor - 1.0).abs());
        }
        for (to, _) in NARROW {
            if signs[0] > 0 && signs[1] > 0 && worst <= (longest as f64).sqrt() * to.unit_roundoff()
            {
                return found.add("reduced_sum", format!("with the sum in {to}"));
            }
        }
    }
}
