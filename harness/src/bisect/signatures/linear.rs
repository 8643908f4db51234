//! x · W + b: its weights in another layout, of another layer, in another third; its bias; its input.

use std::sync::Arc;

use llorch_trace::{Dtype, Stage};
use ndarray::{Array1, Array2, Axis, s};

use super::rounding::{NARROW, output_fits, rounded};
use super::site::{Found, Site, Target};
use crate::oracle::bounds::gamma;
use crate::oracle::ops;
use crate::oracle::replay::block_input;

/// A linear stage, its output with heads side by side: [T, N] whatever the shape that was given.
struct Linear<'a> {
    site: &'a Site<'a>,
    x: Array2<f64>,
    /// `attn.c_attn`, of which a third is meant, `mlp.c_fc`, …
    name: &'static str,
    third: Option<usize>,
    weight: Arc<Array2<f64>>,
    bias: Array1<f64>,
    given: Array2<f64>,
    honest: Array2<f64>,
    over: Array2<bool>,
    /// The row with the most elements beyond: a hypothesis that fails there needs no more work.
    telling: usize,
}

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(linear) = Linear::of(site) else { return };
    linear.layouts(found);
    linear.biases(found);
    linear.other_layers(found);
    linear.other_inputs(found);
    linear.rounded(found);
}

