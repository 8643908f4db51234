//! Weight matrices as the kernels read them.
//!
//! A kernel computes 64 outputs at a time: it needs, input by input, 64 weights that lie side by side. So a
//! matrix `[K, N]` is kept as panels, `[⌈N/64⌉, K, 64]`: whoever computes a panel reads its memory from
//! beginning to end. The last panel is filled up with zeros.
//!
//! In bf16 a word holds the weights of two neighbouring inputs, `[⌈N/64⌉, ⌈K/2⌉, 64]`, as the CPU's instruction for
//! such products takes them. In int8 a word holds those of four, and 64 inputs have a row of scales before their
//! words, `[⌈N/64⌉, ⌈K/64⌉ · 17, 64]`.

use std::sync::Arc;

use ndarray::ArrayView2;

use crate::memory::Memory;
use crate::ops::linear::int8::{self, GROUP};
use crate::ops::linear::{halves, pair};

/// Outputs of a panel: four AVX-512 registers.
pub const PANEL: usize = 64;

/// How a matrix lies where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[K, N]`: Hugging Face's Conv1D.
    InputsByOutputs,
    /// `[N, K]`: embeddings, which are the head's matrix too.
    OutputsByInputs,
}

/// What weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    F32,
    /// Rounded once, to the nearest; what they are multiplied by is rounded likewise, and sums are in f32.
    Bf16,
    /// Whole numbers of eight bits and a scale for each 64 inputs of an output; what they are multiplied by is
    /// rounded likewise, and sums are in f32.
    Int8,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::Int8 => "int8",
        })
    }
}

impl Format {
    /// Rows of words in a panel of K inputs.
    fn rows(self, inputs: usize) -> usize {
        match self {
            Format::F32 => inputs,
            Format::Bf16 => inputs.div_ceil(2),
            Format::Int8 => inputs.div_ceil(GROUP) * int8::PANEL_ROWS,
        }
    }

    /// Words of 32 bits that a matrix takes in panels.
    pub fn size(self, inputs: usize, outputs: usize) -> usize {
        outputs.next_multiple_of(PANEL) * self.rows(inputs)
    }
}

/// A matrix of K inputs and N outputs in panels.
#[derive(Debug, Clone)]
pub struct Packed {
    memory: Arc<Memory>,
    begin: usize,
    inputs: usize,
    outputs: usize,
    format: Format,
}

/// The weights of 64 outputs, input by input.
#[derive(Debug, Clone, Copy)]
pub enum Panel<'a> {
    /// `[K, 64]`
    F32(&'a [[f32; PANEL]]),
    /// `[⌈K/2⌉, 64]`, the even input in the lower half.
    Bf16(&'a [[u32; PANEL]]),
    /// `[⌈K/64⌉ · 17, 64]`: of each 64 inputs the scales, then words of four, the first in the lowest byte.
    Int8(&'a [[u32; PANEL]]),
}

impl<'a> Panel<'a> {
    /// Some of its rows.
    pub fn rows(self, rows: std::ops::Range<usize>) -> Panel<'a> {
        match self {
            Panel::F32(all) => Panel::F32(&all[rows]),
            Panel::Bf16(all) => Panel::Bf16(&all[rows]),
            Panel::Int8(all) => Panel::Int8(&all[rows]),
        }
    }

    /// How many rows it has.
    pub fn height(self) -> usize {
        match self {
            Panel::F32(all) => all.len(),
            Panel::Bf16(all) | Panel::Int8(all) => all.len(),
        }
    }
}

impl Packed {
    /// The matrix that begins at word `begin` of `memory`.
    pub fn at(
        memory: Arc<Memory>,
        begin: usize,
        inputs: usize,
        outputs: usize,
        format: Format,
    ) -> Packed {
        assert!(begin + format.size(inputs, outputs) <= memory.as_slice::<u32>().len());
        Packed { memory, begin, inputs, outputs, format }
    }

    /// A copy of a matrix `[K, N]`, or `[N, K]`, in memory of its own.
    ///
    /// # Panics
    /// Without memory for it.
    pub fn from_matrix(matrix: ArrayView2<'_, f32>, layout: Layout, format: Format) -> Packed {
        let (inputs, outputs) = match layout {
            Layout::InputsByOutputs => matrix.dim(),
            Layout::OutputsByInputs => (matrix.ncols(), matrix.nrows()),
        };
        let mut memory = Memory::new(format.size(inputs, outputs)).expect("memory for a copy");
        let values = matrix.as_standard_layout();
        let values = values.as_slice().expect("standard layout");
        let read = |at: usize, out: &mut [f32]| out.copy_from_slice(&values[at..at + out.len()]);
        let panels = memory.as_mut_slice().chunks_exact_mut((format.rows(inputs) * PANEL).max(1));
        for (p, out) in panels.take(outputs.div_ceil(PANEL)).enumerate() {
            pack_panel(&read, layout, format, (inputs, outputs), p, out);
        }
        Packed::at(Arc::new(memory), 0, inputs, outputs, format)
    }

    /// K
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// N
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The weights of outputs 64·`p` to 64·`p`+63.
    pub fn panel(&self, p: usize) -> Panel<'_> {
        let size = self.format.rows(self.inputs) * PANEL;
        let words = self.begin + p * size..self.begin + (p + 1) * size;
        match self.format {
            Format::F32 => Panel::F32(self.memory.as_slice()[words].as_chunks().0),
            Format::Bf16 => Panel::Bf16(self.memory.as_slice()[words].as_chunks().0),
            Format::Int8 => Panel::Int8(self.memory.as_slice()[words].as_chunks().0),
        }
    }

    /// Writes all K weights of one output, a row of an embedding, to `out`.
    pub fn output(&self, n: usize, out: &mut [f32]) {
        assert!(n < self.outputs && out.len() == self.inputs);
        let lane = n % PANEL;
        match self.panel(n / PANEL) {
            Panel::F32(rows) => out.iter_mut().zip(rows).for_each(|(x, row)| *x = row[lane]),
            Panel::Bf16(rows) => {
                for (two, row) in out.chunks_mut(2).zip(rows) {
                    let (even, odd) = halves(row[lane]);
                    two.iter_mut().zip([even, odd]).for_each(|(x, half)| *x = half);
                }
            }
            Panel::Int8(rows) => {
                for (out, rows) in out.chunks_mut(GROUP).zip(rows.chunks_exact(int8::PANEL_ROWS)) {
                    int8::unpack_group(rows, lane, out);
                }
            }
        }
    }
}

