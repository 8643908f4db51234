//! What the daemon counts, for Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::engine::{Outcome, Sequence};

/// Upper ends of what is counted together.
const SECONDS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const TOKEN_SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0];
const BATCH: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    path: String,
    status: u16,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests for completions or checkpoints that were taken on.
    pub accepted: Counter,
    ended: Family<Ended, Counter>,
    refused: Family<Refused, Counter>,
    answered: Family<Answered, Counter>,
    pub connections: Gauge,
    pub running: Gauge,
    pub waiting: Gauge,
    batch_sequences: Histogram,
    step_tokens: Counter,
    steps: Counter,
    pub prompt_tokens: Counter,
    pub reused_tokens: Counter,
    generated_tokens: Counter,
    first_token: Histogram,
    per_token: Histogram,
    cache_bytes: Gauge,
    ready: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub fn new() -> Metrics {
        let of = |ends: &[f64]| Histogram::new(ends.iter().copied());
        let mut metrics = Metrics {
            registry: Registry::with_prefix("llorch"),
            accepted: Counter::default(),
            ended: Family::default(),
            refused: Family::default(),
            answered: Family::default(),
            connections: Gauge::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            batch_sequences: of(&BATCH),
            step_tokens: Counter::default(),
            steps: Counter::default(),
            prompt_tokens: Counter::default(),
            reused_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            first_token: of(&SECONDS),
            per_token: of(&TOKEN_SECONDS),
            cache_bytes: Gauge::default(),
            ready: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let Metrics {
            registry,
            accepted,
            ended,
            refused,
            answered,
            connections,
            running,
            waiting,
            batch_sequences,
            step_tokens,
            steps,
            prompt_tokens,
            reused_tokens,
            generated_tokens,
            first_token,
            per_token,
            cache_bytes,
            ready,
        } = self;
        let r = registry;
        // The encoder puts the dot behind each text, and `_total` behind each counter.
        r.register("completions_accepted", "Requests taken on", accepted.clone());
        r.register("completions_ended", "Requests that ended, by outcome", ended.clone());
        r.register("refused", "Requests that were not taken on, by reason", refused.clone());
        r.register("http_requests", "Answers, by path and status", answered.clone());
        r.register("connections", "Open connections", connections.clone());
        r.register("running_sequences", "Sequences being computed", running.clone());
        r.register("waiting_sequences", "Sequences waiting for a slot", waiting.clone());
        r.register("batch_sequences", "Sequences in a step", batch_sequences.clone());
        r.register("step_tokens", "Tokens fed, prompts and continuations", step_tokens.clone());
        r.register("steps", "Passes through the model", steps.clone());
        r.register("prompt_tokens", "Tokens of prompts", prompt_tokens.clone());
        let help = "Tokens of prompts that were not computed again";
        r.register("prompt_tokens_reused", help, reused_tokens.clone());
        r.register("generated_tokens", "Tokens generated", generated_tokens.clone());
        let help = "From the request to its first token";
        r.register("time_to_first_token_seconds", help, first_token.clone());
        let help = "Between tokens, the mean of each sequence";
        r.register("time_per_token_seconds", help, per_token.clone());
        let help = "Memory reserved for keys and values";
        r.register("kv_cache_bytes", help, cache_bytes.clone());
        r.register("ready", "1 while requests are answered", ready.clone());
        // So that those that are watched are there from the beginning.
        Outcome::ALL.iter().for_each(|outcome| {
            let _ = ended.get_or_create(&Ended { outcome: *outcome });
        });
    }

    /// All of it, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub fn is_ready(&self, cache_bytes: usize) {
        self.cache_bytes.set(cache_bytes as i64);
        self.ready.set(1.0);
    }

    pub fn ended(&self, outcome: Outcome) {
        self.ended.get_or_create(&Ended { outcome }).inc();
    }

    /// Requests that were accepted and have not ended.
    pub fn unfinished(&self) -> u64 {
        let ended = |outcome| self.ended.get_or_create(&Ended { outcome }).get();
        self.accepted.get() - Outcome::ALL.into_iter().map(ended).sum::<u64>()
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    pub fn answered(&self, path: &str, status: u16) {
        self.answered.get_or_create(&Answered { path: path.into(), status }).inc();
    }

    /// A step that fed each of its sequences so many tokens.
    pub fn step(&self, fed: &[usize]) {
        self.steps.inc();
        self.batch_sequences.observe(fed.len() as f64);
        self.step_tokens.inc_by(fed.iter().sum::<usize>() as u64);
    }

    pub fn sequence_ended(&self, sequence: &Sequence) {
        let generated = sequence.generated();
        self.generated_tokens.inc_by(generated as u64);
        let Some((first, last)) = sequence.tokens_came else { return };
        let seconds = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64();
        self.first_token.observe(seconds(sequence.task().arrived, first));
        if generated > 1 {
            self.per_token.observe(seconds(first, last) / (generated - 1) as f64);
        }
    }
}
