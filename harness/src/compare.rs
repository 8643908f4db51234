//! How two tensors differ: pure arithmetic in float64, no files, no verdicts.

use llorch_trace::tensor::unravel;
use llorch_trace::{Dtype, Stage, Tensor};

use crate::result::{Excerpt, Metrics};

/// A tensor widened to float64, with the dtype that it had.
#[derive(Debug, Clone)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub values: Vec<f64>,
}

impl Numbers {
    pub fn of(tensor: &Tensor) -> Numbers {
        Numbers { shape: tensor.shape.clone(), dtype: tensor.dtype(), values: tensor.to_f64() }
    }

    /// The same numbers out of a computation in `dtype`, whatever they were stored in.
    pub fn computed_in(mut self, dtype: Option<Dtype>) -> Numbers {
        if self.dtype != Dtype::I64 {
            self.dtype = dtype.map_or(self.dtype, |dtype| coarser(self.dtype, dtype));
        }
        self
    }

    /// Out of fewer digits than f32 has: the classes, which are made for f32, say nothing about them.
    pub fn is_narrow(&self) -> bool {
        self.dtype.unit_roundoff() > Dtype::F32.unit_roundoff()
    }

    pub fn f64(shape: Vec<usize>, values: Vec<f64>) -> Numbers {
        Numbers { shape, dtype: Dtype::F64, values }
    }

    pub fn of_array(array: ndarray::ArrayD<f64>) -> Numbers {
        let shape = array.shape().to_vec();
        let values = array.iter().copied().collect();
        Numbers::f64(shape, values)
    }

    /// The last row along the first axis, `[V]` of `[T, V]`.
    pub fn last_row(&self) -> Option<Numbers> {
        let (rows, shape) = self.shape.split_first()?;
        let n: usize = shape.iter().product();
        let begin = rows.checked_sub(1)? * n;
        let values = self.values.get(begin..begin + n)?.to_vec();
        Some(Numbers { shape: shape.to_vec(), dtype: self.dtype, values })
    }
}

/// How far an element may be off.
#[allow(missing_debug_implementations, reason = "one variant holds a closure")]
#[derive(Clone, Copy)]
pub enum Tolerance<'a> {
    /// Equal after rounding to the coarser of the two dtypes.
    Exact,
    /// |a − b| ≤ t · max(1, |a|, |b|).
    Mixed(f64),
    /// |a − b| ≤ f(flat index).
    Absolute(&'a dyn Fn(usize) -> f64),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub metrics: Metrics,
    /// The flat index of the worst element.
    pub worst: usize,
    /// The tolerance at that element, as it was given.
    pub tolerance: f64,
    /// Elements that are not finite in a and in b.
    pub non_finite: [usize; 2],
}

impl Comparison {
    pub fn within(&self) -> bool {
        self.metrics.exceeding == 0
    }
}

/// Compares element by element; `counts` says which flat indices mean anything (masked attention
/// cells do not). The error is a sentence about the shapes.
pub fn compare(
    a: &Numbers,
    b: &Numbers,
    tolerance: Tolerance<'_>,
    counts: impl Fn(usize) -> bool,
) -> Result<Comparison, String> {
    if a.shape != b.shape {
        return Err(format!("shapes differ: {:?} against {:?}", a.shape, b.shape));
    }
    let coarser = coarser(a.dtype, b.dtype);
    let mut sums = Sums::default();
    for i in 0..a.values.len() {
        if !counts(i) {
            continue;
        }
        let (x, y) = match tolerance {
            Tolerance::Exact => (round(a.values[i], coarser), round(b.values[i], coarser)),
            _ => (a.values[i], b.values[i]),
        };
        let allowed = match tolerance {
            Tolerance::Exact => 0.0,
            Tolerance::Mixed(t) => t * 1f64.max(x.abs()).max(y.abs()),
            Tolerance::Absolute(f) => f(i),
        };
        sums.take(i, x, y, allowed, coarser);
    }
    let worst = sums.worst.unwrap_or(0);
    let finite = |v: f64| v.is_finite().then_some(v);
    let at = |n: &Numbers| n.values.get(worst).copied().and_then(finite);
    let total = sums.total.max(1) as f64;
    let all_finite = sums.non_finite == [0, 0];
    Ok(Comparison {
        metrics: Metrics {
            max_abs: finite(sums.max_abs).filter(|_| all_finite),
            max_rel: finite(sums.max_rel).filter(|_| all_finite),
            rel_l2: finite(match sums.squares_b {
                0.0 if sums.squares_d == 0.0 => 0.0,
                0.0 => f64::INFINITY,
                b => (sums.squares_d / b).sqrt(),
            })
            .filter(|_| all_finite),
            rmse: finite((sums.squares_d / total).sqrt()).filter(|_| all_finite),
            ulp_max: all_finite.then_some(sums.ulp_max),
            exceeding: sums.exceeding,
            total: sums.total,
            worst: unravel(&a.shape, worst),
            worst_values: [at(a), at(b)],
        },
        worst,
        tolerance: match tolerance {
            Tolerance::Exact => 0.0,
            Tolerance::Mixed(t) => t,
            Tolerance::Absolute(f) => f(worst),
        },
        non_finite: sums.non_finite,
    })
}

