//! Threads that stay awake between the operations of a forward pass.
//!
//! A decode step of GPT-2 is some sixty short operations, each of which wants all threads for 20 to 300 µs.
//! Waking sleeping threads costs tens of microseconds, so those of a [`Team`] wait for the next
//! operation in a loop, and go to sleep only when none came for a while.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for work before it sleeps: longer than what lies between two operations, and
/// than between two tokens.
const AWAKE: Duration = Duration::from_micros(300);
/// Looks between two glances at the clock. Each hands the core's resources to its twin, if it has one.
const LOOKS: usize = 64;

type Task<'a> = dyn Fn() + Sync + 'a;

/// A number of threads, the caller's included, that run one task at a time together.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Tasks of several callers come one after another.
    turn: Mutex<()>,
}

struct Shared {
    /// Raised by one with every task; odd numbers don't mean anything.
    tasks: AtomicUsize,
    /// The task of that number, until `busy` is 0.
    task: Mutex<Option<&'static Task<'static>>>,
    /// Workers that have not ended it yet.
    busy: AtomicUsize,
    asleep: AtomicUsize,
    ended: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    /// Inside a task there are no threads left to share a second one with.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish()
    }
}

impl Team {
    /// 0: as many threads as the machine has.
    ///
    /// # Errors
    /// The system's, where it can't start them.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let machine = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { machine() } else { threads };
        let shared = Arc::new(Shared {
            tasks: AtomicUsize::new(0),
            task: Mutex::new(None),
            busy: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Team { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for i in 1..threads {
            let shared = team.shared.clone();
            let name = format!("llorch-{i}");
            let worker = std::thread::Builder::new().name(name).spawn(move || work(&shared))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once on every thread, the caller's included, and returns when all have returned. A task
    /// shares its work out by itself. Inside a task, only the calling thread runs it.
    ///
    /// # Panics
    /// Where `task` does, on whichever thread.
    pub fn run(&self, task: &Task<'_>) {
        if self.workers.is_empty() || INSIDE.get() {
            return task();
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the workers call it only while `busy` counts them, and this function ends only when that is 0.
        let lasting: &'static Task<'static> = unsafe { std::mem::transmute(task) };
        let shared = &*self.shared;
        *lock(&shared.task) = Some(lasting);
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.tasks.fetch_add(1, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.workers.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        }
        let own = inside(task);
        let mut looks = 0usize;
        while shared.busy.load(Ordering::Acquire) > 0 {
            pause(&mut looks);
        }
        *lock(&shared.task) = None;
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.tasks.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker returns what it caught to the caller of its task: there is nothing left to tell.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = wait(shared, seen);
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let task = *lock(&shared.task);
        if let Some(task) = task
            && let Err(panic) = inside(task)
        {
            lock(&shared.panic).get_or_insert(panic);
        }
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

/// The number of the next task, once there is one.
fn wait(shared: &Shared, seen: usize) -> usize {
    let next = || Some(shared.tasks.load(Ordering::SeqCst)).filter(|&tasks| tasks != seen);
    let began = Instant::now();
    let mut looks = 0usize;
    loop {
        if let Some(next) = next() {
            return next;
        }
        pause(&mut looks);
        if looks.is_multiple_of(LOOKS) && began.elapsed() > AWAKE {
            break;
        }
    }
    // Counted as asleep before it looks once more, so that a task that comes now sees it, or is seen.
    shared.asleep.fetch_add(1, Ordering::SeqCst);
    let next = loop {
        match next() {
            Some(next) => break next,
            None => std::thread::park(),
        }
    };
    shared.asleep.fetch_sub(1, Ordering::SeqCst);
    next
}

/// One look; now and then the core is offered to others: where there are fewer cores than threads, what is
/// waited for may need this one.
fn pause(looks: &mut usize) {
    *looks += 1;
    if looks.is_multiple_of(LOOKS * 32) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

fn inside(task: &Task<'_>) -> std::thread::Result<()> {
    let before = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(task));
    INSIDE.set(before);
    result
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_task_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for round in 0..2000 {
                // Some tasks come at once, some when all have fallen asleep.
                if round % 500 == 499 {
                    std::thread::sleep(AWAKE * 3);
                }
                let calls = AtomicUsize::new(0);
                team.run(&|| {
                    calls.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(calls.into_inner(), threads);
            }
        }
    }

    #[test]
    fn several_callers_take_turns_and_a_task_in_a_task_runs_alone() {
        let team = Team::new(3).unwrap();
        let (inner, outer) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.run(&|| {
                            outer.fetch_add(1, Ordering::Relaxed);
                            team.run(&|| {
                                inner.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!((outer.into_inner(), inner.into_inner()), (2400, 2400));
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        for unlucky in 0..3 {
            let turn = AtomicUsize::new(0);
            let task = || {
                if turn.fetch_add(1, Ordering::Relaxed) == unlucky {
                    panic!("out of luck");
                }
            };
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(&task))).unwrap_err();
            assert_eq!(caught.downcast_ref::<&str>(), Some(&"out of luck"));
            team.run(&|| ());
        }
    }
}
