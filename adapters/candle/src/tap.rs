//! The hook that a model passes each of its points through.

use candle_core::Tensor;
use llorch_trace::{Point, Stage};

use crate::failure::Result;

/// What happens at a point. Models call [`Tap::pass`] with each value, before anything reads it.
pub trait Tap: Send {
    /// Takes the value computed at a point; gives back the one to go on with.
    fn pass(&mut self, point: Point, value: Tensor) -> Result<Tensor>;

    /// Whether the value is captured or replaced: what nobody wants need not be computed.
    fn wants(&self, point: Point) -> bool;

    /// Whether the value is replaced at this step.
    fn replaces(&self, point: Point) -> bool;
}

/// Nothing is captured, nothing replaced.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn pass(&mut self, _: Point, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }

    fn wants(&self, _: Point) -> bool {
        false
    }

    fn replaces(&self, _: Point) -> bool {
        false
    }
}

/// A tap with the layer filled in.
pub(crate) struct LayerTap<'a> {
    pub tap: &'a mut dyn Tap,
    pub layer: usize,
}

impl LayerTap<'_> {
    pub fn pass(&mut self, stage: Stage, value: Tensor) -> Result<Tensor> {
        self.tap.pass(Point::of_layer(stage, self.layer), value)
    }

    pub fn replaces(&self, stage: Stage) -> bool {
        self.tap.replaces(Point::of_layer(stage, self.layer))
    }
}