#[derive(Default)]
struct Sums {
    total: usize,
    exceeding: usize,
    max_abs: f64,
    max_rel: f64,
    squares_d: f64,
    squares_b: f64,
    ulp_max: u64,
    non_finite: [usize; 2],
    worst: Option<usize>,
    /// |a − b| over what is allowed, at the worst element.
    worst_ratio: f64,
}

impl Sums {
    fn take(&mut self, i: usize, x: f64, y: f64, allowed: f64, coarser: Dtype) {
        self.total += 1;
        // Equal infinities agree; a NaN agrees with nothing, not even with a NaN.
        let difference = if x == y { 0.0 } else { (x - y).abs() };
        self.non_finite[0] += usize::from(!x.is_finite());
        self.non_finite[1] += usize::from(!y.is_finite());
        let ratio = match () {
            _ if difference.is_nan() || difference == f64::INFINITY => f64::INFINITY,
            _ if difference == 0.0 => 0.0,
            // Where nothing is allowed every difference exceeds, and the largest is the worst.
            _ if allowed == 0.0 => difference * f64::MAX.sqrt(),
            _ => difference / allowed,
        };
        if ratio > 1.0 {
            self.exceeding += 1;
        }
        if self.worst.is_none() || ratio > self.worst_ratio {
            self.worst = Some(i);
            self.worst_ratio = ratio;
        }
        self.max_abs = self.max_abs.max(difference);
        let size = x.abs().max(y.abs());
        if difference > 0.0 {
            self.max_rel = self.max_rel.max(difference / size);
            self.ulp_max = self.ulp_max.max(ulps(x, y, coarser));
        }
        self.squares_d += difference * difference;
        self.squares_b += y * y;
    }
}

/// The dtype with fewer digits; whole numbers give way to floats.
pub fn coarser(a: Dtype, b: Dtype) -> Dtype {
    let u = |d: Dtype| d.unit_roundoff();
    if u(a) >= u(b) { a } else { b }
}

pub fn round(x: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 | Dtype::I64 => x,
        Dtype::F32 => x as f32 as f64,
        Dtype::F16 => half::f16::from_f64(x).to_f64(),
        Dtype::BF16 => half::bf16::from_f64(x).to_f64(),
    }
}

/// How many numbers of the dtype lie between two values, after rounding both to it.
fn ulps(x: f64, y: f64, dtype: Dtype) -> u64 {
    /// Maps the bits of a float to an integer that grows with the value, −0 and +0 to the same.
    fn rank(bits: u64, width: u32) -> i128 {
        let sign = 1u64 << (width - 1);
        if bits & sign == 0 { bits as i128 } else { -((bits & (sign - 1)) as i128) }
    }
    let rank = |v: f64| match dtype {
        Dtype::F64 => rank(v.to_bits(), 64),
        Dtype::F32 => rank((v as f32).to_bits() as u64, 32),
        Dtype::F16 => rank(half::f16::from_f64(v).to_bits() as u64, 16),
        Dtype::BF16 => rank(half::bf16::from_f64(v).to_bits() as u64, 16),
        Dtype::I64 => v as i128,
    };
    rank(x).abs_diff(rank(y)).min(u64::MAX as u128) as u64
}

/// Whether an element means anything: of attention's [H, T, S] key j is visible to query t where
/// j ≤ S − T + t; of everything else all do.
pub fn is_visible(stage: Stage, shape: &[usize], i: usize) -> bool {
    match (stage.is_causal(), shape) {
        (true, &[_, t, s]) if s >= t => i % s <= s - t + (i / s) % t,
        _ => true,
    }
}

