//! What this machine could do at best: bytes read and multiply-adds made a second, by so many threads.
//!
//! Both are measured by the simplest code that reaches them, in the same minutes as the engines: a machine that is
//! shared has other limits in each of them.

use std::hint::black_box;
use std::time::Instant;

use llorch_trace::{Dims, Dtype, Precision};
use memmap2::MmapMut;

use super::measure::Job;

/// More than caches hold, of every thread.
const BUFFER: usize = 256 << 20;
const READINGS: usize = 5;
/// Sums that don't wait for each other: more than two units wait for whose answer takes four cycles or five.
const CHAINS: usize = 12;
const REPEATS: usize = 8_000_000;

/// Memory that is read from beginning to end.
#[derive(Debug)]
pub struct Meter {
    memory: MmapMut,
}

impl Meter {
    /// None where there isn't so much memory.
    pub fn new() -> Option<Meter> {
        let mut memory = MmapMut::map_anon(BUFFER).ok()?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // an advice: without it reading is a bit slower
        memory.fill(1);
        Some(Meter { memory })
    }

    /// Bytes a second, the best of a few times: a limit is what is possible.
    pub fn read(&self, threads: usize) -> f64 {
        (0..READINGS).map(|_| self.read_once(threads)).fold(0.0, f64::max)
    }

