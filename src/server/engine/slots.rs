//! The sequences that are computed together, and their caches.
//!
//! There are as many caches as slots, for the longest context each: what the daemon takes in memory is known when it
//! starts. What a cache holds of one request stays until another needs its slot, and is not computed again for a prompt that
//! begins alike.

use super::sequence::{Sequence, Task};
use crate::kv_cache::KvCache;

#[derive(Debug)]
struct Slot {
    cache: KvCache,
    /// The tokens whose keys and values the cache holds, while nobody uses it.
    held: Vec<u32>,
    sequence: Option<Sequence>,
    /// When it was last used: the oldest is overwritten first.
    used: u64,
}

/// Tokens of a prompt for which it is worth waiting that somebody else's is computed: some steps' share.
const WORTH_WAITING: usize = 64;

/// Tokens with which a prompt and a task's begin alike, of those that need not be computed: the last one always is, for its
/// logits are wanted. So are all, for logprobs.
fn common(ids: &[u32], task: &Task) -> usize {
    let most = if task.prompt_logprobs { 0 } else { task.ids.len() - 1 };
    ids.iter().zip(&task.ids[..most]).take_while(|(a, b)| a == b).count()
}

impl Slot {
    /// Tokens whose keys and values are in the cache.
    fn tokens(&self) -> &[u32] {
        match &self.sequence {
            Some(sequence) => sequence.fed(),
            None => &self.held,
        }
    }

    fn reusable(&self, task: &Task) -> usize {
        common(self.tokens(), task)
    }
}

#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    clock: u64,
}

impl Slots {
    pub fn new(caches: impl IntoIterator<Item = KvCache>) -> Slots {
        let slot = |cache| Slot { cache, held: Vec::new(), sequence: None, used: 0 };
        Slots { slots: caches.into_iter().map(slot).collect(), clock: 0 }
    }

    pub fn has_room(&self) -> bool {
        self.slots.iter().any(|slot| slot.sequence.is_none())
    }

    pub fn running(&self) -> usize {
        self.slots.iter().filter(|slot| slot.sequence.is_some()).count()
    }

    /// Whether so much of a task's prompt is just being computed for somebody else that it is better to wait for that.
    pub fn is_being_made(&self, task: &Task) -> bool {
        let there = self.slots.iter().map(|slot| slot.reusable(task)).max().unwrap_or(0);
        let coming = self.slots.iter().filter_map(|slot| slot.sequence.as_ref());
        let coming = coming.filter(|sequence| sequence.prompt_left() > 0);
        let coming = coming.map(|sequence| common(&sequence.task().ids, task)).max().unwrap_or(0);
        coming >= there + WORTH_WAITING
    }

    /// Gives a task a free slot. The tokens that need not be computed again: those that the slot holds, or that another one
    /// does, from which they are copied. Of slots that hold as much, the one that was used least recently is taken.
    ///
    /// # Panics
    /// Where no slot is free.
    pub fn start(&mut self, task: Task) -> usize {
        self.clock += 1;
        let held: Vec<usize> = self.slots.iter().map(|slot| slot.reusable(&task)).collect();
        let is_free = |at: &usize| self.slots[*at].sequence.is_none();
        let own = |at: &usize| (held[*at], u64::MAX - self.slots[*at].used);
        let free = (0..held.len()).filter(is_free).max_by_key(own).expect("a slot is free");
        let best = (0..held.len()).max_by_key(|at| held[*at]);
        let other = best.filter(|best| held[*best] > held[free]);
        let reused = held[other.unwrap_or(free)];
        match other.map(|other| self.slots.get_disjoint_mut([free, other])) {
            Some(Ok([slot, other])) => slot.cache.copy_prefix(&other.cache, reused),
            _ => self.slots[free].cache.truncate(reused),
        }
        let slot = &mut self.slots[free];
        slot.held.clear();
        slot.used = self.clock;
        slot.sequence = Some(Sequence::new(task, reused));
        reused
    }

    /// Sequences that are being computed, with their caches.
    pub fn busy(&mut self) -> impl Iterator<Item = (&mut Sequence, &mut KvCache)> {
        self.slots.iter_mut().filter_map(|slot| Some((slot.sequence.as_mut()?, &mut slot.cache)))
    }

    /// Frees the slots of sequences that have ended.
    pub fn free(&mut self) -> Vec<Sequence> {
        let mut freed = Vec::new();
        for slot in &mut self.slots {
            if let Some(sequence) = slot.sequence.take_if(|sequence| sequence.has_ended()) {
                // After a step that failed, the cache may hold less than was meant to be fed.
                slot.held = sequence.fed()[..slot.cache.len().min(sequence.fed().len())].to_vec();
                freed.push(sequence);
            }
        }
        freed
    }
}
