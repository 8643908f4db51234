//! Independent pieces of work on all cores.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread does by itself what it would share, and only what nobody else needs the core for: work that
/// others are not to notice.
pub fn stay_behind() {
    ALONE.set(true);
    // On Linux that is of the thread alone. Where it isn't allowed, it is only less polite.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(19);
}

/// `f` of every item, in the order of the items, whoever computed it.
///
/// # Panics
/// Where `f` does.
pub fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    // A thread takes the next that nobody has.
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return done };
            done.push((i, f(item)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if ALONE.get() { 1 } else { cores.min(items.len()) };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        // The first ones take longest.
        let slow = |x: &u64| (0..1000 - x).fold(*x, |a, b| a.max(b.min(*x)));
        assert_eq!(map(&items, slow), items);
        assert_eq!(map(&[] as &[u64], slow), [] as [u64; 0]);
    }

    #[test]
    fn who_stays_behind_works_alone() {
        let here = || std::thread::current().id();
        let worker = std::thread::spawn(move || {
            stay_behind();
            map(&[(); 100], |()| here()).into_iter().all(|id| id == here())
        });
        assert!(worker.join().unwrap());
    }

    #[test]
    #[should_panic = "out of luck"]
    fn a_panic_reaches_the_caller() {
        map(&[1, 2, 3], |x| assert!(*x < 3, "out of luck"));
    }
}
