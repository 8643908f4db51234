//! The hot kernels at GPT-2 124M's sizes, against what the machine can read and multiply:
//! `cargo bench --bench kernels [-- THREADS]`.
//!
//! Weights are as large as the model's, so that a decode step's come from memory, as they do in use.
//! Times are processor time over all threads: on a shared machine, waiting one's turn is not the
//! kernel's fault. So "1 thread" figures compare with a core's limit, not with the machine's.

use std::hint::black_box;

use llorch_cpud::Config;
use llorch_cpud::kv_cache::KvCache;
use llorch_cpud::ops::activation::{Activation, activate};
use llorch_cpud::ops::attention::attend;
use llorch_cpud::ops::layer_norm::layer_norm;
use llorch_cpud::ops::linear::{Store, linear};
use llorch_cpud::packed::{Format, Layout, Packed, Panel};
use llorch_cpud::sampler::SplitMix64;
use llorch_cpud::team::Team;
use ndarray::Array2;

const LAYERS: usize = 12;
const E: usize = 768;
const VOCABULARY: usize = 50257;
const HEADS: usize = 12;

fn main() {
    let threads = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(1);
    let team = Team::new(threads).expect("threads start");
    let bias = vec![0.5; 4 * E];
    let shapes = [(E, 3 * E), (E, E), (E, 4 * E), (4 * E, E)];
    let packed = |(inputs, outputs)| {
        Packed::from_matrix(random(inputs, outputs).view(), Layout::InputsByOutputs, Format::F32)
    };
    let layers: Vec<[Packed; 4]> = (0..LAYERS).map(|_| shapes.map(packed)).collect();
    let weights: usize = layers.iter().flatten().map(|w| w.inputs() * w.outputs()).sum();
    let head = packed((E, VOCABULARY));
    let mut out = vec![0.0; 512 * 4 * E.max(VOCABULARY / 512)];

    let bytes = (E * VOCABULARY * 4) as f64;
    per_second("read 154 MB", "GB/s", bytes / 1e9, 8, || {
        black_box((0..VOCABULARY / 64).map(|p| read(&head, p)).max());
    });
    for tokens in [1, 2, 4, 8, 16, 64, 512] {
        let x = random(tokens, 4 * E).into_raw_vec_and_offset().0;
        let flop = (2 * tokens * weights) as f64;
        let (unit, amount) =
            if tokens < 4 { ("GB/s", weights as f64 * 4e-9) } else { ("GFLOP/s", flop * 1e-9) };
        per_second(&format!("linear, {tokens} tokens"), unit, amount, 4, || {
            for w in layers.iter().flatten() {
                let (x, out) = (&x[..tokens * w.inputs()], &mut out[..tokens * w.outputs()]);
                linear(&team, black_box(x), w, &bias[..w.outputs()], Store, out);
            }
        });
    }
    for tokens in [1, 4] {
        let x = random(tokens, E).into_raw_vec_and_offset().0;
        per_second(&format!("head, {tokens} tokens"), "GB/s", bytes / 1e9, 8, || {
            linear(&team, black_box(&x), &head, &[], Store, &mut out[..tokens * VOCABULARY]);
        });
    }
    for (past, tokens, repeat) in [(0, 512, 20), (511, 1, 2000)] {
        let len = past + tokens;
        let config = serde_json::json!({"model_type": "gpt2", "n_layer": 1, "n_head": HEADS,
            "n_embd": E, "vocab_size": VOCABULARY, "n_positions": 1024});
        let config = Config::from_json(&config).expect("a configuration");
        let mut cache = KvCache::new(&config);
        let qkv = random(len, 3 * E).into_raw_vec_and_offset().0;
        cache.layer_mut(0).store_rows(0, &qkv);
        let q = &qkv[past * 3 * E..];
        per_second(&format!("attention, {tokens} of {len} tokens"), "calls/s", 1.0, repeat, || {
            attend(&team, black_box(q), cache.layer(0), len, 0.125, &mut out[..tokens * E]);
        });
    }
    let mut x = random(512, 4 * E).into_raw_vec_and_offset().0;
    per_second("gelu, 512 tokens", "calls/s", 1.0, 20, || {
        activate(&team, black_box(&mut x), Activation::GeluTanh);
    });
    let x = &x[..512 * E];
    per_second("layer_norm, 512 tokens", "calls/s", 1.0, 20, || {
        layer_norm(&team, black_box(x), &bias[..E], &bias[..E], 1e-5, &mut out[..512 * E]);
    });
}

/// Prints the best of three rounds of `repeat` calls, in `unit` per second of processor time.
fn per_second(name: &str, unit: &str, amount: f64, repeat: usize, mut f: impl FnMut()) {
    f();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let started = processor_time();
        (0..repeat).for_each(|_| f());
        best = best.min((processor_time() - started) / repeat as f64);
    }
    println!("{name:28} {:10.2} {unit:8} ({:.3} ms)", amount / best, best * 1e3);
}

/// Seconds of processor time of this process; wall time where that can't be had.
fn processor_time() -> f64 {
    // Each thread's time on a processor, in nanoseconds, is the first number of its schedstat.
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let times = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    let seconds = times.sum::<f64>() * 1e-9;
    if seconds > 0.0 {
        return seconds;
    }
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}

/// Touches everything once, as fast as a plain loop can.
fn read(matrix: &Packed, p: usize) -> u32 {
    let Panel::F32(rows) = matrix.panel(p) else { return 0 };
    let values = rows.as_flattened();
    let mut lanes = [0u32; 64];
    for chunk in values.as_chunks::<64>().0 {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane ^= value.to_bits();
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

fn random(rows: usize, columns: usize) -> Array2<f32> {
    let mut rng = SplitMix64::new(rows as u64 * 31 + columns as u64);
    Array2::from_shape_simple_fn((rows, columns), || (rng.next_unit() * 0.2 - 0.1) as f32)
}
