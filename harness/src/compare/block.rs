//! What a comparison adds up, a block of elements at a time.
//!
//! A block is computed in lanes without branches, which the compiler turns into vector instructions; the few things that need
//! a choice (where the worst element stands, what a NaN means) are left for afterwards.

use std::ops::Range;

use llorch_trace::Dtype;
use multiversion::multiversion;

use super::ulps;

/// Elements of a block: three buffers of them stay in the first cache.
pub const BLOCK: usize = 512;
/// Elements that are computed side by side.
const LANES: usize = 8;

/// Pairs of neighbouring elements and what is allowed of each.
#[derive(Debug)]
pub struct Block {
    x: [f64; BLOCK],
    y: [f64; BLOCK],
    /// |x − y| at most.
    allowed: [f64; BLOCK],
    /// The flat indices of the elements.
    range: Range<usize>,
    /// How many of them count.
    total: usize,
    /// The first that does.
    first: Option<usize>,
}

impl Block {
    pub fn new() -> Block {
        let zeros = [0.0; BLOCK];
        Block { x: zeros, y: zeros, allowed: zeros, range: 0..0, total: 0, first: None }
    }

    /// Places for x, y and what is allowed, of at most [`BLOCK`] elements.
    pub fn fill(&mut self, range: Range<usize>) -> [&mut [f64]; 3] {
        let n = range.len();
        (self.total, self.first) = (n, (n > 0).then_some(range.start));
        self.range = range;
        // What is missing of a whole block is equal, and changes nothing.
        self.x[n..].fill(0.0);
        self.y[n..].fill(0.0);
        self.allowed[n..].fill(1.0);
        [&mut self.x[..n], &mut self.y[..n], &mut self.allowed[..n]]
    }

    /// These mean nothing. Runs are told in their order.
    pub fn hide(&mut self, run: Range<usize>) {
        self.total -= run.len();
        if self.first == Some(run.start) {
            self.first = (run.end < self.range.end).then_some(run.end);
        }
        let inside = run.start - self.range.start..run.end - self.range.start;
        self.x[inside.clone()].fill(0.0);
        self.y[inside.clone()].fill(0.0);
        self.allowed[inside].fill(1.0);
    }

    fn elements(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let pairs = self.x.iter().zip(&self.y);
        pairs.zip(&self.allowed).map(|((x, y), allowed)| (*x, *y, *allowed)).take(self.range.len())
    }
}

/// What blocks add up to.
#[derive(Debug, Default)]
pub struct Sums {
    pub total: usize,
    /// How many are further off than what is allowed of them.
    pub exceeding: usize,
    pub max_abs: f64,
    pub max_rel: f64,
    /// Of the differences, and of y.
    pub squares: [f64; 2],
    pub ulp_max: u64,
    /// Elements of x and of y that are not finite.
    pub non_finite: [usize; 2],
    /// The first element whose difference is the largest part of what is allowed of it.
    pub worst: Option<usize>,
    worst_ratio: f64,
}

impl Sums {
    /// Adds a block. Differences in units in the last place are those of `dtype`.
    pub fn take(&mut self, block: &Block, dtype: Dtype) {
        let part = lanes(&block.x, &block.y, &block.allowed, dtype == Dtype::F64);
        self.total += block.total;
        self.exceeding += part.exceeding;
        self.max_abs = larger(self.max_abs, part.max_abs);
        self.max_rel = larger(self.max_rel, part.max_rel);
        for i in 0..2 {
            self.squares[i] += part.squares[i];
            self.non_finite[i] += part.non_finite[i];
        }
        self.ulp_max = match dtype {
            Dtype::F32 | Dtype::F64 => self.ulp_max.max(part.ulp_max),
            _ => {
                let off = block.elements().filter(|(x, y, _)| (x - y).abs() > 0.0);
                off.map(|(x, y, _)| ulps(x, y, dtype)).fold(self.ulp_max, u64::max)
            }
        };
        if part.ratio > self.worst_ratio {
            let ratios = block.elements().map(|(x, y, allowed)| ratio(x, y, allowed));
            let at = ratios.take_while(|r| *r != part.ratio).count();
            (self.worst, self.worst_ratio) = (Some(block.range.start + at), part.ratio);
        } else if self.worst.is_none() {
            self.worst = block.first;
        }
    }
}

/// What part of `allowed` the difference is: ∞ of what can't be compared. Where nothing is allowed every difference
/// exceeds, and the largest is the worst.
#[inline(always)]
fn ratio(x: f64, y: f64, allowed: f64) -> f64 {
    // Its reciprocal is √MAX.
    const NOTHING: f64 = 7.458_340_731_200_207e-155;
    let off = difference(x, y);
    let allowed = if allowed == 0.0 { NOTHING } else { allowed };
    if off < f64::INFINITY { off / allowed } else { f64::INFINITY }
}

/// Equal infinities agree; a NaN agrees with nothing, not even with a NaN.
#[inline(always)]
fn difference(x: f64, y: f64) -> f64 {
    let off = (x - y).abs();
    if x == y { 0.0 } else { off }
}

/// Without what `f64::max` does for a NaN, which `b` never is.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