/// Fills panel `p` of a matrix of `shape` (K, N); `read(at, out)` reads its elements from `at` on.
pub fn pack_panel(
    read: &impl Fn(usize, &mut [f32]),
    layout: Layout,
    format: Format,
    shape: (usize, usize),
    p: usize,
    out: &mut [u32],
) {
    match format {
        Format::F32 => pack_f32(read, layout, shape, p, bytemuck::cast_slice_mut(out)),
        Format::Bf16 => {
            let mut whole = vec![0.0; shape.0.next_multiple_of(2) * PANEL]; // [K, 64]
            pack_f32(read, layout, shape, p, &mut whole[..shape.0 * PANEL]);
            let rows = whole.as_chunks::<PANEL>().0.as_chunks::<2>().0;
            for ([even, odd], out) in rows.iter().zip(out.as_chunks_mut::<PANEL>().0) {
                for lane in 0..PANEL {
                    out[lane] = pair(even[lane], odd[lane]);
                }
            }
        }
        Format::Int8 => {
            let mut whole = vec![0.0; shape.0 * PANEL]; // [K, 64]
            pack_f32(read, layout, shape, p, &mut whole);
            let groups = whole.as_chunks::<PANEL>().0.chunks(GROUP);
            let rows = out.as_chunks_mut::<PANEL>().0.chunks_exact_mut(int8::PANEL_ROWS);
            groups.zip(rows).for_each(|(group, rows)| int8::pack_group(group, rows));
        }
    }
}

/// `[K, 64]`
fn pack_f32(
    read: &impl Fn(usize, &mut [f32]),
    layout: Layout,
    shape: (usize, usize),
    p: usize,
    out: &mut [f32],
) {
    let (inputs, outputs) = shape;
    let first = p * PANEL;
    let width = PANEL.min(outputs - first);
    let rows = out.as_chunks_mut::<PANEL>().0;
    match layout {
        Layout::InputsByOutputs => {
            for (k, row) in rows.iter_mut().enumerate() {
                read(k * outputs + first, &mut row[..width]);
            }
        }
        Layout::OutputsByInputs => {
            // A square at a time, turned in the cache.
            let mut square = [[0.0; PANEL]; PANEL];
            for (s, rows) in rows.chunks_mut(PANEL).enumerate() {
                for (lane, line) in square[..width].iter_mut().enumerate() {
                    read((first + lane) * inputs + s * PANEL, &mut line[..rows.len()]);
                }
                for (k, row) in rows.iter_mut().enumerate() {
                    for lane in 0..width {
                        row[lane] = square[lane][k];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn a_panel_has_its_outputs_side_by_side_and_zeros_after_the_last() {
        for (inputs, outputs) in [(1, 1), (3, 64), (70, 65), (130, 200)] {
            let weight = |k: usize, n: usize| (k * 1000 + n + 1) as f32;
            let by_inputs = Array2::from_shape_fn((inputs, outputs), |(k, n)| weight(k, n));
            let by_outputs = by_inputs.t().to_owned();
            let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
            for (matrix, layout) in
                [(&by_inputs, Layout::InputsByOutputs), (&by_outputs, Layout::OutputsByInputs)]
            {
                let f32s = Packed::from_matrix(matrix.view(), layout, Format::F32);
                let bf16s = Packed::from_matrix(matrix.view(), layout, Format::Bf16);
                for n in 0..outputs.next_multiple_of(PANEL) {
                    let due = |k| if n < outputs { weight(k, n) } else { 0.0 };
                    let (Panel::F32(f32s), Panel::Bf16(bf16s)) =
                        (f32s.panel(n / PANEL), bf16s.panel(n / PANEL))
                    else {
                        panic!("as they were made");
                    };
                    for k in 0..inputs {
                        assert_eq!(f32s[k][n % PANEL], due(k));
                        let half = bf16s[k / 2][n % PANEL] >> (16 * (k % 2));
                        assert_eq!(f32::from_bits(half << 16), rounded(due(k)));
                    }
                }
                let mut last = vec![0.0; inputs];
                f32s.output(outputs - 1, &mut last);
                assert!((0..inputs).all(|k| last[k] == weight(k, outputs - 1)));
                bf16s.output(outputs - 1, &mut last);
                assert!((0..inputs).all(|k| last[k] == rounded(weight(k, outputs - 1))));
            }
        }
    }
}
