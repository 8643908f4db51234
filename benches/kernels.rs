//! The hot kernels at GPT-2 124M's sizes, beside what this machine can read and multiply:
//! `cargo bench --bench kernels`, on as many threads as LLORCH_BENCH_THREADS says, or on one.
//!
//! Weights are as large as the model's, so that a decode step's come from memory, as they do in use: with few
//! tokens the bytes a second compare with `limits::read`. With many, items a second are floating-point operations (a
//! multiply-add being two) and compare with `limits::multiply_add`; bf16 could do twice as many, int8 four times.

use std::fmt;
use std::hint::black_box;
use std::sync::OnceLock;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use llorch_cpud::Config;
use llorch_cpud::kv_cache::KvCache;
use llorch_cpud::ops::activation::{Activation, activate};
use llorch_cpud::ops::attention::{Span, attend};
use llorch_cpud::ops::layer_norm::layer_norm;
use llorch_cpud::ops::linear::{Then, linear};
use llorch_cpud::packed::{Format, Layout, Packed, Panel};
use llorch_cpud::sampler::SplitMix64;
use llorch_cpud::team::Team;
use ndarray::Array2;

const LAYERS: usize = 12;
const E: usize = 768;
const VOCABULARY: usize = 50257;
const HEADS: usize = 12;

fn main() {
    divan::main();
}

/// Tokens times the matrices of all blocks, in one format.
#[derive(Clone, Copy)]
struct Case(Format, usize);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = if self.1 == 1 { "token" } else { "tokens" };
        write!(f, "{:?}, {} {tokens}", self.0, self.1)
    }
}

const CASES: [Case; 18] = {
    let tokens = [1, 2, 4, 8, 64, 512];
    let formats = [Format::F32, Format::Bf16, Format::Int8];
    let mut cases = [Case(Format::F32, 0); 18];
    let mut i = 0;
    while i < 18 {
        cases[i] = Case(formats[i / 6], tokens[i % 6]);
        i += 1;
    }
    cases
};

#[divan::bench(args = CASES, max_time = 2)]
fn blocks(bencher: Bencher<'_, '_>, Case(format, tokens): Case) {
    let layers = weights(format);
    let count: usize = layers.iter().map(|w| w.inputs() * w.outputs()).sum();
    let words: usize = layers.iter().map(|w| format.size(w.inputs(), w.outputs())).sum();
    let (x, bias) = (random(tokens, 4 * E).into_raw_vec_and_offset().0, vec![0.5; 4 * E]);
    let mut out = vec![0.0; tokens * 4 * E];
    let bencher = bencher.counter(ItemsCount::new(2 * tokens * count));
    bencher.counter(BytesCount::new(4 * words)).bench_local(|| {
        for w in layers {
            let (x, out) = (&x[..tokens * w.inputs()], &mut out[..tokens * w.outputs()]);
            linear(team(), black_box(x), w, &bias[..w.outputs()], Then::Store, out);
        }
    });
}

/// The embeddings, as the head reads them for one row.
#[divan::bench(max_time = 2)]
fn head(bencher: Bencher<'_, '_>) {
    let (head, x) = (embeddings(), random(1, E).into_raw_vec_and_offset().0);
    let mut out = vec![0.0; VOCABULARY];
    bencher
        .counter(BytesCount::new(4 * E * VOCABULARY))
        .bench_local(|| linear(team(), black_box(&x), head, &[], Then::Store, &mut out));
}

/// A prompt of 512, and a token after 511.
#[divan::bench(args = [512, 1], max_time = 2)]
fn attention(bencher: Bencher<'_, '_>, tokens: usize) {
    let len = 512;
    let config = serde_json::json!({"model_type": "gpt2", "n_layer": 1, "n_head": HEADS,
        "n_embd": E, "vocab_size": VOCABULARY, "n_positions": 1024});
    let mut cache =
        KvCache::new(&Config::from_json(&config).expect("a configuration"), Format::F32);
    let qkv = random(len, 3 * E).into_raw_vec_and_offset().0;
    cache.layer_mut(0).store_rows(team(), 0, &qkv);
    let (q, mut out) = (&qkv[(len - tokens) * 3 * E..], vec![0.0; tokens * E]);
    let seen: usize = (len - tokens + 1..=len).sum();
    bencher.counter(ItemsCount::new(4 * E * seen)).bench_local(|| {
        let spans = [Span { rows: 0..tokens, cache: cache.layer(0), len }];
        attend(team(), black_box(q), &spans, 0.125, &mut out);
    });
}