impl<'a> Linear<'a> {
    fn of(site: &'a Site<'a>) -> Option<Linear<'a>> {
        let (input, name, third) = match site.point.stage {
            Stage::Q => (Stage::Ln1, "attn.c_attn", Some(0)),
            Stage::K => (Stage::Ln1, "attn.c_attn", Some(1)),
            Stage::V => (Stage::Ln1, "attn.c_attn", Some(2)),
            Stage::AttnOut => (Stage::Context, "attn.c_proj", None),
            Stage::Fc => (Stage::Ln2, "mlp.c_fc", None),
            Stage::MlpOut => (Stage::Act, "mlp.c_proj", None),
            _ => return None,
        };
        let x = site.rows(site.own(input))?;
        let whole = format!("h.{}.{name}", site.layer());
        let weight = site.oracle.weights.matrix(&format!("{whole}.weight")).ok()?;
        let bias = site.oracle.weights.vector(&format!("{whole}.bias")).ok()?;
        let rows = x.nrows();
        let shape = (rows, site.given.values.len() / rows.max(1));
        let (given, honest, over) = (&site.given.values, &site.honest.value.values, &site.over);
        let (given, honest, over) = match site.given.shape[..] {
            [h, t, d] => (
                merged(given, (h, t, d))?,
                merged(honest, (h, t, d))?,
                merged(&over.iter().map(|o| f64::from(*o)).collect::<Vec<_>>(), (h, t, d))?
                    .mapv(|o| o > 0.0),
            ),
            _ => (
                Array2::from_shape_vec(shape, given.clone()).ok()?,
                Array2::from_shape_vec(shape, honest.clone()).ok()?,
                Array2::from_shape_vec(shape, over.clone()).ok()?,
            ),
        };
        let many = |row: ndarray::ArrayView1<'_, bool>| row.iter().filter(|o| **o).count();
        let telling = (0..over.nrows()).max_by_key(|&t| many(over.row(t)))?;
        let linear = Linear { site, x, name, third, weight, bias, given, honest, over, telling };
        let (weight, bias) = linear.own();
        (weight.nrows() == linear.x.ncols() && bias.len() == linear.given.ncols()).then_some(linear)
    }

    /// The columns of a weight and a bias that this stage reads.
    fn part(&self, weight: &Array2<f64>, bias: &Array1<f64>) -> (Array2<f64>, Array1<f64>) {
        match self.third {
            None => (weight.clone(), bias.clone()),
            Some(third) => {
                let columns = self.columns(third);
                (
                    weight.slice(s![.., columns.clone()]).to_owned(),
                    bias.slice(s![columns]).to_owned(),
                )
            }
        }
    }

    fn columns(&self, third: usize) -> std::ops::Range<usize> {
        let e = self.site.oracle.dims.n_embd;
        third * e..(third + 1) * e
    }

    fn own(&self) -> (Array2<f64>, Array1<f64>) {
        self.part(&self.weight, &self.bias)
    }

    /// Whether x · W + b is what was given.
    fn gives(&self, x: &Array2<f64>, weight: &Array2<f64>, bias: &Array1<f64>) -> Option<bool> {
        if (x.ncols(), weight.ncols()) != (weight.nrows(), bias.len())
            || (x.nrows(), bias.len()) != self.given.dim()
        {
            return None;
        }
        let one = self.telling..self.telling + 1;
        Some(self.fits(x, weight, bias, one) && self.fits(x, weight, bias, 0..x.nrows()))
    }

    fn fits(
        &self,
        x: &Array2<f64>,
        weight: &Array2<f64>,
        bias: &Array1<f64>,
        rows: std::ops::Range<usize>,
    ) -> bool {
        let x = x.slice(s![rows.clone(), ..]);
        let value = ops::linear(x.view(), weight.view(), bias.view());
        let bound = self.bound(&x.to_owned(), weight, bias);
        let cut =
            |y: &Array2<f64>| y.slice(s![rows.clone(), ..]).iter().copied().collect::<Vec<_>>();
        let (given, honest) = (cut(&self.given), cut(&self.honest));
        let over: Vec<bool> = self.over.slice(s![rows.clone(), ..]).iter().copied().collect();
        let counts = vec![true; given.len()];
        let target = Target { given: &given, honest: &honest, counts: &counts, over: &over };
        let n = value.ncols();
        target.fits(|i| value[[i / n, i % n]], |i| bound[[i / n, i % n]])
    }

    /// The proof bound of each element.
    fn bound(&self, x: &Array2<f64>, weight: &Array2<f64>, bias: &Array1<f64>) -> Array2<f64> {
        let magnitude = x.mapv(f64::abs).dot(&weight.mapv(f64::abs)) + bias.mapv(f64::abs);
        magnitude * gamma(weight.nrows() + 1, self.site.u)
    }

    fn layouts(&self, found: &mut Found) {
        let (weight, bias) = self.own();
        found.test("transposed", "after transpose", || {
            self.gives(&self.x, &reread(&weight)?, &bias)
        });
        let Some(third) = self.third else { return };
        found.test("transposed", "after transpose of the whole of c_attn", || {
            let whole = reread(&self.weight)?;
            self.gives(&self.x, &whole.slice(s![.., self.columns(third)]).to_owned(), &bias)
        });
        for (other, name) in ["q", "k", "v"].into_iter().enumerate().filter(|(i, _)| *i != third) {
            found.test("qkv_swapped", format!("with {name} in its place"), || {
                let columns = self.columns(other);
                let weight = self.weight.slice(s![.., columns.clone()]).to_owned();
                self.gives(&self.x, &weight, &self.bias.slice(s![columns]).to_owned())
            });
        }
        let (d, e) = (self.site.oracle.dims.head_dim(), self.site.oracle.dims.n_embd);
        let interleaved: [(&str, Vec<usize>); 2] = [
            ("(head, three, D)", (0..e).map(|i| (i / d * 3 + third) * d + i % d).collect()),
            ("(head, D, three)", (0..e).map(|i| i * 3 + third).collect()),
        ];
        for (way, columns) in interleaved {
            let text = format!("with c_attn's columns read as {way}");
            found.test("heads_interleaved", text, || {
                let weight = self.weight.select(Axis(1), &columns);
                self.gives(&self.x, &weight, &self.bias.select(Axis(0), &columns))
            });
        }
    }

    fn biases(&self, found: &mut Found) {
        let (weight, bias) = self.own();
        found.test("bias_missing", "without the bias", || {
            self.gives(&self.x, &weight, &Array1::zeros(bias.len()))
        });
        let one = self.over.indexed_iter().find(|(_, over)| **over).map(|((_, column), _)| column);
        if let Some(column) = one {
            found.test(
                "bias_element_missing",
                format!("without element {column} of the bias"),
                || {
                    let mut bias = bias.clone();
                    bias[column] = 0.0;
                    self.gives(&self.x, &weight, &bias)
                },
            );
        }
        found.test(None, "with the bias added twice", || {
            self.gives(&self.x, &weight, &(&bias * 2.0))
        });
        found.test(None, "with the bias taken away", || {
            self.gives(&self.x, &weight, &(&bias * -1.0))
        });
    }

    fn other_layers(&self, found: &mut Found) {
        let (weight, bias) = self.own();
        let layers = self.site.oracle.dims.n_layer;
        for layer in (0..layers).filter(|l| *l != self.site.layer()) {
            if !found.asks(Some("other_layer")) {
                return;
            }
            let name = format!("h.{layer}.{}", self.name);
            let weights = &self.site.oracle.weights;
            let (Ok(w), Ok(b)) = (
                weights.matrix(&format!("{name}.weight")),
                weights.vector(&format!("{name}.bias")),
            ) else {
                continue;
            };
            let (w, b) = self.part(&w, &b);
            let ways = [("weights", &w, &b), ("weight", &w, &bias), ("bias", &weight, &b)];
            for (what, w, b) in ways {
                found.test("other_layer", format!("with the {what} of layer {layer}"), || {
                    self.gives(&self.x, w, b)
                });
            }
        }
    }

    /// The same weights after another tensor.
    fn other_inputs(&self, found: &mut Found) {
        let (weight, bias) = self.own();
        let site = self.site;
        let unnormed = match site.point.stage {
            Stage::Q | Stage::K | Stage::V => Some((block_input(site.layer()), "ln_1")),
            Stage::Fc => Some((site.own(Stage::ResidMid), "ln_2")),
            _ => None,
        };
        if let Some((input, norm)) = unnormed {
            found.test("post_norm", format!("with what {norm} reads as its input"), || {
                self.gives(&site.rows(input)?, &weight, &bias)
            });
        }
        if site.point.stage == Stage::AttnOut {
            let (h, d) = (site.oracle.dims.n_head, site.oracle.dims.head_dim());
            let ways: [Vec<usize>; 2] = [
                (0..h * d).map(|e| e % d * h + e / d).collect(),
                (0..h * d).map(|e| e % h * d + e / h).collect(),
            ];
            for way in ways {
                found.test("heads_interleaved", "with the heads of its input interleaved", || {
                    self.gives(&self.x.select(Axis(1), &way), &weight, &bias)
                });
            }
        }
    }

    fn rounded(&self, found: &mut Found) {
        let (weight, bias) = self.own();
        for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > self.site.u) {
            if !found.asks(Some(slug)) {
                continue;
            }
            let (x, w, b) = (rounded(&self.x, to), rounded(&weight, to), rounded(&bias, to));
            let ways = [
                ("input", &x, &weight, &bias),
                ("weights", &self.x, &w, &bias),
                ("bias", &self.x, &weight, &b),
                ("weights and bias", &self.x, &w, &b),
                ("input and weights", &x, &w, &bias),
                ("input, weights and bias", &x, &w, &b),
            ];
            for (what, x, w, b) in ways {
                found
                    .test(slug, format!("with the {what} rounded to {to}"), || self.gives(x, w, b));
            }
            found.test(slug, format!("with the input, weights and output rounded to {to}"), || {
                Some(self.output_fits(to, &x, &w, &bias) || self.output_fits(to, &x, &w, &b))
            });
        }
    }

    fn output_fits(&self, to: Dtype, x: &Array2<f64>, w: &Array2<f64>, b: &Array1<f64>) -> bool {
        let value = ops::linear(x.view(), w.view(), b.view());
        let bound = self.bound(x, w, b);
        let n = value.ncols();
        let d = self.site.oracle.dims.head_dim();
        let t = value.nrows();
        // Back to where it stood in what was given.
        let at = |i: usize| match self.third {
            Some(_) => [i / d % t, i / (t * d) * d + i % d],
            None => [i / n, i % n],
        };
        output_fits(self.site, to, |i| value[at(i)], |i| bound[at(i)])
    }
}

/// [H, T, D] with heads side by side.
fn merged(values: &[f64], shape: (usize, usize, usize)) -> Option<Array2<f64>> {
    let split = ndarray::ArrayView3::from_shape(shape, values).ok()?;
    Some(ops::merge_heads(split))
}

/// The numbers of a [K, N] matrix read as if they were [N, K], and turned: for a square one, its
/// transpose.
fn reread(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    let (k, n) = matrix.dim();
    let flat: Vec<f64> = matrix.iter().copied().collect();
    Some(Array2::from_shape_vec((n, k), flat).ok()?.reversed_axes().as_standard_layout().to_owned())
}
