//! Where sequences are computed together, step by step.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::batch::shares;
use super::capture::Capture;
use super::sequence::{Failure, Sequence, Task};
use super::slots::Slots;
use super::ticket::Outcome;
use super::waiting::Waiting;
use crate::error::Error;
use crate::generate::{Finish, generate};
use crate::kv_cache::KvCache;
use crate::model::{self, Model};
use crate::probe::Recorder;
use crate::server::metrics::Metrics;
use crate::tokenizer::Tokenizer;

/// Tasks that are passed over in one step because what they need is just being computed.
const MOST_PASSED_OVER: usize = 256;

/// What is wanted of the engine.
#[derive(Debug)]
pub enum Order {
    /// A request's sequences.
    Complete(Vec<Task>),
    Capture(Capture),
}

/// The one owner of the model.
#[derive(Debug)]
pub struct Room {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    door: Door,
    computing: Computing,
    /// That of captures, made for the first one.
    capture_cache: Option<KvCache>,
    metrics: Arc<Metrics>,
}

/// Where orders come in.
#[derive(Debug)]
struct Door {
    orders: Receiver<Order>,
    /// Those that wait for their turn.
    captures: VecDeque<Capture>,
}

/// What is computed step by step.
#[derive(Debug)]
struct Computing {
    slots: Slots,
    waiting: Waiting,
    /// Steps so far: where room doesn't divide, sequences take turns.
    turn: usize,
}

impl Room {
    /// With so many sequences at once, at most.
    pub fn new(
        model: Model,
        tokenizer: Arc<Tokenizer>,
        max_batch: usize,
        orders: Receiver<Order>,
        metrics: Arc<Metrics>,
    ) -> Room {
        let slots = Slots::new((0..max_batch.max(1)).map(|_| model.new_cache()));
        let computing = Computing { slots, waiting: Waiting::default(), turn: 0 };
        let door = Door { orders, captures: VecDeque::new() };
        Room { model, tokenizer, door, computing, capture_cache: None, metrics }
    }

    /// Works until nobody can want anything any more.
    pub fn run(mut self) {
        loop {
            if self.is_idle() {
                // Nothing to compute: wait, and use no processor.
                match self.door.orders.recv() {
                    Ok(order) => self.door.accept(order, &mut self.computing.waiting),
                    Err(_) => return,
                }
            }
            self.door.receive(&mut self.computing.waiting);
            self.step();
            self.capture();
        }
    }

    fn is_idle(&self) -> bool {
        self.computing.is_idle() && self.door.captures.is_empty()
    }

    /// One step of every sequence that is being computed.
    pub fn step(&mut self) {
        self.computing.step(&self.model, &self.tokenizer, &self.metrics);
    }

    /// Runs the capture that has waited longest, whole; the sequences go on between its steps.
    fn capture(&mut self) {
        let Some(capture) = self.door.captures.pop_front() else { return };
        let Capture { ids, options, points, keep, deadline, reply, ticket } = capture;
        let over = || match () {
            _ if reply.is_closed() => Some(Outcome::Abandoned),
            _ if Instant::now() >= deadline => Some(Outcome::TimedOut),
            _ => None,
        };
        let Room { model, tokenizer, door, computing, capture_cache, metrics } = self;
        let cache = capture_cache.get_or_insert_with(|| model.new_cache());
        let mut recorder = Recorder::new(points, keep);
        let done = match over() {
            Some(_) => None,
            None => Some(generate(model, cache, &ids, &options, &mut recorder, |_| {
                door.receive(&mut computing.waiting);
                computing.step(model, tokenizer, metrics);
                if over().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })),
        };
        // Before the answer: with it goes what the recorder wrote to.
        drop(recorder);
        let (outcome, answer) = match done {
            Some(Ok(done)) if done.finish != Finish::Cancelled => (Outcome::Completed, Ok(done)),
            // Answered with what is wrong with it: more than may be captured.
            Some(Err(error @ Error::Input { .. })) => {
                (Outcome::Completed, Err(Failure::Engine(error.to_string())))
            }
            Some(Err(error)) => (Outcome::Failed, Err(Failure::Engine(error.to_string()))),
            _ => (over().unwrap_or(Outcome::TimedOut), Err(Failure::Late)),
        };
        ticket.part_ended(outcome);
        drop(ticket);
        let _ = reply.send(answer);
    }
}

