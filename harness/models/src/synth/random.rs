//! Random numbers that are the same on every platform and in any order.
//!
//! Value `i` of a stream is a function of the stream's key and `i` alone (SplitMix64 used as a
//! counter-based generator). Everything here is integer arithmetic and IEEE `+ − × ÷ √`, which
//! round alike everywhere; no function of a mathematics library is called.

/// The golden ratio's increment of SplitMix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a, to turn a label into a number.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// One stream of random values; streams of different labels or seeds are independent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    key: u64,
}

impl Stream {
    pub fn new(seed: u64, label: &str) -> Stream {
        Stream { key: mix(mix(seed.wrapping_add(STEP)) ^ fnv1a(label)) }
    }

    /// 64 random bits.
    #[inline]
    pub fn word(&self, index: usize) -> u64 {
        mix(self.key.wrapping_add((index as u64 + 1).wrapping_mul(STEP)))
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&self, index: usize) -> f64 {
        (self.word(index) >> 40) as f64 / f64::from(1 << 24)
    }

    /// +1 or −1.
    pub fn sign(&self, index: usize) -> f64 {
        if self.uniform(index) < 0.5 { -1.0 } else { 1.0 }
    }
}

/// Values of mean 0 and variance 1 with heavy tails: a bell (the sum of three 16-bit uniforms) times
/// a random scale u^(−1/4). One value in a thousand is beyond 4, none beyond 8.6.
#[derive(Debug)]
pub(super) struct HeavyTails {
    scale: [f32; 256],
}

impl HeavyTails {
    pub fn new() -> HeavyTails {
        let raw: [f64; 256] =
            std::array::from_fn(|k| (1.0 / ((k + 1) as f64 / 256.0).sqrt()).sqrt());
        let power = raw.iter().fold(0.0, |sum, r| sum + r * r);
        let rms = (power / 256.0).sqrt();
        HeavyTails { scale: raw.map(|r| (r / rms) as f32) }
    }

    #[inline]
    pub fn value(&self, stream: Stream, index: usize) -> f32 {
        let word = stream.word(index);
        let sum = (word & 0xffff) + ((word >> 16) & 0xffff) + ((word >> 32) & 0xffff);
        // 2·sum − 3·65535 is at most 196,605 in size: exact as f32.
        let bell = (2 * sum as i64 - 3 * 65535) as f32 * (1.0 / 65536.0);
        bell * self.scale[(word >> 56) as usize]
    }
}

/// cos(nθ) and sin(nθ) for n = 0, 1, …, where tan(θ/2) = `half_tangent`.
pub(super) fn rotations(half_tangent: f64) -> impl Iterator<Item = (f64, f64)> {
    let square = half_tangent * half_tangent;
    let (cos, sin) = ((1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square));
    let mut now = (1.0, 0.0);
    std::iter::from_fn(move || {
        let current = now;
        now = (current.0 * cos - current.1 * sin, current.0 * sin + current.1 * cos);
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_its_published_first_outputs() {
        // Seed 1234567, from the reference implementation's test vectors.
        let stream = Stream { key: 1_234_567 };
        let words: Vec<u64> = (0..3).map(|i| stream.word(i)).collect();
        assert_eq!(
            words,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn the_values_have_variance_one_and_heavy_tails() {
        let (tails, stream, n) = (HeavyTails::new(), Stream::new(0, "test"), 200_000);
        let values: Vec<f64> = (0..n).map(|i| f64::from(tails.value(stream, i))).collect();
        let moment = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
        // A normal distribution has 3.
        assert!(moment(4) > 3.5, "kurtosis {}", moment(4));
    }

    #[test]
    fn rotations_stay_on_the_circle() {
        let (cos, sin) = rotations(0.3).nth(1023).unwrap();
        let angle = 2.0 * 0.3_f64.atan() * 1023.0;
        assert!((cos - angle.cos()).abs() < 1e-11 && (sin - angle.sin()).abs() < 1e-11);
    }

    #[test]
    fn streams_differ_by_label_and_by_seed() {
        let first = |seed, label| Stream::new(seed, label).word(0);
        assert_ne!(first(0, "a"), first(0, "b"));
        assert_ne!(first(0, "a"), first(1, "a"));
    }
}
