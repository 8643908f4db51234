//! How two tensors differ: pure arithmetic in float64, no files, no verdicts.

mod block;
mod elements;

use llorch_trace::Dtype;
use llorch_trace::tensor::unravel;

use self::block::{BLOCK, Block, Sums};
pub use self::elements::{Cells, Elements, Numbers, is_visible};
use crate::result::{Excerpt, Metrics};

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

/// Compares the cells that mean anything, a block at a time: neither tensor need be in memory. The error is a
/// sentence about the shapes.
pub fn compare(
    a: &dyn Elements,
    b: &dyn Elements,
    tolerance: Tolerance<'_>,
    cells: &Cells,
) -> Result<Comparison, String> {
    let shape = a.shape();
    if shape != b.shape() {
        return Err(format!("shapes differ: {shape:?} against {:?}", b.shape()));
    }
    let coarser = coarser(a.dtype(), b.dtype());
    let (mut sums, mut block) = (Sums::default(), Block::new());
    let n: usize = shape.iter().product();
    for begin in (0..n).step_by(BLOCK) {
        let range = begin..n.min(begin + BLOCK);
        let [x, y, allowed] = block.fill(range.clone());
        a.read(begin, x);
        b.read(begin, y);
        match tolerance {
            Tolerance::Exact => {
                round_all(x, coarser);
                round_all(y, coarser);
                allowed.fill(0.0);
            }
            Tolerance::Mixed(t) => {
                for ((allowed, x), y) in allowed.iter_mut().zip(x).zip(y) {
                    *allowed = t * 1f64.max(x.abs()).max(y.abs());
                }
            }
            Tolerance::Absolute(f) => {
                for (allowed, i) in allowed.iter_mut().zip(range.clone()) {
                    *allowed = f(i);
                }
            }
        }
        for run in cells.hidden(range) {
            block.hide(run);
        }
        sums.take(&block, coarser);
    }
    let worst = sums.worst.unwrap_or(0);
    let finite = |v: f64| v.is_finite().then_some(v);
    let at = |e: &dyn Elements| if worst < n { finite(e.element(worst)) } else { None };
    let total = sums.total.max(1) as f64;
    let all_finite = sums.non_finite == [0, 0];
    Ok(Comparison {
        metrics: Metrics {
            max_abs: finite(sums.max_abs).filter(|_| all_finite),
            max_rel: finite(sums.max_rel).filter(|_| all_finite),
            rel_l2: finite(match sums.squares {
                [0.0, 0.0] => 0.0,
                [_, 0.0] => f64::INFINITY,
                [off, b] => (off / b).sqrt(),
            })
            .filter(|_| all_finite),
            rmse: finite((sums.squares[0] / total).sqrt()).filter(|_| all_finite),
            ulp_max: all_finite.then_some(sums.ulp_max),
            exceeding: sums.exceeding,
            total: sums.total,
            worst: unravel(shape, worst),
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

/// The dtype with fewer digits; whole numbers give way to floats.
pub fn coarser(a: Dtype, b: Dtype) -> Dtype {
    let u = |d: Dtype| d.unit_roundoff();
    if u(a) >= u(b) { a } else { b }
}

pub fn round(x: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 | Dtype::I64 => x,
        Dtype::F32 => x as f32 as f64,
        Dtype::F16 => half::f16::from_f32(odd(x)).to_f64(),
        Dtype::BF16 => half::bf16::from_f32(odd(x)).to_f64(),
    }
}

/// The f32 towards zero, its last digit set where something was cut off: whatever has two digits less is rounded from it as from
/// the number itself (Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using
/// rounding to odd"). `half` takes an f64 for the first 20 digits of it, and a number a little off a tie for the tie.
fn odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    if back == x || x.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    f32::from_bits(if back.abs() > x.abs() { bits - 1 } else { bits } | 1)
}

fn round_all(values: &mut [f64], dtype: Dtype) {
    match dtype {
        Dtype::F64 | Dtype::I64 => {}
        Dtype::F32 => values.iter_mut().for_each(|v| *v = f64::from(*v as f32)),
        Dtype::F16 | Dtype::BF16 => values.iter_mut().for_each(|v| *v = round(*v, dtype)),
    }
}

/// How many numbers of the dtype lie between two values, after rounding both to it.
fn ulps(x: f64, y: f64, dtype: Dtype) -> u64 {
    /// Maps the bits of a float to an integer that grows with the value, −0 and +0 to the same.
    fn rank(bits: u64, width: u32) -> i64 {
        let sign = 1u64 << (width - 1);
        let size = (bits & (sign - 1)) as i64;
        if bits & sign == 0 { size } else { -size }
    }
    let rank = |v: f64| match dtype {
        Dtype::F64 => rank(v.to_bits(), 64),
        Dtype::F32 => rank(u64::from((v as f32).to_bits()), 32),
        Dtype::F16 => rank(u64::from(half::f16::from_f32(odd(v)).to_bits()), 16),
        Dtype::BF16 => rank(u64::from(half::bf16::from_f32(odd(v)).to_bits()), 16),
        Dtype::I64 => v as i64,
    };
    rank(x).abs_diff(rank(y))
}

/// Some elements of both along the last axis, beginning a little before `flat`.
pub fn excerpt(
    a: &dyn Elements,
    b: &dyn Elements,
    flat: usize,
    before: usize,
    n: usize,
) -> Excerpt {
    let row = a.shape().last().copied().unwrap_or(1).max(1);
    let row_begin = flat / row * row;
    let begin = flat.saturating_sub(before).max(row_begin);
    let take = |x: &dyn Elements| {
        let held: usize = x.shape().iter().product();
        let end = (begin + n).min(row_begin + row).min(held);
        let mut values = vec![0.0; end.saturating_sub(begin)];
        if !values.is_empty() {
            x.read(begin, &mut values);
        }
        values.into_iter().map(|v| v.is_finite().then_some(v)).collect()
    };
    Excerpt { from: unravel(a.shape(), begin), a: take(a), b: take(b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::Stage;

    fn f32s(values: &[f64]) -> Numbers {
        Numbers { shape: vec![values.len()], dtype: Dtype::F32, values: values.to_vec() }
    }

    fn mixed(a: &[f64], b: &[f64], t: f64) -> Comparison {
        compare(&f32s(a), &f32s(b), Tolerance::Mixed(t), &Cells::All).unwrap()
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
            compare(&a, &b, Tolerance::Exact, &Cells::All).unwrap().within()
        };
        assert!(exact(0.1f32 as f64, 0.1));
        assert!(!exact(0.1f32 as f64, 0.100001));
    }

    /// Numbers next to the middle of two neighbours, as keys are that a cache keeps in bf16.
    #[test]
    fn rounding_to_less_than_f32_sees_every_digit() {
        for (dtype, digits) in [(Dtype::BF16, 8), (Dtype::F16, 11)] {
            let step = 2f64.powi(1 - digits);
            for n in 0..64 {
                let (below, above) = (1.0 + f64::from(n) * step, 1.0 + f64::from(n + 1) * step);
                let middle = 1.0 + (f64::from(n) + 0.5) * step;
                let even = if n % 2 == 0 { below } else { above };
                for sign in [1.0, -1.0] {
                    assert_eq!(round(sign * middle, dtype), sign * even);
                    // the last digit of an f32, and of an f64
                    for off in [2f64.powi(-23), 2f64.powi(-52)] {
                        assert_eq!(round(sign * (middle + off), dtype), sign * above, "{dtype}");
                        assert_eq!(round(sign * (middle - off), dtype), sign * below, "{dtype}");
                    }
                }
            }
            for same in [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(round(same, dtype).to_bits(), same.to_bits());
            }
            assert!(round(f64::NAN, dtype).is_nan());
            assert_eq!(round(1e300, dtype), f64::INFINITY);
            assert_eq!(round(1e-300, dtype), 0.0);
        }
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
        let masked = |x: f64, y: f64| Numbers::f64(vec![1, 2, 2], vec![1.0, x, 2.0, y]);
        let cells = Cells::of(Stage::Scores, &[1, 2, 2]);
        let of = |a, b| compare(&a, &b, Tolerance::Exact, &cells).unwrap();
        let c = of(masked(f64::NAN, 3.0), masked(7.0, 3.0));
        assert_eq!((c.metrics.total, c.within(), c.worst), (3, true, 0));
        let c = of(masked(f64::NAN, 3.0), masked(7.0, 4.0));
        assert_eq!((c.metrics.exceeding, c.worst), (1, 3));
    }

    #[test]
    fn nothing_to_compare_is_nothing_that_differs() {
        let nothing = Numbers::f64(vec![0, 4], vec![]);
        let c = compare(&nothing, &nothing, Tolerance::Exact, &Cells::All).unwrap();
        assert_eq!((c.metrics.total, c.metrics.worst_values), (0, [None, None]));
    }

    #[test]
    fn shapes_must_agree() {
        let a = Numbers::f64(vec![2, 3], vec![0.0; 6]);
        let b = Numbers::f64(vec![3, 2], vec![0.0; 6]);
        let error = compare(&a, &b, Tolerance::Exact, &Cells::All).unwrap_err();
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
}
