//! Which differences are allowed, and why.
//!
//! Our engine promises bits: every sum has one order, whatever the shape and the number of threads.
//! Others promise less: a BLAS sums a prefill in another order than a decode step, so what they
//! compute twice in different ways is held to the tolerance classes of the checkpoints. What is
//! only a copy is exact for everybody.

use llorch_trace::protocol::HelloResponse;
use llorch_trace::{Point, Stage};

use super::finding::Allowed;
use crate::judge::point_tolerance;
use crate::lineup::ENGINE;

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub bits: bool,
    /// For the table.
    pub words: String,
}

impl Rule {
    /// For what is computed again in another way: another shape, another number of threads.
    pub fn of_recomputing(hello: &HelloResponse) -> Rule {
        match is_ours(hello) {
            true => Rule::bits("its sums have one order, whatever the shape and the threads"),
            false => Rule::class("its kernels may sum in another order for another shape"),
        }
    }

    /// For the same request again.
    pub fn of_repeating(hello: &HelloResponse) -> Rule {
        match hello.can("deterministic") {
            true => Rule::bits("it declares `deterministic`"),
            false => Rule::class("it does not declare `deterministic`"),
        }
    }

    fn bits(why: &str) -> Rule {
        Rule { bits: true, words: format!("bit for bit: {why}") }
    }

    fn class(why: &str) -> Rule {
        Rule { bits: false, words: format!("tolerance of each checkpoint: {why}") }
    }

    pub fn allowed(&self, point: Point, a: f64, b: f64) -> Allowed {
        match self.bits {
            true => Allowed::Bits,
            false => Allowed::Within(point_tolerance(point) * 1f64.max(a.abs()).max(b.abs())),
        }
    }

    /// Within a tolerance a choice between near equals may go either way, and a filter's cut too:
    /// the logits, which those follow from, are compared instead.
    pub fn compares(&self, point: Point) -> bool {
        self.bits || !matches!(point.stage, Stage::Argmax | Stage::NextProbs)
    }
}

pub fn is_ours(hello: &HelloResponse) -> bool {
    hello.name == ENGINE
}
