//! Tasks that wait for a slot: clients in turn, each client's requests in turn, a request's sequences in their order.

use std::collections::VecDeque;

use super::sequence::Task;

#[derive(Debug, Default)]
pub struct Waiting {
    clients: Turns<Turns<VecDeque<Task>>>,
}

impl Waiting {
    pub fn push(&mut self, task: Task) {
        let requests = self.clients.of(task.client);
        requests.of(task.request).push_back(task);
    }

    /// The next one; its client's turn comes again after everybody else's, its request's after its client's others.
    pub fn pop(&mut self) -> Option<Task> {
        self.clients.next(|requests| requests.next(VecDeque::pop_front))
    }

    /// The one that was popped last is the next one again.
    pub fn put_back(&mut self, task: Task) {
        let requests = self.clients.first(task.client);
        requests.first(task.request).push_front(task);
    }

    /// Takes out those for which `gone` holds.
    pub fn remove(&mut self, gone: impl Fn(&Task) -> bool) -> Vec<Task> {
        let mut removed = Vec::new();
        self.clients.retain(|requests| {
            requests.retain(|queue| {
                for task in std::mem::take(queue) {
                    if gone(&task) { removed.push(task) } else { queue.push_back(task) }
                }
                !queue.is_empty()
            });
            !requests.is_empty()
        });
        removed
    }

    pub fn len(&self) -> usize {
        let clients = self.clients.0.iter();
        clients.flat_map(|(_, requests)| &requests.0).map(|(_, queue)| queue.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

/// Parties in the order of their turns, with what each waits for; none waits for nothing.
#[derive(Debug)]
struct Turns<T>(VecDeque<(u64, T)>);

impl<T: Default + IsEmpty> Turns<T> {
    /// What a party waits for; a new one comes last.
    fn of(&mut self, party: u64) -> &mut T {
        let at = self.0.iter().position(|(other, _)| *other == party);
        let at = at.unwrap_or_else(|| {
            self.0.push_back((party, T::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// The same, and its turn comes next.
    fn first(&mut self, party: u64) -> &mut T {
        let at = self.0.iter().position(|(other, _)| *other == party);
        let it = at.and_then(|at| self.0.remove(at)).unwrap_or((party, T::default()));
        self.0.push_front(it);
        &mut self.0[0].1
    }

    /// Takes one thing from whose turn it is.
    fn next<U>(&mut self, take: impl FnOnce(&mut T) -> Option<U>) -> Option<U> {
        let (party, mut waits) = self.0.pop_front()?;
        let taken = take(&mut waits);
        if !waits.is_empty() {
            self.0.push_back((party, waits));
        }
        taken
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        self.0.retain_mut(|(_, waits)| keep(waits));
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns(VecDeque::new())
    }
}

trait IsEmpty {
    fn is_empty(&self) -> bool;
}

impl<T> IsEmpty for VecDeque<T> {
    fn is_empty(&self) -> bool {
        VecDeque::is_empty(self)
    }
}

impl<T> IsEmpty for Turns<T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    fn requests_of_one_client_take_turns_too() {
        let mut waiting = Waiting::default();
        for (client, request, n) in
            [(1, 10, 1), (1, 10, 2), (1, 10, 3), (2, 20, 1), (1, 11, 4), (2, 20, 2)]
        {
            waiting.push(Task { request, ..task(client, n) });
        }
        let popped: Vec<Task> = (0..3).filter_map(|_| waiting.pop()).collect();
        let found = popped.iter().map(|t| (t.request, t.max_new_tokens)).collect::<Vec<_>>();
        assert_eq!(found, [(10, 1), (20, 1), (11, 4)]);
        popped.into_iter().rev().for_each(|task| waiting.put_back(task));
        assert_eq!(waiting.len(), 6);
        let found = order(&mut waiting);
        assert_eq!(found, [(1, 1), (2, 1), (1, 4), (2, 2), (1, 2), (1, 3)]);
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
