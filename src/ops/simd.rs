//! Run-time choice of instruction set, without a second implementation.
//!
//! A kernel is written once, in plain Rust over slices and small arrays; `dispatched!` compiles
//! that body for AVX-512, for AVX2 with FMA, and for the build's own target, and calls the best that
//! the CPU has. Every multiply-add is `f32::mul_add`, which is rounded once whatever executes it,
//! and no kernel lets the width of a register decide the order of a sum: the three agree bit for bit.
//! (Where the CPU has no FMA at all, `mul_add` is a function call: right, and slow.)

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are compiled for, from the least to the most able.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Portable = 1,
    Avx2 = 2,
    Avx512 = 3,
}

/// Names the level in the environment: `LLORCH_SIMD=portable|avx2|avx512`, never above what the CPU has.
pub const ENVIRONMENT: &str = "LLORCH_SIMD";

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in use: the CPU's best, unless `LLORCH_SIMD` asks for less.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => {
            let asked = match std::env::var(ENVIRONMENT).as_deref() {
                Ok("portable") => Level::Portable,
                Ok("avx2") => Level::Avx2,
                _ => Level::Avx512,
            };
            force(asked)
        }
    }
}

/// What this CPU can execute.
pub fn best() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Uses `asked`, or the best below it that the CPU has, from now on; says which. Results do not
/// change, so this may be called at any time.
pub fn force(asked: Level) -> Level {
    let level = asked.min(best());
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

/// Defines a function whose body is compiled once per [`Level`].
macro_rules! dispatched {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::ops::simd::level() {
                    // SAFETY: `level` never exceeds what the CPU was found to have.
                    $crate::ops::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::simd::Level::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use dispatched;

/// Rows that a kernel takes at once: 6 · 4 sums and 4 weights fit into the 32 registers of AVX-512, 6 · 2 and 2 into the
/// 16 of AVX2.
pub const ROWS: usize = 6;

/// An expression in which `$R` is a constant: the number of rows, one to [`ROWS`]. The compiler must know it to keep
/// their sums in registers.
macro_rules! with_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        $crate::ops::simd::with_rows!($rows, $R => $body, 1, 2, 3, 4, 5)
    };
    ($rows:expr, $R:ident => $body:expr, $($few:literal),+) => {
        match $rows {
            $($few => {
                const $R: usize = $few;
                $body
            })+
            _ => {
                const $R: usize = $crate::ops::simd::ROWS;
                $body
            }
        }
    };
}
pub(crate) use with_rows;

/// Runs `f` once per level that this CPU has and asserts that all results are equal.
#[cfg(test)]
pub fn same_at_every_level<T: PartialEq + std::fmt::Debug>(f: impl Fn() -> T) -> T {
    let before = level();
    let results: Vec<(Level, T)> = [Level::Avx512, Level::Avx2, Level::Portable]
        .into_iter()
        .filter(|&l| l <= best())
        .map(|l| (force(l), f()))
        .collect();
    force(before);
    let mut results = results.into_iter();
    let (best, first) = results.next().expect("every CPU is portable");
    for (level, result) in results {
        assert!(result == first, "{level:?} differs from {best:?}");
    }
    first
}