#[divan::bench(max_time = 1)]
fn gelu(bencher: Bencher<'_, '_>) {
    let mut x = random(512, 4 * E).into_raw_vec_and_offset().0;
    bencher
        .counter(ItemsCount::new(x.len()))
        .bench_local(|| activate(team(), black_box(&mut x), Activation::GeluTanh));
}

#[divan::bench(max_time = 1)]
fn norm(bencher: Bencher<'_, '_>) {
    let (x, gain) = (random(512, E).into_raw_vec_and_offset().0, vec![0.5; E]);
    let mut out = vec![0.0; 512 * E];
    bencher
        .counter(ItemsCount::new(x.len()))
        .bench_local(|| layer_norm(team(), black_box(&x), &gain, &gain, 1e-5, &mut out));
}

mod limits {
    use super::*;

    /// All of 154 MB once, as fast as a plain loop can.
    #[divan::bench(max_time = 2)]
    fn read(bencher: Bencher<'_, '_>) {
        let panels = VOCABULARY / 64;
        let mut found = vec![0u32; panels];
        bencher.counter(BytesCount::new(4 * E * 64 * panels)).bench_local(|| {
            llorch_cpud::ops::parallel::for_each_chunk(
                team(),
                &mut found,
                1,
                usize::MAX,
                |p, out| {
                    out[0] = touch(embeddings(), p);
                },
            );
        });
    }

    /// 192 tokens by four panels that stay in the second cache: what the f32 kernel reaches without memory.
    #[divan::bench(max_time = 1)]
    fn multiply_add(bencher: Bencher<'_, '_>) {
        let weight =
            Packed::from_matrix(random(E, 256).view(), Layout::InputsByOutputs, Format::F32);
        let (x, mut out) = (random(192, E).into_raw_vec_and_offset().0, vec![0.0; 192 * 256]);
        bencher
            .counter(ItemsCount::new(2 * 192 * E * 256))
            .bench_local(|| linear(team(), black_box(&x), &weight, &[], Then::Store, &mut out));
    }

    fn touch(matrix: &Packed, p: usize) -> u32 {
        let Panel::F32(rows) = matrix.panel(p) else { return 0 };
        let mut lanes = [0u32; 64];
        for row in rows {
            for (lane, value) in lanes.iter_mut().zip(row) {
                *lane ^= value.to_bits();
            }
        }
        lanes.iter().fold(0, |a, b| a ^ b)
    }
}

fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    TEAM.get_or_init(|| {
        let threads = std::env::var("LLORCH_BENCH_THREADS").ok();
        let threads = threads.map_or(1, |t| t.parse().expect("a number of threads"));
        Team::new(threads).expect("threads start")
    })
}

/// The matrices of all blocks.
fn weights(format: Format) -> &'static [Packed] {
    static WEIGHTS: [OnceLock<Vec<Packed>>; 3] = [const { OnceLock::new() }; 3];
    WEIGHTS[format as usize].get_or_init(|| {
        let shapes = [(E, 3 * E), (E, E), (E, 4 * E), (4 * E, E)];
        let packed = |(inputs, outputs)| {
            Packed::from_matrix(random(inputs, outputs).view(), Layout::InputsByOutputs, format)
        };
        (0..LAYERS).flat_map(|_| shapes.map(packed)).collect()
    })
}

fn embeddings() -> &'static Packed {
    static EMBEDDINGS: OnceLock<Packed> = OnceLock::new();
    EMBEDDINGS.get_or_init(|| {
        let matrix = random(VOCABULARY, E);
        Packed::from_matrix(matrix.view(), Layout::OutputsByInputs, Format::F32)
    })
}

fn random(rows: usize, columns: usize) -> Array2<f32> {
    let mut rng = SplitMix64::new(rows as u64 * 31 + columns as u64);
    Array2::from_shape_simple_fn((rows, columns), || (rng.next_unit() * 0.2 - 0.1) as f32)
}
