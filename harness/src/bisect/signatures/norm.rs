//! Layer normalization: epsilon, the variance, gain and bias, what is normed.

use llorch_trace::{Point, Stage};
use ndarray::{Array1, Array2};

use super::factor::short;
use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::bounds;
use crate::oracle::replay::block_input;

struct Norm<'a> {
    site: &'a Site<'a>,
    x: Array2<f64>,
    weight: Array1<f64>,
    bias: Array1<f64>,
    eps: f64,
}

/// One way to norm a row: what its deviations from the mean are multiplied with.
type Inverse<'a> = &'a dyn Fn(f64, f64) -> f64;

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(norm) = Norm::of(site) else { return };
    norm.unbiased(found);
    // Before what has no word: close to the bound, several may fit.
    norm.other_eps(found);
    norm.variances(found);
    norm.parameters(found);
    norm.inputs(found);
    norm.rounded(found);
    if found.all.is_empty() {
        norm.reduced(found);
    }
}

impl<'a> Norm<'a> {
    fn of(site: &'a Site<'a>) -> Option<Norm<'a>> {
        let layer = site.layer();
        let (input, name) = match site.point.stage {
            Stage::Ln1 => (block_input(layer), format!("h.{layer}.ln_1")),
            Stage::Ln2 => (site.own(Stage::ResidMid), format!("h.{layer}.ln_2")),
            Stage::LnF => (block_input(site.oracle.dims.n_layer), "ln_f".to_string()),
            _ => return None,
        };
        let x = site.rows(input)?;
        let weight = site.oracle.weights.vector(&format!("{name}.weight")).ok()?;
        let bias = site.oracle.weights.vector(&format!("{name}.bias")).ok()?;
        let fits = x.len() == site.given.values.len() && weight.len() == x.ncols();
        fits.then_some(Norm { site, x, weight, bias, eps: site.oracle.eps })
    }

    fn gives(&self, x: &Array2<f64>, w: &Array1<f64>, b: &Array1<f64>, eps: f64) -> Option<bool> {
        let n = w.len() as f64;
        self.with(x, (w, b), eps, true, &|variance, _| 1.0 / (variance + eps).sqrt())
            .filter(|_| n > 0.0)
    }

    /// Whether (x − mean)·inverse(variance, mean)·w + b is what was given; `centred` says whether the
    /// mean is taken away.
    fn with(
        &self,
        x: &Array2<f64>,
        (w, b): (&Array1<f64>, &Array1<f64>),
        eps: f64,
        centred: bool,
        inverse: Inverse<'_>,
    ) -> Option<bool> {
        let n = x.ncols();
        if x.len() != self.site.given.values.len() || w.len() != n || b.len() != n {
            return None;
        }
        let mut values = Vec::with_capacity(x.len());
        let mut off = Vec::with_capacity(x.len());
        for row in x.rows() {
            let mean = row.sum() / n as f64;
            let variance = row.mapv(|v| (v - mean).powi(2)).sum() / n as f64;
            let by = inverse(variance, mean);
            let from = if centred { mean } else { 0.0 };
            values.extend((0..n).map(|j| (row[j] - from) * by * w[j] + b[j]));
            off.extend(bounds::layer_norm(row, w.view(), b.view(), eps, self.site.u));
        }
        Some(self.site.target().fits(|i| values[i], |i| off[i].bound))
    }

    fn unbiased(&self, found: &mut Found) {
        let (n, eps) = (self.x.ncols() as f64, self.eps);
        let own = (&self.weight, &self.bias);
        found.test("unbiased_variance", "with the variance over E − 1", || {
            self.with(&self.x, own, eps, true, &|v, _| 1.0 / (v * n / (n - 1.0) + eps).sqrt())
        });
    }

    /// Other ways to scale the deviations, that have no word.
    fn variances(&self, found: &mut Found) {
        let (x, eps) = (&self.x, self.eps);
        let own = (&self.weight, &self.bias);
        found.test(None, "with eps added to the standard deviation", || {
            self.with(x, own, eps, true, &|v, _| 1.0 / (v.sqrt() + eps))
        });
        found.test(None, "without taking the mean away", || {
            self.with(x, own, eps, false, &|v, m| 1.0 / (v + m * m + eps).sqrt())
        });
        found.test(None, "without dividing by the standard deviation", || {
            self.with(x, own, eps, true, &|_, _| 1.0)
        });
    }

    fn parameters(&self, found: &mut Found) {
        let (x, eps) = (&self.x, self.eps);
        let (w, b) = (&self.weight, &self.bias);
        let n = w.len();
        found.test("bias_missing", "without the bias", || self.gives(x, w, &Array1::zeros(n), eps));
        if let Some(column) = self.site.beyond().next().map(|i| i % n) {
            found.test(
                "bias_element_missing",
                format!("without element {column} of the bias"),
                || {
                    let mut b = b.clone();
                    b[column] = 0.0;
                    self.gives(x, w, &b, eps)
                },
            );
        }
        found.test(None, "without the gain", || self.gives(x, &Array1::ones(n), b, eps));
        found.test(None, "without gain and bias", || {
            self.gives(x, &Array1::ones(n), &Array1::zeros(n), eps)
        });
        found.test(None, "with the bias added twice", || self.gives(x, w, &(b * 2.0), eps));
        let Some(layer) = self.site.point.layer else { return };
        let name = if self.site.point.stage == Stage::Ln1 { "ln_1" } else { "ln_2" };
        let weights = &self.site.oracle.weights;
        let read = |name: &str| {
            let vector = |part: &str| weights.vector(&format!("{name}.{part}")).ok();
            vector("weight").zip(vector("bias"))
        };
        for other in (0..self.site.oracle.dims.n_layer).filter(|l| *l != layer) {
            if !found.asks(Some("other_layer")) {
                break;
            }
            let Some((v, c)) = read(&format!("h.{other}.{name}")) else { continue };
            for (what, w, b) in [("weights", &v, &c), ("gain", &v, b), ("bias", w, &c)] {
                found.test("other_layer", format!("with the {what} of layer {other}"), || {
                    self.gives(x, w, b, eps)
                });
            }
        }
        let twin = if name == "ln_1" { "ln_2" } else { "ln_1" };
        found.test(None, format!("with the gain and bias of {twin}"), || {
            let (w, b) = read(&format!("h.{layer}.{twin}"))?;
            self.gives(x, &w, &b, eps)
        });
    }

    /// Other tensors in the place of its input, or the input itself.
    fn inputs(&self, found: &mut Found) {
        let site = self.site;
        let n = self.x.ncols();
        found.test("post_norm", "without the norm: its input went on", || {
            Some(site.target().fits(|i| self.x[[i / n, i % n]], |_| 0.0))
        });
        let own = |stage| site.own(stage);
        let others: Vec<Point> = match (site.point.stage, site.layer().checked_sub(1)) {
            (Stage::Ln1, None) => vec![own(Stage::AttnOut), own(Stage::ResidMid)],
            (Stage::Ln1, Some(before)) => vec![
                Point::of_layer(Stage::MlpOut, before),
                Point::of_layer(Stage::ResidMid, before),
                own(Stage::AttnOut),
                own(Stage::ResidMid),
            ],
            (Stage::Ln2, _) => {
                vec![block_input(site.layer()), own(Stage::AttnOut), own(Stage::Ln1)]
            }
            _ => {
                let last = site.oracle.dims.n_layer.saturating_sub(1);
                vec![Point::of_layer(Stage::ResidMid, last), Point::of_layer(Stage::MlpOut, last)]
            }
        };
        for other in others {
            found.test("post_norm", format!("with {other} normed instead"), || {
                self.gives(&site.rows(other)?, &self.weight, &self.bias, self.eps)
            });
        }
    }

    /// Solves for epsilon: over each row, given − bias is the deviations times gain by least squares,
    /// and 1/slope² is variance + eps. Rows of small variance tell most.
    fn other_eps(&self, found: &mut Found) {
        if !found.asks(Some("eps")) {
            return;
        }
        let (mut sum, mut weights) = (0.0, 0.0);
        for (t, row) in self.x.rows().into_iter().enumerate() {
            let n = row.len() as f64;
            let mean = row.sum() / n;
            let variance = row.mapv(|v| (v - mean).powi(2)).sum() / n;
            let (mut products, mut squares) = (0.0, 0.0);
            for j in 0..row.len() {
                let along = self.weight[j] * (row[j] - mean);
                products += along * (self.site.given.values[t * row.len() + j] - self.bias[j]);
                squares += along * along;
            }
            let slope = products / squares;
            let total = 1.0 / (slope * slope);
            if !total.is_finite() {
                continue;
            }
            let deviation = total * 6.0 * self.site.u / n.sqrt();
            let weight = 1.0 / (deviation * deviation);
            sum += weight * (total - variance);
            weights += weight;
        }
        let (estimate, deviation) = (sum / weights, 1.0 / weights.sqrt());
        if !estimate.is_finite() {
            return;
        }
        let round = candidates(estimate, 4.0 * deviation);
        for eps in round.into_iter().filter(|eps| *eps != self.eps) {
            let fits = self.gives(&self.x, &self.weight, &self.bias, eps) == Some(true);
            if fits {
                found.add("eps", format!("with eps {}", scientific(eps)));
                return;
            }
        }
    }

    fn rounded(&self, found: &mut Found) {
        let (x, w, b, eps) = (&self.x, &self.weight, &self.bias, self.eps);
        for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > self.site.u) {
            let (x2, w2, b2) = (rounded(x, to), rounded(w, to), rounded(b, to));
            let ways = [
                ("input", &x2, w, b),
                ("gain", x, &w2, b),
                ("bias", x, w, &b2),
                ("gain and bias", x, &w2, &b2),
            ];
            for (what, x, w, b) in ways {
                found.test(slug, format!("with the {what} rounded to {to}"), || {
                    self.gives(x, w, b, eps)
                });
            }
        }
    }

    /// Mean and variance of reduced precision: every row is off by a factor and a shift of its own,
    /// within what such sums do, and is right but for these.
    fn reduced(&self, found: &mut Found) {
        let n = self.x.ncols();
        let mut worst = [0.0f64; 2];
        let fits = |worst: &mut [f64; 2]| {
            for (t, row) in self.x.rows().into_iter().enumerate() {
                let mean = row.sum() / n as f64;
                let variance = row.mapv(|v| (v - mean).powi(2)).sum() / n as f64;
                let inverse = 1.0 / (variance + self.eps).sqrt();
                // z = given − bias = gain·(factor·d + shift): least squares in two unknowns.
                let z = |j: usize| self.site.given.values[t * n + j] - self.bias[j];
                let d = |j: usize| (row[j] - mean) * inverse;
                let (mut s0, mut s1, mut s2, mut z0, mut z1) = (0.0, 0.0, 0.0, 0.0, 0.0);
                for j in 0..n {
                    let w2 = self.weight[j] * self.weight[j];
                    s0 += w2;
                    s1 += w2 * d(j);
                    s2 += w2 * d(j) * d(j);
                    z0 += self.weight[j] * z(j);
                    z1 += self.weight[j] * d(j) * z(j);
                }
                let determinant = s0 * s2 - s1 * s1;
                let factor = (s0 * z1 - s1 * z0) / determinant;
                let shift = (s2 * z0 - s1 * z1) / determinant;
                let mean_abs = row.mapv(f64::abs).sum() / n as f64;
                let off = bounds::layer_norm(
                    row,
                    self.weight.view(),
                    self.bias.view(),
                    self.eps,
                    self.site.u,
                );
                let value = |j: usize| self.weight[j] * (factor * d(j) + shift) + self.bias[j];
                let target = self.site.target();
                let all =
                    (0..n).all(|j| target.element_fits(t * n + j, value(j), 2.0 * off[j].bound));
                if !all || !factor.is_finite() {
                    return false;
                }
                worst[0] = worst[0].max((factor - 1.0).abs());
                worst[1] = worst[1].max(shift.abs() / (mean_abs * inverse));
            }
            true
        };
        if !found.asks(Some("reduced_sum")) || !fits(&mut worst) {
            return;
        }
        let size = worst[0].max(worst[1]);
        // A mean that was exact makes no shift: then it is no sum of reduced precision.
        let shifted = worst[1] > 16.0 * self.site.u;
        let root = (n as f64).sqrt();
        for (to, _) in NARROW {
            if shifted && size <= root * to.unit_roundoff() {
                found.add("reduced_sum", format!("with mean and variance summed in {to}"));
                return;
            }
        }
    }
}

