//! Several sequences at once: each must go on as it does alone, or there is no figure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::slice;

use super::args::Plan;
use super::measure::{self, Times};
use crate::live::Live;
use crate::text::count;

/// What the members of a batch went on with when each was alone, by the length of the prompts.
#[derive(Debug, Default)]
pub struct Batch {
    alone: BTreeMap<usize, Vec<Vec<u32>>>,
}

impl Batch {
    /// Asks for as many prompts at once as the plan says: the same tokens, each time from another one on.
    pub fn ask(&mut self, live: &mut Live, ids: &[u32], plan: &Plan) -> Result<Times, String> {
        let n = ids.len();
        let from = |i: usize| ids.iter().cycle().skip(i % n).take(n).copied().collect();
        let prompts: Vec<Vec<u32>> = (0..plan.batch).map(from).collect();
        let alone = match self.alone.entry(n) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let mut alone = Vec::new();
                for prompt in &prompts {
                    let (_, answers) =
                        measure::together(live, slice::from_ref(prompt), plan.decode)?;
                    alone.extend(answers);
                }
                place.insert(alone)
            }
        };
        let (times, together) = measure::together(live, &prompts, plan.decode)?;
        if together.len() != prompts.len() {
            let found = count(together.len(), "answer");
            return Err(format!("it gave {found} to {} sequences at once", prompts.len()));
        }
        match alone.iter().zip(&together).position(|(alone, own)| alone != own) {
            None => Ok(times),
            Some(i) => Err(format!(
                "sequence {} of {} at once goes on otherwise than alone, after a prompt of {}",
                i + 1,
                prompts.len(),
                count(n, "token")
            )),
        }
    }
}