impl Door {
    /// Takes what came since the last step.
    fn receive(&mut self, waiting: &mut Waiting) {
        while let Ok(order) = self.orders.try_recv() {
            self.accept(order, waiting);
        }
    }

    fn accept(&mut self, order: Order, waiting: &mut Waiting) {
        match order {
            Order::Complete(tasks) => tasks.into_iter().for_each(|task| waiting.push(task)),
            Order::Capture(capture) => self.captures.push_back(capture),
        }
    }
}

impl Computing {
    fn is_idle(&self) -> bool {
        self.slots.running() == 0 && self.waiting.is_empty()
    }

    fn step(&mut self, model: &Model, tokenizer: &Tokenizer, metrics: &Metrics) {
        self.leave(metrics);
        self.join(metrics);
        self.feed(model, tokenizer, metrics);
        self.leave(metrics);
        metrics.running.set(self.slots.running() as i64);
        metrics.waiting.set(self.waiting.len() as i64);
    }

    /// Whoever is done, gone or late makes room.
    fn leave(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        for (sequence, _) in self.slots.busy().filter(|(sequence, _)| !sequence.has_ended()) {
            if sequence.task().is_abandoned() {
                sequence.abandon();
            } else if sequence.task().is_late(now) {
                sequence.fail(Failure::Late);
            }
        }
        self.slots.free().iter().for_each(|sequence| metrics.sequence_ended(sequence));
        let gone = |task: &Task| task.is_abandoned() || task.is_late(now);
        for mut task in self.waiting.remove(gone) {
            match task.is_abandoned() {
                true => task.give_back(Outcome::Abandoned),
                false => task.fail(Failure::Late),
            }
        }
    }

    fn join(&mut self, metrics: &Metrics) {
        // Answers to one prompt, say: the first computes it, the others take it over.
        let mut waits = Vec::new();
        while self.slots.has_room() && waits.len() < MOST_PASSED_OVER {
            let Some(task) = self.waiting.pop() else { break };
            if self.slots.is_being_made(&task) {
                waits.push(task);
                continue;
            }
            metrics.prompt_tokens.inc_by(task.ids.len() as u64);
            let reused = self.slots.start(task);
            metrics.reused_tokens.inc_by(reused as u64);
        }
        waits.into_iter().rev().for_each(|task| self.waiting.put_back(task));
    }

    fn feed(&mut self, model: &Model, tokenizer: &Tokenizer, metrics: &Metrics) {
        let busy: Vec<_> = self.slots.busy().collect();
        if busy.is_empty() {
            return;
        }
        self.turn += 1;
        let left: Vec<usize> = busy.iter().map(|(sequence, _)| sequence.prompt_left()).collect();
        let shares = shares(&left, self.turn);
        // Whose share of this step is nothing waits for the next one.
        let mut fed: Vec<Fed<'_>> = Vec::with_capacity(busy.len());
        let mut batch = Vec::with_capacity(busy.len());
        for (((sequence, cache), left), share) in busy.into_iter().zip(left).zip(shares) {
            if left > 0 && share == 0 {
                continue;
            }
            let (ids, rows) = sequence.next(share);
            let (count, ids) = (ids.len(), ids.to_vec());
            batch.push((ids, cache, rows));
            fed.push(Fed { sequence, count, rows, at: 0 });
        }
        let mut at = 0;
        for fed in &mut fed {
            fed.at = at;
            at += fed.rows();
        }
        metrics.step(&fed.iter().map(|fed| fed.count).collect::<Vec<_>>());
        let mut batch: Vec<_> = batch
            .iter_mut()
            .map(|(ids, cache, rows)| model::Sequence { ids, cache, rows: *rows })
            .collect();
        let logits = match model.forward_batch(&mut batch) {
            Ok(logits) => logits, // [R, V]
            Err(error) => {
                let failure = Failure::Engine(error.to_string());
                fed.iter_mut().for_each(|fed| fed.sequence.fail(failure.clone()));
                return;
            }
        };
        for Fed { sequence, count, at, .. } in &fed {
            let end = logits.nrows().min(at + count);
            let rows = logits.slice(ndarray::s![(*at).min(end)..end, ..]);
            sequence.tell_prompt(*count, rows, model, tokenizer);
        }
        model.share(&mut fed, |fed| {
            let last = (fed.rows() > 0).then(|| logits.row(fed.at + fed.rows() - 1));
            let last =
                last.as_ref().map(|row| row.as_slice().expect("rows are in standard layout"));
            fed.sequence.take(fed.count, last, tokenizer);
        });
    }
}