struct Part {
    exceeding: usize,
    ratio: f64,
    max_abs: f64,
    max_rel: f64,
    squares: [f64; 2],
    non_finite: [usize; 2],
    /// Of f32, or of f64.
    ulp_max: u64,
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn lanes(x: &[f64; BLOCK], y: &[f64; BLOCK], allowed: &[f64; BLOCK], in_f64: bool) -> Part {
    if in_f64 { part::<true>(x, y, allowed) } else { part::<false>(x, y, allowed) }
}

#[inline(always)]
fn part<const IN_F64: bool>(x: &[f64; BLOCK], y: &[f64; BLOCK], allowed: &[f64; BLOCK]) -> Part {
    let mut exceeding = [0u64; LANES];
    let (mut ratios, mut max_abs, mut max_rel) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut squares = [[0.0; LANES]; 2];
    let mut non_finite = [[0u64; LANES]; 2];
    let mut ulp_max = [0u64; LANES];
    let x = x.as_chunks::<LANES>().0;
    for ((x, y), a) in x.iter().zip(y.as_chunks::<LANES>().0).zip(allowed.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            let (x, y) = (x[l], y[l]);
            let off = difference(x, y);
            let ratio = ratio(x, y, a[l]);
            exceeding[l] += u64::from(ratio > 1.0);
            ratios[l] = larger(ratios[l], ratio);
            max_abs[l] = larger(max_abs[l], off);
            let is_off = off > 0.0;
            let relative = off / larger(x.abs(), y.abs());
            max_rel[l] = larger(max_rel[l], if is_off { relative } else { 0.0 });
            squares[0][l] += off * off;
            squares[1][l] += y * y;
            non_finite[0][l] += u64::from(!x.is_finite());
            non_finite[1][l] += u64::from(!y.is_finite());
            let steps = rank::<IN_F64>(x).abs_diff(rank::<IN_F64>(y));
            let steps = if is_off { steps } else { 0 };
            ulp_max[l] = if steps > ulp_max[l] { steps } else { ulp_max[l] };
        }
    }
    let largest = |lanes: [f64; LANES]| lanes.into_iter().fold(0.0, larger);
    let count = |lanes: [u64; LANES]| lanes.into_iter().sum::<u64>() as usize;
    Part {
        exceeding: count(exceeding),
        ratio: largest(ratios),
        max_abs: largest(max_abs),
        max_rel: largest(max_rel),
        squares: squares.map(|lanes| lanes.into_iter().sum()),
        non_finite: non_finite.map(count),
        ulp_max: ulp_max.into_iter().fold(0, u64::max),
    }
}

/// A number that grows by one with each f32, or with each f64.
#[inline(always)]
fn rank<const IN_F64: bool>(x: f64) -> i64 {
    let (size, is_negative) = if IN_F64 {
        ((x.to_bits() & i64::MAX as u64) as i64, x.to_bits() >> 63 == 1)
    } else {
        let bits = (x as f32).to_bits();
        (i64::from(bits & i32::MAX as u32), bits >> 31 == 1)
    };
    if is_negative { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Element by element, as the definitions say it.
    fn by_definition(elements: &[(f64, f64, f64)], dtype: Dtype) -> Sums {
        let mut sums = Sums::default();
        for (i, &(x, y, allowed)) in elements.iter().enumerate() {
            let off = if x == y { 0.0 } else { (x - y).abs() };
            sums.total += 1;
            sums.non_finite[0] += usize::from(!x.is_finite());
            sums.non_finite[1] += usize::from(!y.is_finite());
            let ratio = match () {
                _ if off.is_nan() || off == f64::INFINITY => f64::INFINITY,
                _ if off == 0.0 => 0.0,
                _ if allowed == 0.0 => off * f64::MAX.sqrt(),
                _ => off / allowed,
            };
            sums.exceeding += usize::from(ratio > 1.0);
            if sums.worst.is_none() || ratio > sums.worst_ratio {
                (sums.worst, sums.worst_ratio) = (Some(i), ratio);
            }
            sums.max_abs = sums.max_abs.max(off);
            if off > 0.0 {
                sums.max_rel = sums.max_rel.max(off / x.abs().max(y.abs()));
                sums.ulp_max = sums.ulp_max.max(ulps(x, y, dtype));
            }
            sums.squares[0] += off * off;
            sums.squares[1] += y * y;
        }
        sums
    }

    fn element() -> impl Strategy<Value = (f64, f64, f64)> {
        let number = prop_oneof![
            8 => (-4.0f32..4.0).prop_map(f64::from),
            2 => any::<f32>().prop_map(f64::from),
            1 => prop_oneof![Just(0.0), Just(-0.0), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(f64::NAN)],
        ];
        let near = (number.clone(), number, any::<bool>(), 0u32..3);
        let pair = near.prop_map(|(x, y, near, steps)| match near {
            true => (x, f64::from(f32::from_bits((x as f32).to_bits().wrapping_add(steps)))),
            false => (x, y),
        });
        (pair, prop_oneof![Just(0.0), 1e-9..10.0]).prop_map(|((x, y), allowed)| (x, y, allowed))
    }

    proptest! {
        #[test]
        fn blocks_add_up_to_what_their_elements_do(
            elements in prop::collection::vec(element(), 0..3 * BLOCK),
        ) {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
                let (mut found, mut block) = (Sums::default(), Block::new());
                for begin in (0..elements.len()).step_by(BLOCK) {
                    let range = begin..elements.len().min(begin + BLOCK);
                    let [x, y, allowed] = block.fill(range.clone());
                    for (i, (one, other, most)) in elements[range].iter().enumerate() {
                        (x[i], y[i], allowed[i]) = (*one, *other, *most);
                    }
                    found.take(&block, dtype);
                }
                let want = by_definition(&elements, dtype);
                prop_assert_eq!((found.total, found.exceeding), (want.total, want.exceeding));
                prop_assert_eq!((found.max_abs, found.max_rel), (want.max_abs, want.max_rel));
                prop_assert_eq!((found.ulp_max, found.non_finite), (want.ulp_max, want.non_finite));
                prop_assert_eq!(found.worst, want.worst);
                for (a, b) in found.squares.into_iter().zip(want.squares) {
                    let same = a == b || (a - b).abs() <= 1e-12 * b || a.is_nan() && b.is_nan();
                    prop_assert!(same, "{a} {b}");
                }
            }
        }
    }
}
