//! What an implementation captured, each tensor read once.

use std::cell::RefCell;
use std::collections::HashMap;

use llorch_trace::Point;

use crate::compare::Numbers;
use crate::evidence::{Case, Evidence};
use crate::judge::Captured;
use crate::oracle::Inputs;

#[derive(Debug)]
pub struct Memory<'a> {
    captured: Captured<'a>,
    known: RefCell<HashMap<(usize, Point), Option<Numbers>>>,
}

impl<'a> Memory<'a> {
    pub fn new(evidence: &'a Evidence, case: &'a Case) -> Memory<'a> {
        Memory { captured: Captured { evidence, case }, known: RefCell::default() }
    }

    pub fn case(&self) -> &'a Case {
        self.captured.case
    }
}

impl Inputs for Memory<'_> {
    fn tensor(&self, step: usize, point: Point) -> Option<Numbers> {
        if let Some(known) = self.known.borrow().get(&(step, point)) {
            return known.clone();
        }
        let read = self.captured.tensor(step, point);
        self.known.borrow_mut().insert((step, point), read.clone());
        read
    }

    fn ids(&self, step: usize) -> Vec<u32> {
        self.captured.ids(step)
    }

    fn past(&self, step: usize) -> usize {
        self.captured.past(step)
    }
}