/// A sequence's part of a step.
struct Fed<'a> {
    sequence: &'a mut Sequence,
    /// Tokens.
    count: usize,
    rows: model::Rows,
    /// The first of its rows of logits.
    at: usize,
}

impl Fed<'_> {
    /// How many rows of logits it gets.
    fn rows(&self) -> usize {
        match self.rows {
            model::Rows::None => 0,
            model::Rows::Last => 1,
            model::Rows::All => self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::generate::Options;
    use crate::probe::NoProbe;
    use crate::sampler::Sampling;
    use crate::server::engine::sequence::{Event, FinishReason};
    use crate::server::engine::testing::{all, nano, task};

    fn room(max_batch: usize) -> Room {
        let (model, tokenizer) = nano();
        let (_, orders) = channel();
        Room::new(model, Arc::new(tokenizer), max_batch, orders, Arc::new(Metrics::new()))
    }

    /// What `generate` gives.
    fn alone(room: &Room, ids: &[u32], n: usize) -> Vec<u32> {
        let options =
            Options { max_new_tokens: n, sampling: Sampling::default(), ..Options::default() };
        let mut cache = room.model.new_cache();
        let on = |_: &crate::generate::Step<'_>| ControlFlow::Continue(());
        generate(&room.model, &mut cache, ids, &options, &mut NoProbe, on).unwrap().ids
    }

    fn put(room: &mut Room, task: Task) {
        room.door.accept(Order::Complete(vec![task]), &mut room.computing.waiting);
    }

    #[test]
    fn who_joins_late_and_who_has_neighbours_gets_what_generate_gives() {
        let mut room = room(3);
        let long: Vec<u32> = (0..230).map(|i| 200 + i * 37 % 5000).collect();
        let prompts: [&[u32]; 5] = [&[15496, 13], &long, &[1, 2, 3], &long[..90], &[15496, 13, 7]];
        let mut told = Vec::new();
        for (i, prompt) in prompts.iter().enumerate() {
            let (task, events) = task(i as u64, prompt, 12 + i);
            put(&mut room, task);
            told.push(events);
            // Two steps: the next one finds this one on its way.
            room.step();
            room.step();
        }
        while !room.is_idle() {
            room.step();
        }
        for (i, (prompt, told)) in prompts.iter().zip(told).enumerate() {
            let (ids, last) = all(told);
            assert_eq!(ids, alone(&room, prompt, 12 + i), "prompt {i}");
            assert!(matches!(last, Some(Event::Done { finish: FinishReason::Length, .. })));
        }
    }

    #[test]
    fn what_a_slot_holds_is_not_computed_again_and_changes_nothing() {
        let mut room = room(2);
        let long: Vec<u32> = (0..200).map(|i| 300 + i * 11 % 4000).collect();
        let ask = |room: &mut Room, ids: &[u32]| {
            let before = room.metrics.reused_tokens.get();
            let (task, told) = task(1, ids, 5);
            put(room, task);
            while !room.is_idle() {
                room.step();
            }
            (all(told).0, room.metrics.reused_tokens.get() - before)
        };
        let (first, reused) = ask(&mut room, &long);
        assert_eq!((&first, reused), (&alone(&room, &long, 5), 0));
        // All but the last token, whose logits are wanted.
        assert_eq!(ask(&mut room, &long), (first.clone(), 199));
        // The prompt with what was generated goes on where that ended: its last token was never fed.
        let longer = [&long[..], &first[..]].concat();
        assert_eq!(ask(&mut room, &longer), (alone(&room, &longer, 5), 204));
        assert_eq!(ask(&mut room, &long[..150]), (alone(&room, &long[..150], 5), 149));
        // Another prompt takes the slot that was not used yet, and what is held stays.
        assert_eq!(ask(&mut room, &[7, 8, 9]), (alone(&room, &[7, 8, 9], 5), 0));
        assert_eq!(ask(&mut room, &long[..150]).1, 149);
    }

    #[test]
    fn several_answers_to_one_prompt_compute_it_once() {
        let mut room = room(4);
        let long: Vec<u32> = (0..200).map(|i| 300 + i * 13 % 4000).collect();
        let told: Vec<_> = (0..6)
            .map(|_| {
                let (task, told) = task(1, &long, 5);
                put(&mut room, task);
                told
            })
            .collect();
        while !room.is_idle() {
            room.step();
        }
        assert_eq!(room.metrics.reused_tokens.get(), 5 * 199);
        let alone = alone(&room, &long, 5);
        told.into_iter().for_each(|told| assert_eq!(all(told).0, alone));
    }

    #[test]
    fn who_hangs_up_or_is_late_is_gone_with_the_next_step() {
        let mut room = room(2);
        let (one, gone) = task(1, &[1, 2, 3], 200);
        let (mut two, late) = task(2, &[1, 2, 3], 200);
        let (three, waits) = task(3, &[4, 5], 3);
        let (four, gone_waiting) = task(4, &[4, 5], 3);
        // Far enough for the steps before it, on a machine that is busy with something else.
        let over = Instant::now() + std::time::Duration::from_secs(3);
        two.deadline = over;
        for task in [one, two, three, four] {
            put(&mut room, task);
        }
        room.step();
        assert_eq!((room.computing.slots.running(), room.computing.waiting.len()), (2, 2));
        drop((gone, gone_waiting));
        room.step();
        assert_eq!((room.computing.slots.running(), room.computing.waiting.len()), (2, 0));
        let (ids, _) = all(waits);
        assert_eq!(ids.len(), 1, "it took the free place in the same step");
        std::thread::sleep(over.saturating_duration_since(Instant::now()));
        room.step();
        assert!(matches!(all(late).1, Some(Event::Failed(Failure::Late))));
        while !room.is_idle() {
            room.step();
        }
    }

    #[test]
    fn a_long_prompt_does_not_keep_a_short_one_waiting() {
        let mut room = room(4);
        let long: Vec<u32> = (0..250).map(|i| i * 7 % 5000).collect();
        let (running, mut heard) = task(1, &[1, 2], 200);
        put(&mut room, running);
        room.step();
        let (task_long, long_told) = task(2, &long, 2);
        let (task_short, short_told) = task(3, &[5, 6, 7], 3);
        put(&mut room, task_long);
        put(&mut room, task_short);
        while heard.try_recv().is_ok() {}
        for _ in 0..3 {
            room.step();
            let mut came = 0;
            while heard.try_recv().is_ok() {
                came += 1;
            }
            assert_eq!(came, 1, "a token every step, whatever else is there");
        }
        assert_eq!(all(short_told).0.len(), 3);
        assert_eq!(all(long_told).0.len(), 0, "250 tokens are more than three steps' share");
    }
}