/// Round numbers near an estimate: powers of ten, then of one digit, then of two.
fn candidates(estimate: f64, reach: f64) -> Vec<f64> {
    let near = |x: &f64| (x - estimate).abs() <= reach;
    let powers = [1e-6, 1e-12, 1e-8, 1e-3, 1e-4, 1e-7, 1e-9, 1e-10, 1e-2, 1e-1, 1.0, 1e-5, 0.0];
    let mut all: Vec<f64> = powers.into_iter().filter(near).collect();
    all.sort_by(|a, b| (a - estimate).abs().total_cmp(&(b - estimate).abs()));
    for digits in [1, 2, 3, 4] {
        let parsed = format!("{:.*e}", digits - 1, estimate).parse::<f64>();
        all.extend(parsed.ok().filter(|x| *x > 0.0 && !all.contains(x)));
    }
    all
}

/// `1e-3`, `2.5e-4`, and what lies between as it is.
fn scientific(x: f64) -> String {
    if (0.01..1000.0).contains(&x) { short(x) } else { format!("{x:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roundest_number_near_an_estimate_comes_first() {
        assert_eq!(candidates(1.0003e-3, 1e-6)[0], 1e-3);
        assert_eq!(candidates(2.001e-4, 1e-7)[0], 2e-4);
        assert_eq!(candidates(2.52e-4, 1e-7)[1], 2.5e-4);
        assert_eq!((scientific(1e-3).as_str(), scientific(0.5).as_str()), ("1e-3", "0.5"));
    }
}
