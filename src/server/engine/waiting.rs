//! Tasks that wait for a slot: each client in the order of its own requests, clients in turn.

use std::collections::VecDeque;

use super::sequence::Task;

#[derive(Debug, Default)]
pub struct Waiting {
    /// By client, in the order of their turns; none is empty.
    queues: VecDeque<(u64, VecDeque<Task>)>,
}

impl Waiting {
    pub fn push(&mut self, task: Task) {
        match self.queues.iter_mut().find(|(client, _)| *client == task.client) {
            Some((_, queue)) => queue.push_back(task),
            None => self.queues.push_back((task.client, VecDeque::from([task]))),
        }
    }

    /// The next one; its client's turn comes again after everybody else's.
    pub fn pop(&mut self) -> Option<Task> {
        let (client, mut queue) = self.queues.pop_front()?;
        let task = queue.pop_front();
        if !queue.is_empty() {
            self.queues.push_back((client, queue));
        }
        task
    }

    /// The one that was popped last is the next one again.
    pub fn put_back(&mut self, task: Task) {
        let client = task.client;
        let mut queue = match self.queues.iter().position(|(other, _)| *other == client) {
            Some(at) => self.queues.remove(at).map(|(_, queue)| queue).unwrap_or_default(),
            None => VecDeque::new(),
        };
        queue.push_front(task);
        self.queues.push_front((client, queue));
    }

    /// Takes out those for which `gone` holds.
    pub fn remove(&mut self, gone: impl Fn(&Task) -> bool) -> Vec<Task> {
        let mut removed = Vec::new();
        for (_, queue) in &mut self.queues {
            for task in std::mem::take(queue) {
                if gone(&task) { removed.push(task) } else { queue.push_back(task) }
            }
        }
        self.queues.retain(|(_, queue)| !queue.is_empty());
        removed
    }

    pub fn len(&self) -> usize {
        self.queues.iter().map(|(_, queue)| queue.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::engine::testing;

    fn task(client: u64, n: usize) -> Task {
        testing::task(client, &[1], n).0
    }

    fn order(waiting: &mut Waiting) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| waiting.pop()).map(|t| (t.client, t.max_new_tokens)).collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut waiting = Waiting::default();
        for (client, n) in [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2)] {
            waiting.push(task(client, n));
        }
        assert_eq!(waiting.len(), 6);
        assert_eq!(order(&mut waiting), [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (1, 3)]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn what_is_put_back_comes_first_again() {
        let mut waiting = Waiting::default();
        for (client, n) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
            waiting.push(task(client, n));
        }
        let popped: Vec<Task> = (0..3).filter_map(|_| waiting.pop()).collect();
        popped.into_iter().rev().for_each(|task| waiting.put_back(task));
        assert_eq!(order(&mut waiting), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]);
    }

    #[test]
    fn who_is_gone_leaves_the_others_in_their_order() {
        let mut waiting = Waiting::default();
        for (client, n) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)] {
            waiting.push(task(client, n));
        }
        let gone = waiting.remove(|t| (t.client, t.max_new_tokens) == (1, 2) || t.client == 2);
        assert_eq!(gone.len(), 3);
        assert_eq!(order(&mut waiting), [(1, 1), (1, 3)]);
    }
}