/// Some elements of both along the last axis, beginning a little before `flat`.
pub fn excerpt(a: &Numbers, b: &Numbers, flat: usize, before: usize, n: usize) -> Excerpt {
    let row = a.shape.last().copied().unwrap_or(1).max(1);
    let row_begin = flat / row * row;
    let begin = flat.saturating_sub(before).max(row_begin);
    let take = |x: &Numbers| {
        let end = (begin + n).min(row_begin + row).min(x.values.len());
        let finite = |v: &f64| v.is_finite().then_some(*v);
        x.values.get(begin..end).unwrap_or_default().iter().map(finite).collect()
    };
    Excerpt { from: unravel(&a.shape, begin), a: take(a), b: take(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f64]) -> Numbers {
        Numbers { shape: vec![values.len()], dtype: Dtype::F32, values: values.to_vec() }
    }

    fn mixed(a: &[f64], b: &[f64], t: f64) -> Comparison {
        compare(&f32s(a), &f32s(b), Tolerance::Mixed(t), |_| true).unwrap()
    }

    #[test]
    fn metrics_are_those_of_their_definitions() {
        let c = mixed(&[3.0, 4.0, 0.0], &[3.0, 5.0, 0.0], 0.1);
        let m = c.metrics;
        assert_eq!((m.max_abs, m.max_rel, m.exceeding, m.total), (Some(1.0), Some(0.2), 1, 3));
        assert_eq!((m.worst, m.worst_values), (vec![1], [Some(4.0), Some(5.0)]));
        assert_eq!(m.rel_l2, Some((1f64 / 34.0).sqrt()));
        assert_eq!(m.rmse, Some((1f64 / 3.0).sqrt()));
    }

    #[test]
    fn the_mixed_form_scales_with_large_values_only() {
        // One ulp of a residual channel at 3000 is 2.4e-4: honest, and above 1e-4 absolute.
        assert!(mixed(&[3000.0], &[3000.000244140625], 1e-5).within());
        assert!(!mixed(&[0.0], &[2.4e-4], 1e-5).within());
    }

    #[test]
    fn the_worst_element_is_the_one_furthest_beyond_what_is_allowed() {
        let c = mixed(&[10000.0, 0.0], &[10000.5, 0.01], 1e-3);
        assert_eq!((c.metrics.worst, c.metrics.exceeding), (vec![1], 1));
    }

    #[test]
    fn ulps_count_across_zero_and_one_step_is_one() {
        let one = f32::from_bits(1.0f32.to_bits() + 1) as f64;
        assert_eq!(mixed(&[1.0], &[one], 1.0).metrics.ulp_max, Some(1));
        let tiny = f32::from_bits(1) as f64;
        assert_eq!(mixed(&[-tiny], &[tiny], 1.0).metrics.ulp_max, Some(2));
        assert_eq!(mixed(&[-0.0], &[0.0], 1.0).metrics.ulp_max, Some(0));
    }

    #[test]
    fn exact_rounds_to_the_coarser_dtype() {
        let exact = |x: f64, y: f64| {
            let (a, b) = (f32s(&[x]), Numbers::f64(vec![1], vec![y]));
            compare(&a, &b, Tolerance::Exact, |_| true).unwrap().within()
        };
        assert!(exact(0.1f32 as f64, 0.1));
        assert!(!exact(0.1f32 as f64, 0.100001));
    }

    #[test]
    fn nan_and_unequal_infinities_exceed_and_equal_infinities_do_not() {
        let inf = f64::INFINITY;
        for (x, y) in
            [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::NAN, f64::NAN), (inf, -inf), (inf, 1.0)]
        {
            let c = mixed(&[0.0, x], &[0.0, y], 1.0);
            assert_eq!((c.metrics.exceeding, c.metrics.max_abs), (1, None), "{x} {y}");
            assert_eq!(c.metrics.worst, [1]);
        }
        assert!(mixed(&[-inf], &[-inf], 0.0).within());
    }

    #[test]
    fn masked_elements_do_not_count() {
        let c = compare(&f32s(&[1.0, f64::NAN]), &f32s(&[1.0, 7.0]), Tolerance::Exact, |i| i == 0);
        let c = c.unwrap();
        assert_eq!((c.metrics.total, c.within()), (1, true));
    }

    #[test]
    fn shapes_must_agree() {
        let a = Numbers::f64(vec![2, 3], vec![0.0; 6]);
        let b = Numbers::f64(vec![3, 2], vec![0.0; 6]);
        let error = compare(&a, &b, Tolerance::Exact, |_| true).unwrap_err();
        assert!(error.contains("[2, 3] against [3, 2]"), "{error}");
    }

    #[test]
    fn an_excerpt_stays_in_its_row() {
        let a = Numbers::f64(vec![2, 4], (0..8).map(f64::from).collect());
        let e = excerpt(&a, &a, 5, 3, 8);
        assert_eq!((e.from, e.a.len(), e.a[0]), (vec![1, 0], 4, Some(4.0)));
        let scalar = Numbers::f64(vec![], vec![7.0]);
        assert_eq!(excerpt(&scalar, &scalar, 0, 3, 8).a, [Some(7.0)]);
    }

    #[test]
    fn masked_cells_are_those_of_later_keys() {
        // Two queries behind one cached key.
        let seen: Vec<bool> = (0..6).map(|i| is_visible(Stage::Probs, &[1, 2, 3], i)).collect();
        assert_eq!(seen, [true, true, false, true, true, true]);
        assert!(is_visible(Stage::Q, &[1, 2, 3], 2));
    }
}
