//! The hooks: one trait through which every point of the forward pass can be read or replaced.
//!
//! The model is generic over its probe, so [`NoProbe`] compiles to nothing: no branch, no call, no
//! copy. A probe that wants a point gets the tensor before anything has read it.

use std::collections::BTreeMap;

use llorch_trace::{Point, PointSet, Tensor, TensorData};
use ndarray::ArrayViewMutD;

use crate::error::{Error, Result};

pub trait Probe: Send {
    /// Announces the step that follows: 0 is the prefill, n the n-th decode step.
    fn begin_step(&mut self, step: usize) {
        let _ = step;
    }

    /// Whether [`tensor`](Probe::tensor) or [`ids`](Probe::ids) is to be called for `point`.
    fn wants(&self, point: Point) -> bool;

    /// Sees, and may change, a float tensor of the contract's shape.
    fn tensor(&mut self, point: Point, value: ArrayViewMutD<'_, f32>) -> Result<()>;

    /// Sees, and may change, token ids: `tokens`, `[T]`, or `argmax`, `[]`.
    fn ids(&mut self, point: Point, shape: &[usize], value: &mut [u32]) -> Result<()>;
}

/// Watches nothing and costs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    #[inline(always)]
    fn wants(&self, _: Point) -> bool {
        false
    }

    fn tensor(&mut self, _: Point, _: ArrayViewMutD<'_, f32>) -> Result<()> {
        Ok(())
    }

    fn ids(&mut self, _: Point, _: &[usize], _: &mut [u32]) -> Result<()> {
        Ok(())
    }
}

/// Hands a copy of each point of a set to a function, with its step.
pub struct Recorder<F> {
    points: PointSet,
    step: usize,
    keep: F,
}

impl<F> std::fmt::Debug for Recorder<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("points", &self.points).field("step", &self.step).finish()
    }
}

impl<F: FnMut(usize, Point, Tensor) -> Result<()> + Send> Recorder<F> {
    pub fn new(points: PointSet, keep: F) -> Recorder<F> {
        Recorder { points, step: 0, keep }
    }
}

impl<F: FnMut(usize, Point, Tensor) -> Result<()> + Send> Probe for Recorder<F> {
    fn begin_step(&mut self, step: usize) {
        self.step = step;
    }

    fn wants(&self, point: Point) -> bool {
        self.points.contains_point(point)
    }

    fn tensor(&mut self, point: Point, value: ArrayViewMutD<'_, f32>) -> Result<()> {
        // What passes is in rows nearly always: one long copy.
        let values = match value.as_slice() {
            Some(values) => values.to_vec(),
            None => value.iter().copied().collect(),
        };
        let copy = Tensor::f32(value.shape().to_vec(), values);
        (self.keep)(self.step, point, copy)
    }

    fn ids(&mut self, point: Point, shape: &[usize], value: &mut [u32]) -> Result<()> {
        let copy = Tensor::i64(shape.to_vec(), value.iter().map(|&id| i64::from(id)).collect());
        (self.keep)(self.step, point, copy)
    }
}

/// Replaces points by given tensors.
#[derive(Debug, Default)]
pub struct Injector {
    step: usize,
    replacements: BTreeMap<(usize, Point), Tensor>,
}

impl Injector {
    /// Puts `tensor` at `point` in `step`. Shapes are checked when the point is reached.
    pub fn replace(&mut self, step: usize, point: Point, tensor: Tensor) {
        self.replacements.insert((step, point), tensor);
    }

    fn checked(&self, point: Point, shape: &[usize]) -> Result<Option<&Tensor>> {
        let replacement = self.replacements.get(&(self.step, point));
        if let Some(tensor) = replacement
            && tensor.shape != shape
        {
            let what = format!("found shape {:?}, expected {shape:?}", tensor.shape);
            return Err(Error::input(
                "inject a tensor",
                format!("{point} in step {}: {what}", self.step),
            ));
        }
        Ok(replacement)
    }
}

impl Probe for Injector {
    fn begin_step(&mut self, step: usize) {
        self.step = step;
    }

    fn wants(&self, point: Point) -> bool {
        self.replacements.contains_key(&(self.step, point))
    }

    fn tensor(&mut self, point: Point, mut value: ArrayViewMutD<'_, f32>) -> Result<()> {
        if let Some(tensor) = self.checked(point, value.shape())? {
            for (i, x) in value.iter_mut().enumerate() {
                *x = tensor.get(i) as f32;
            }
        }
        Ok(())
    }

    fn ids(&mut self, point: Point, shape: &[usize], value: &mut [u32]) -> Result<()> {
        let Some(tensor) = self.checked(point, shape)? else { return Ok(()) };
        let TensorData::I64(ids) = &tensor.data else {
            let what = format!("{point} is {}; expected i64", tensor.dtype());
            return Err(Error::input("inject a tensor", what));
        };
        for (id, &new) in value.iter_mut().zip(ids) {
            *id = new.try_into().map_err(|_| {
                Error::input(
                    "inject a tensor",
                    format!("{point} holds {new}, which is no token id"),
                )
            })?;
        }
        Ok(())
    }
}

/// Two probes, one after the other: what the first replaces, the second sees.
impl<A: Probe, B: Probe> Probe for (A, B) {
    fn begin_step(&mut self, step: usize) {
        self.0.begin_step(step);
        self.1.begin_step(step);
    }

    fn wants(&self, point: Point) -> bool {
        self.0.wants(point) || self.1.wants(point)
    }

    fn tensor(&mut self, point: Point, mut value: ArrayViewMutD<'_, f32>) -> Result<()> {
        if self.0.wants(point) {
            self.0.tensor(point, value.view_mut())?;
        }
        if self.1.wants(point) {
            self.1.tensor(point, value)?;
        }
        Ok(())
    }

    fn ids(&mut self, point: Point, shape: &[usize], value: &mut [u32]) -> Result<()> {
        if self.0.wants(point) {
            self.0.ids(point, shape, value)?;
        }
        if self.1.wants(point) {
            self.1.ids(point, shape, value)?;
        }
        Ok(())
    }
}
