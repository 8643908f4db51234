//! The oracle's pass, with some of its tensors taken from an implementation: every stage is
//! recomputed from what came before it, in float64, except where one is given.

use std::cell::RefCell;
use std::collections::HashMap;

use llorch_trace::Point;

use crate::compare::Numbers;
use crate::oracle::{Inputs, Job, Oracle};

#[allow(missing_debug_implementations, reason = "holds trait objects")]
pub struct Continuation<'a> {
    oracle: &'a Oracle,
    given: &'a dyn Inputs,
    /// Which tensors are taken as they were given, where they were.
    takes: &'a dyn Fn(usize, Point) -> bool,
    known: RefCell<HashMap<(usize, Point), Option<Numbers>>>,
}

impl<'a> Continuation<'a> {
    pub fn new(
        oracle: &'a Oracle,
        given: &'a dyn Inputs,
        takes: &'a dyn Fn(usize, Point) -> bool,
    ) -> Continuation<'a> {
        Continuation { oracle, given, takes, known: RefCell::default() }
    }

    fn compute(&self, step: usize, point: Point) -> Option<Numbers> {
        if (self.takes)(step, point)
            && let Some(given) = self.given.tensor(step, point)
        {
            return Some(given);
        }
        // The bounds are not looked at.
        let job = Job { step, inputs: self, u: 0.0 };
        Some(self.oracle.replay(point, job).ok()??.value)
    }
}

impl Inputs for Continuation<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        if let Some(known) = self.known.borrow().get(&(step, point)) {
            return known.clone();
        }
        let computed = self.compute(step, point);
        self.known.borrow_mut().insert((step, point), computed.clone());
        computed
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        self.given.ids(step)
    }

    fn past(&self, step: usize) -> usize {
        self.given.past(step)
    }
}
