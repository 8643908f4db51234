//! How an operation shares its work among the threads of a [`Team`].
//!
//! Work is cut into tiles of the output, each computed by one thread from beginning to end, so that a
//! result does not depend on how many threads there are. Threads take the next tile when they are done
//! with one: where one is held up, the others take over.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::team::Team;

/// Below this many multiply-adds, one thread is done before another has begun (some 2 µs).
const WORTH_A_THREAD: usize = 50_000;

/// A part of a matrix in rows that one thread may write.
#[derive(Debug)]
pub struct Tile<'a, T = f32> {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// Of the whole matrix.
    matrix: *mut T,
    stride: usize,
    life: PhantomData<&'a mut [T]>,
}

impl<T> Tile<'_, T> {
    /// What of row `row` of the matrix lies in the tile.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row));
        // SAFETY: `for_each_tile` saw that its rows and columns lie inside of the matrix, and made no other
        // tile that has any of them; the matrix is borrowed for longer than this tile lives.
        unsafe {
            let first = self.matrix.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(first, self.columns.len())
        }
    }
}

/// A pointer that threads may share: they write apart.
struct Shared<T>(*mut T);

// SAFETY: only tiles are written through it, and no two of them overlap.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Calls `f` for each tile of `size` (rows, columns) of the matrix `out`, whose rows are `stride` long; on
/// all threads if `work`, the multiply-adds of the whole, is worth it. Tiles come column by column, so that
/// what belongs to a column is used again while it is in the cache.
pub fn for_each_tile<T: Send>(
    team: &Team,
    out: &mut [T],
    stride: usize,
    size: (usize, usize),
    work: usize,
    f: impl Fn(Tile<'_, T>) + Sync,
) {
    if out.is_empty() {
        return;
    }
    assert!(stride > 0 && out.len().is_multiple_of(stride) && size.0 > 0 && size.1 > 0);
    let rows = out.len() / stride;
    let (down, across) = (rows.div_ceil(size.0), stride.div_ceil(size.1));
    let matrix = Shared(out.as_mut_ptr());
    let next = AtomicUsize::new(0);
    let task = || {
        // The whole of it, or the closure would hold the bare pointer, which can't be shared.
        let Shared(matrix) = &matrix;
        loop {
            // Each number is handed out once: no two tiles overlap.
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= down * across {
                return;
            }
            let (row, column) = (i % down * size.0, i / down * size.1);
            f(Tile {
                rows: row..rows.min(row + size.0),
                columns: column..stride.min(column + size.1),
                matrix: *matrix,
                stride,
                life: PhantomData,
            });
        }
    };
    if work < WORTH_A_THREAD || down * across == 1 { task() } else { team.run(&task) }
}

/// Calls `f(i, chunk)` for each `chunk`-long piece of `out`; threads and `work` as above.
pub fn for_each_chunk<T: Send>(
    team: &Team,
    out: &mut [T],
    chunk: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let whole = out.len().max(1);
    for_each_tile(team, out, whole, (1, chunk.max(1)), work, |mut tile| {
        f(tile.columns.start / chunk, tile.row(0));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_one_tile() {
        let team = Team::new(3).unwrap();
        for (rows, stride, size) in
            [(1, 1, (1, 1)), (7, 130, (3, 64)), (5, 64, (9, 99)), (0, 4, (1, 1))]
        {
            for work in [0, usize::MAX] {
                let mut out = vec![0.0; rows * stride];
                for_each_tile(&team, &mut out, stride, size, work, |mut tile| {
                    for row in tile.rows.clone() {
                        let first = row * stride + tile.columns.start;
                        for (i, x) in tile.row(row).iter_mut().enumerate() {
                            *x += (first + i + 1) as f32;
                        }
                    }
                });
                assert!(out.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32));
            }
        }
    }

    #[test]
    fn chunks_come_with_their_numbers() {
        let team = Team::new(2).unwrap();
        let mut out = vec![0.0; 10];
        for_each_chunk(&team, &mut out, 4, usize::MAX, |i, chunk| chunk.fill(i as f32));
        assert_eq!(out, [0., 0., 0., 0., 1., 1., 1., 1., 2., 2.]);
        for_each_chunk(&team, &mut [0.0f32; 0], 4, 0, |_, _| unreachable!());
    }
}
