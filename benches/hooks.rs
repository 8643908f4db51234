//! What hooks cost: the same forward pass without a probe, with one that wants nothing, and with one that copies every
//! point. `cargo bench --bench hooks`, on as many threads as LLORCH_BENCH_THREADS says, or on one.
//!
//! The model is the folder that LLORCH_BENCH_MODEL names, or nano. Each sample is the three of them, one after the other, so
//! that what slows the machine down slows them all; what is printed at the end is the medians of their ratios.

use std::path::{Path, PathBuf};
use std::time::Instant;

use llorch_cpud::Model;
use llorch_cpud::model::Rows;
use llorch_cpud::packed::Format;
use llorch_cpud::probe::{NoProbe, Probe, Recorder};
use llorch_trace::{PointSet, Tensor};

const ROUNDS: usize = 40;

fn main() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/models/nano");
    let dir = std::env::var_os("LLORCH_BENCH_MODEL").map_or(own, PathBuf::from);
    let threads = std::env::var("LLORCH_BENCH_THREADS").ok();
    let threads = threads.map_or(1, |t| t.parse().expect("a number of threads"));
    let model = Model::load(&dir, Format::F32, threads).expect("a model folder");
    println!("{}, threads: {threads}, rounds: {ROUNDS}", dir.display());
    for tokens in [2, 64] {
        let ids: Vec<u32> =
            (0..tokens).map(|i| i * 7919 % model.config().vocab_size as u32).collect();
        let (mut off, mut all) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        // The first round warms up.
        for round in 0..=ROUNDS {
            let mut copied = 0;
            let everything = seconds(&model, &ids, &mut recorder(PointSet::all(), &mut copied));
            bytes = copied;
            let mut nothing = || seconds(&model, &ids, &mut recorder(PointSet::default(), &mut 0));
            // In turns: the one that comes first finds the caches full of something else.
            let before = (round % 2 == 0).then(&mut nothing);
            let plain = seconds(&model, &ids, &mut NoProbe);
            let nothing = before.unwrap_or_else(nothing);
            if round > 0 {
                off.push(nothing / plain);
                all.push(everything / plain);
            }
        }
        let megabytes = bytes as f64 / 1e6;
        println!(
            "{tokens} tokens: off {:.3}×, recording everything ({megabytes:.0} MB) {:.2}× of a plain run",
            median(&mut off),
            median(&mut all)
        );
    }
}

/// Copies and counts bytes.
fn recorder(points: PointSet, bytes: &mut usize) -> impl Probe {
    Recorder::new(points, move |_, _, tensor: Tensor| {
        *bytes += tensor.len() * tensor.dtype().size();
        Ok(())
    })
}

fn seconds(model: &Model, ids: &[u32], probe: &mut impl Probe) -> f64 {
    let mut cache = model.new_cache();
    let began = Instant::now();
    model.forward(ids, &mut cache, Rows::Last, probe).expect("a forward pass");
    began.elapsed().as_secs_f64()
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
