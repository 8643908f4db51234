//! What llama.cpp's `llama-eval-callback` prints: every node of the graph, some of its elements, four
//! decimals each.
//!
//! [`rows`] reads the brackets, [`header`] the line above them, [`nodes`] puts both together. Only
//! what is printed is kept, whatever shape a header claims.

mod header;
mod nodes;
mod rows;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use llorch_trace::Dtype;

pub use nodes::read;

#[derive(Debug, thiserror::Error)]
#[error("failed to read {}: {what}", path.display())]
pub struct PrintedError {
    path: PathBuf,
    what: String,
}

impl PrintedError {
    fn new(path: &Path, what: impl ToString) -> PrintedError {
        PrintedError { path: path.to_path_buf(), what: what.to_string() }
    }
}

/// Some elements of a tensor, by their place in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    pub path: PathBuf,
    /// The shape as ggml has it: four axes, the fastest first.
    pub ne: [usize; 4],
    /// Sorted by place.
    pub values: Vec<(usize, f64)>,
    /// How far a printed number may be from the one that was meant.
    pub rounding: f64,
}

impl Cells {
    /// The error of who wants them all.
    pub fn are_not_all(&self) -> PrintedError {
        PrintedError::new(&self.path, "only some elements of a tensor are printed there")
    }
}

/// One node of one evaluation of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct PrintedNode {
    pub name: String,
    pub dtype: Dtype,
    /// 0 is the prefill.
    pub evaluation: usize,
    pub cells: Cells,
}

#[derive(Debug, Default)]
pub struct PrintedFile {
    pub nodes: Vec<PrintedNode>,
    /// Nodes that were not printed whole, and why they are not used.
    pub unusable: Vec<(String, String)>,
}
