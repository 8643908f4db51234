//! When to use a second thread.

use rayon::prelude::*;

/// Below this many multiply-adds, waking another thread costs more than it saves (some 5 µs).
const WORTH_A_THREAD: usize = 100_000;

/// Calls `f(i, chunk)` for each `chunk`-long piece of `out`; on all threads of the current pool if
/// `work`, the multiply-adds of the whole, is worth it. A piece is always computed by one thread, so
/// the result does not depend on how many there are.
pub fn for_each_chunk<T: Send>(
    out: &mut [T],
    chunk: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    if chunk == 0 {
        return;
    }
    if work < WORTH_A_THREAD || rayon::current_num_threads() == 1 {
        out.chunks_mut(chunk).enumerate().for_each(|(i, piece)| f(i, piece));
    } else {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, piece)| f(i, piece));
    }
}

/// Whether `work` multiply-adds are worth more than one thread here.
pub fn worth_it(work: usize) -> bool {
    work >= WORTH_A_THREAD && rayon::current_num_threads() > 1
}