    fn read_once(&self, threads: usize) -> f64 {
        let share = BUFFER / threads / 64 * 64;
        let began = Instant::now();
        std::thread::scope(|scope| {
            for part in self.memory.chunks_exact(share).take(threads) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        (share * threads) as f64 / began.elapsed().as_secs_f64()
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Operations a second, a multiply-add being two, of the instruction that makes most of them in what the job computes in;
/// none where there is no such loop here for this processor.
pub fn operations(job: Job) -> Option<f64> {
    let multiply_add = multiply_add(job.precision)?;
    let began = Instant::now();
    let done: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..job.threads).map(|_| scope.spawn(multiply_add)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    Some(done as f64 / began.elapsed().as_secs_f64())
}

/// What multiplies and adds in registers for a while, and says how many operations that were.
fn multiply_add(precision: Precision) -> Option<fn() -> usize> {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx512f");
        if precision == Precision::Float(Dtype::BF16) {
            let has = wide && is_x86_feature_detected!("avx512bf16");
            // SAFETY: the processor has just said that it has both.
            return has.then_some(|| unsafe { x86::in_bf16() });
        }
        if precision == Precision::Int8 {
            let has = wide && is_x86_feature_detected!("avx512vnni");
            // SAFETY: the processor has just said that it has both.
            return has.then_some(|| unsafe { x86::in_int8() });
        }
        if precision != Precision::Float(Dtype::F32) {
            return None;
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has just said that it has AVX-512F.
            return Some(|| unsafe { x86::with_avx512() });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has just said that it has AVX2 and FMA.
            return Some(|| unsafe { x86::with_avx2() });
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! By hand: what the compiler makes of a plain loop over so many sums is anybody's guess.

    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
        _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::{CHAINS, REPEATS};

    /// A function that adds products to as many sums as hide the instruction's latency, and says how many operations
    /// these were: so many products at a time, each multiplied and added.
    macro_rules! in_chains {
        ($name:ident, $features:literal, $products:literal,
         $factor:ident = $value:expr, $sum:ident = $start:expr => $next:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name() -> usize {
                let $factor = $value;
                let mut sums = [$start; CHAINS];
                for _ in 0..REPEATS {
                    for place in &mut sums {
                        let $sum = *place;
                        *place = $next;
                    }
                }
                black_box(sums);
                REPEATS * CHAINS * $products * 2
            }
        };
    }

    in_chains!(with_avx512, "avx512f", 16,
        factor = _mm512_set1_ps(black_box(0.5)),
        sum = factor => _mm512_fmadd_ps(sum, factor, factor));
    in_chains!(with_avx2, "avx2,fma", 8,
        factor = _mm256_set1_ps(black_box(0.5)),
        sum = factor => _mm256_fmadd_ps(sum, factor, factor));
    in_chains!(in_bf16, "avx512f,avx512bf16", 32,
        factor = ones_in_bf16(black_box(0x3f80_3f80)),
        sum = _mm512_set1_ps(0.5) => _mm512_dpbf16_ps(sum, factor, factor));
    in_chains!(in_int8, "avx512f,avx512vnni", 64,
        factor = _mm512_set1_epi32(black_box(0x0101_0101)),
        sum = factor => _mm512_dpbusd_epi32(sum, factor, factor));

    #[target_feature(enable = "avx512f")]
    fn ones_in_bf16(pair: i32) -> __m512bh {
        // SAFETY: both are 64 bytes in which every pattern of bits is a value.
        unsafe { std::mem::transmute(_mm512_set1_epi32(pair)) }
    }
}

/// Weights of less than this may stay in caches, and memory is no limit.
const IN_CACHES: f64 = 64e6;

/// Tokens a second that memory allows when one of each of so many sequences is decoded at a time, after `seen` others;
/// none where it is no limit.
pub fn decode(
    dims: &Dims,
    job: Job,
    seen: usize,
    batch: usize,
    bytes_a_second: f64,
) -> Option<f64> {
    let weights = (dims.n_layer * block_weights(dims) + dims.vocab_size * dims.n_embd) as f64;
    let weights = weights * job.precision.size() as f64;
    // Keys and values are in f32 or narrower, and belong to what has to be read.
    let cache = (2 * dims.n_layer * dims.n_embd * seen * 4.min(job.precision.size())) as f64;
    let batch = batch as f64;
    (weights > IN_CACHES).then(|| batch * bytes_a_second / (weights + batch * cache))
}

/// Tokens a second that multiply-adds allow when they are decoded after `seen` others, each with the head.
pub fn products(dims: &Dims, seen: usize, operations_a_second: f64) -> f64 {
    let weights = dims.n_layer * block_weights(dims) + dims.vocab_size * dims.n_embd;
    let attention = 2 * dims.n_layer * dims.n_embd * seen;
    operations_a_second / (2 * (weights + attention)) as f64
}

/// Tokens a second that multiply-adds allow in a prompt of so many: the head is applied to the last one alone.
pub fn prefill(dims: &Dims, prompt: usize, operations_a_second: f64) -> f64 {
    let products = prompt * dims.n_layer * block_weights(dims);
    // Scores and contexts, of the causal half.
    let attention = dims.n_layer * dims.n_embd * prompt * (prompt + 1);
    let head = dims.vocab_size * dims.n_embd;
    operations_a_second * prompt as f64 / (2 * (products + attention + head)) as f64
}

/// Of a block's four matrices.
fn block_weights(dims: &Dims) -> usize {
    dims.n_embd * (3 * dims.n_embd + dims.n_embd + 2 * dims.n_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPT2: Dims = Dims {
        n_layer: 12,
        n_head: 12,
        n_embd: 768,
        n_inner: 3072,
        n_positions: 1024,
        vocab_size: 50257,
    };

    #[test]
    fn the_limits_of_gpt2_are_those_of_its_size() {
        let job = Job { precision: Dtype::F32.into(), threads: 2 };
        // 494 MB of weights a token.
        assert!((decode(&GPT2, job, 0, 1, 49.4e9).unwrap() - 100.0).abs() < 0.2);
        assert_eq!(decode(&Dims { vocab_size: 100, n_layer: 1, ..GPT2 }, job, 0, 1, 49.4e9), None);
        let batch = decode(&GPT2, job, 0, 8, 49.4e9).unwrap();
        assert!((batch - 800.0).abs() < 2.0, "weights are read once for all: {batch}");
        // 2 · 124 M operations a token, and attention.
        let rate = products(&GPT2, 0, 248e9);
        assert!((990.0..1010.0).contains(&rate), "{rate}");
        // 2 · 85 M operations a token in the blocks, and attention.
        let rate = prefill(&GPT2, 512, 225e9);
        assert!((1200.0..1300.0).contains(&rate), "{rate}");
    }

    #[test]
    fn every_byte_is_read_and_products_are_counted() {
        assert_eq!(sum(&[1; 512]), 64 * 0x0101_0101_0101_0101);
        for precision in [Dtype::F32.into(), Dtype::BF16.into(), Precision::Int8] {
            if let Some(multiply_add) = multiply_add(precision) {
                assert!(multiply_add() >= REPEATS * CHAINS * 8 * 2);
            }
        }
        assert!(multiply_add(Dtype::F64.into()).is_none());
    }
}
