//! Requests that were accepted and are not finished: counted, so that their number is bounded and none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::server::metrics::Metrics;

/// How a request ended; of its sequences, the worst counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    Completed,
    /// Its client went away.
    Abandoned,
    TimedOut,
    Failed,
}

impl Outcome {
    pub const ALL: [Outcome; 4] =
        [Outcome::Completed, Outcome::Abandoned, Outcome::TimedOut, Outcome::Failed];

    fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Abandoned => "abandoned",
            Outcome::TimedOut => "timed_out",
            Outcome::Failed => "failed",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// Where tickets come from.
#[derive(Debug)]
pub struct Tickets {
    most: usize,
    out: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// A request's place; it is given back when its last sequence has ended.
#[derive(Debug)]
pub struct Ticket {
    tickets: Arc<Tickets>,
    /// Sequences that have not ended.
    left: AtomicUsize,
    worst: AtomicU8,
}

impl Tickets {
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Arc<Tickets> {
        Arc::new(Tickets { most, out: AtomicUsize::new(0), metrics })
    }

    /// For a request of so many sequences; none if there are as many requests as there may be.
    pub fn take(self: &Arc<Tickets>, sequences: usize) -> Option<Arc<Ticket>> {
        let more = |out: usize| (out < self.most).then_some(out + 1);
        if self.out.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_err() {
            self.metrics.refused("queue_full");
            return None;
        }
        self.metrics.accepted.inc();
        let (left, worst) = (AtomicUsize::new(sequences), AtomicU8::new(0));
        Some(Arc::new(Ticket { tickets: self.clone(), left, worst }))
    }
}

impl Ticket {
    pub fn part_ended(&self, outcome: Outcome) {
        self.left.fetch_sub(1, Ordering::SeqCst);
        self.worst.fetch_max(outcome as u8, Ordering::SeqCst);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Sequences that never came to an end: the engine is gone.
        let lost = self.left.load(Ordering::SeqCst) > 0;
        let worst = if lost { Outcome::Failed as u8 } else { self.worst.load(Ordering::SeqCst) };
        self.tickets.metrics.ended(Outcome::ALL[usize::from(worst)]);
        self.tickets.out.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_there_may_be_and_each_comes_back() {
        let metrics = Arc::new(Metrics::new());
        let tickets = Tickets::new(2, metrics.clone());
        let one = tickets.take(2).unwrap();
        let two = tickets.take(1).unwrap();
        assert!(tickets.take(1).is_none());
        let part = one.clone();
        part.part_ended(Outcome::Completed);
        drop(part);
        assert!(tickets.take(1).is_none(), "one of its sequences goes on");
        one.part_ended(Outcome::TimedOut);
        drop(one);
        let three = tickets.take(1).unwrap();
        three.part_ended(Outcome::Completed);
        drop((two, three));
        let said = metrics.text();
        assert!(said.contains("llorch_completions_accepted_total 3"), "{said}");
        for outcome in ["completed", "timed_out", "failed"] {
            let line = format!("llorch_completions_ended_total{{outcome=\"{outcome}\"}} 1");
            assert!(said.contains(&line), "{said}");
        }
    }
}
