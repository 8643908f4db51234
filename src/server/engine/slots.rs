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

    /// Gives a task the free slot that holds most of its prompt; of equals, the one that was used least recently. The tokens
    /// that need not be computed again.
    ///
    /// # Panics
    /// Where no slot is free.
    pub fn start(&mut self, task: Task) -> usize {
        self.clock += 1;
        let reusable = |slot: &Slot| {
            // The last token of a prompt is always fed: its logits are wanted. So are all, for logprobs.
            let most = if task.prompt_logprobs { 0 } else { task.ids.len() - 1 };
            let same = slot.held.iter().zip(&*task.ids).take_while(|(a, b)| a == b).count();
            same.min(most)
        };
        let free = self.slots.iter_mut().filter(|slot| slot.sequence.is_none());
        let best = free.max_by_key(|slot| (reusable(slot), u64::MAX - slot.used));
        let slot = best.expect("a slot is free");
        let reused = reusable(slot);
        slot.cache.truncate(reused);
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
