//! What is compared: elements that are read a block at a time, wherever they lie, and which of them mean anything.

use std::ops::Range;

use llorch_trace::{Dtype, MappedTensor, Stage, Tensor};

use super::coarser;

/// A tensor whose elements can be widened to float64, a few at a time.
pub trait Elements: Sync {
    fn shape(&self) -> &[usize];

    /// What they were computed in, as far as that is known.
    fn dtype(&self) -> Dtype;

    /// Widens elements from `begin` on until `out` is full; there must be as many.
    fn read(&self, begin: usize, out: &mut [f64]);

    fn element(&self, i: usize) -> f64 {
        let mut one = [0.0];
        self.read(i, &mut one);
        one[0]
    }
}

/// A tensor widened to float64, with the dtype that it had.
#[derive(Debug, Clone)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub values: Vec<f64>,
}

impl Numbers {
    pub fn of(elements: &dyn Elements) -> Numbers {
        let shape = elements.shape().to_vec();
        let mut values = vec![0.0; shape.iter().product()];
        elements.read(0, &mut values);
        Numbers { shape, dtype: elements.dtype(), values }
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
        let n = array.len();
        if !array.is_standard_layout() {
            let values = array.iter().copied().collect();
            return Numbers::f64(shape, values);
        }
        // What lies in order is taken as it is; an array may be a part of its memory.
        let (mut values, first) = array.into_raw_vec_and_offset();
        values.drain(..first.unwrap_or(0));
        values.truncate(n);
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

impl Elements for Numbers {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn read(&self, begin: usize, out: &mut [f64]) {
        out.copy_from_slice(&self.values[begin..begin + out.len()]);
    }
}

impl Elements for Tensor {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn dtype(&self) -> Dtype {
        Tensor::dtype(self)
    }

    fn read(&self, begin: usize, out: &mut [f64]) {
        self.widen(begin, out);
    }
}

impl Elements for MappedTensor {
    fn shape(&self) -> &[usize] {
        MappedTensor::shape(self)
    }

    fn dtype(&self) -> Dtype {
        MappedTensor::dtype(self)
    }

    fn read(&self, begin: usize, out: &mut [f64]) {
        MappedTensor::read(self, begin, out);
    }
}

/// The elements that mean anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cells {
    All,
    /// Of attention's [H, T, S] the keys that a query sees, which are the first of them.
    Causal {
        /// By query, how many it sees.
        seen: Vec<usize>,
        keys: usize,
    },
}

impl Cells {
    pub fn of(stage: Stage, shape: &[usize]) -> Cells {
        match (stage.is_causal(), shape) {
            (true, &[_, queries, keys]) => Cells::causal(queries, keys, 0..queries),
            _ => Cells::All,
        }
    }

    /// Key j is visible to query t where j ≤ S − T + t; of the T queries of this step, these are there.
    pub fn causal(tokens: usize, keys: usize, queries: impl IntoIterator<Item = usize>) -> Cells {
        if keys < tokens {
            return Cells::All;
        }
        Cells::Causal { seen: queries.into_iter().map(|t| keys - tokens + t + 1).collect(), keys }
    }

    /// Whether the element of a flat index does.
    pub fn contain(&self, i: usize) -> bool {
        match self {
            Cells::All => true,
            Cells::Causal { seen, keys } => i % keys < seen[i / keys % seen.len()],
        }
    }

    /// Those of a range of flat indices that mean nothing, in runs.
    pub fn hidden(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (seen, keys) = match self {
            Cells::All => (&[][..], 1),
            Cells::Causal { seen, keys } => (&seen[..], *keys),
        };
        let rows =
            if seen.is_empty() { 0..0 } else { range.start / keys..range.end.div_ceil(keys) };
        rows.filter_map(move |row| {
            let begin = row * keys + seen[row % seen.len()];
            let run = begin.max(range.start)..((row + 1) * keys).min(range.end);
            (!run.is_empty()).then_some(run)
        })
    }
}

/// Whether an element of a stage's tensor means anything: as [`Cells::of`], of one.
pub fn is_visible(stage: Stage, shape: &[usize], i: usize) -> bool {
    match (stage.is_causal(), shape) {
        (true, &[_, t, s]) if s >= t => i % s <= s - t + (i / s) % t,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_cells_are_those_of_later_keys() {
        // Two queries behind one cached key.
        let seen: Vec<bool> = (0..6).map(|i| is_visible(Stage::Probs, &[1, 2, 3], i)).collect();
        assert_eq!(seen, [true, true, false, true, true, true]);
        assert!(is_visible(Stage::Q, &[1, 2, 3], 2));
    }

    #[test]
    fn runs_of_hidden_cells_are_those_that_do_not_count() {
        for (queries, keys) in [(1, 1), (1, 5), (4, 4), (3, 7)] {
            let cells = Cells::of(Stage::Scores, &[2, queries, keys]);
            let n = 2 * queries * keys;
            for begin in 0..n {
                for end in begin..=n {
                    let hidden: Vec<usize> = cells.hidden(begin..end).flatten().collect();
                    let want: Vec<usize> = (begin..end).filter(|i| !cells.contain(*i)).collect();
                    assert_eq!(hidden, want, "{queries} × {keys}, {begin}..{end}");
                    let one = |i: &usize| !is_visible(Stage::Scores, &[2, queries, keys], *i);
                    assert!(want.iter().all(one));
                }
            }
        }
        assert_eq!(Cells::All.hidden(0..10).count(), 0);
    }
}
