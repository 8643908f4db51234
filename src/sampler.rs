//! Choosing the next token.
//!
//! As in Hugging Face's `generate`: first the repetition penalty on the raw logits, then the warpers
//! in the order temperature, top-k, top-p; then one draw. Temperature 0 is greedy. OpenAI's presence and
//! frequency penalties and its bias come after the repetition penalty.

use crate::error::{Error, Result};
use crate::ops::softmax::softmax_f64;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the highest (of equals, the lowest id).
    pub temperature: f64,
    /// Keep the k highest logits, and those equal to the k-th; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens that holds this much probability; 1 keeps all.
    pub top_p: f64,
    /// Logits of tokens that occurred, in the prompt too, are divided by this where positive and
    /// multiplied where negative (Keskar et al. 2019); 1 leaves them.
    pub repetition_penalty: f64,
    /// Taken off the logits of tokens that were chosen before, whatever the prompt held; 0 leaves them.
    pub presence_penalty: f64,
    /// The same, as often as they were chosen.
    pub frequency_penalty: f64,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Names the option that is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::input("use the sampling options", what));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse(format!("temperature is {}; expected 0 or more", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top_p is {}; expected above 0 and at most 1", self.top_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let found = self.repetition_penalty;
            return refuse(format!("repetition_penalty is {found}; expected above 0"));
        }
        let named = [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        match named.into_iter().find(|(_, penalty)| !penalty.is_finite()) {
            Some((name, found)) => refuse(format!("{name} is {found}; expected a finite number")),
            None => Ok(()),
        }
    }
}

/// The options, and the state of the random numbers, of one generation.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    /// Added to the logits of some tokens.
    bias: Vec<(u32, f32)>,
    rng: SplitMix64,
}

impl Sampler {
    pub fn new(options: Sampling) -> Result<Sampler> {
        options.check()?;
        Ok(Sampler { options, bias: Vec::new(), rng: SplitMix64::new(options.seed) })
    }

    pub fn with_bias(self, bias: Vec<(u32, f32)>) -> Sampler {
        Sampler { bias, ..self }
    }

    /// Changes `logits`, `[V]`, by what came before: `history` is all tokens so far, of which the first `prompt` were given.
    /// The repetition penalty is for all of them; presence and frequency penalties are for those that were chosen.
    pub fn adjust(&self, logits: &mut [f32], history: &[u32], prompt: usize) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.options;
        if repetition_penalty != 1.0 {
            let penalty = repetition_penalty as f32;
            for (id, _) in counts(history) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                }
            }
        }
        if (presence_penalty, frequency_penalty) != (0.0, 0.0) {
            for (id, times) in counts(&history[prompt.min(history.len())..]) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -= (presence_penalty + frequency_penalty * times as f64) as f32;
                }
            }
        }
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    /// Whether nothing is left to chance.
    pub fn is_greedy(&self) -> bool {
        self.options.temperature == 0.0
    }

    /// Whether [`Sampler::adjust`] may change anything.
    pub fn adjusts(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.options;
        let neutral = (repetition_penalty, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0);
        !neutral || !self.bias.is_empty()
    }

    /// The distribution that the next token is drawn from, `[V]`: softmax of the warped logits; at
    /// temperature 0, plain softmax. Computed in f64 and rounded once.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        let Sampling { temperature, top_k, top_p, .. } = self.options;
        let probabilities = if temperature == 0.0 {
            softmax_f64(logits, 1.0)
        } else {
            let mut kept = logits.to_vec();
            keep_top_k(&mut kept, top_k);
            keep_top_p(&mut kept, temperature, top_p);
            softmax_f64(&kept, temperature)
        };
        probabilities.into_iter().map(|p| p as f32).collect()
    }

    /// One draw from `probabilities`: the first id at which their running sum, in the order of the
    /// ids, passes a uniform random share of the total.
    pub fn draw(&mut self, probabilities: &[f32]) -> Result<u32> {
        let sums = running_sums(probabilities)?;
        Ok(pick(&sums, self.rng.next_unit()))
    }

    /// `n` draws, one after another: the ids that `n` calls of [`Sampler::draw`] would give.
    pub fn draw_many(&mut self, probabilities: &[f32], n: usize) -> Result<Vec<u32>> {
        let sums = running_sums(probabilities)?;
        Ok((0..n).map(|_| pick(&sums, self.rng.next_unit())).collect())
    }
}

/// Each token and how often it is there.
fn counts(ids: &[u32]) -> Vec<(u32, usize)> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
}

/// The running sums, in f64, of probabilities that have something to choose from.
fn running_sums(probabilities: &[f32]) -> Result<Vec<f64>> {
    let mut below = 0.0;
    let sums: Vec<f64> = probabilities
        .iter()
        .map(|&p| {
            below += f64::from(p);
            below
        })
        .collect();
    // A NaN anywhere is a NaN in the last sum; so is nothing to choose from, a sum of 0.
    match below > 0.0 && below.is_finite() {
        true => Ok(sums),
        false => Err(no_choice(probabilities)),
    }
}

/// The first id whose running sum passes `share` of the total; `share` is in [0, 1).
fn pick(sums: &[f64], share: f64) -> u32 {
    let point = share * sums.last().copied().unwrap_or(0.0);
    // The product may round up to the total itself, which no sum passes: then the last id that has
    // a probability, where the total is reached first.
    let id = sums.partition_point(|&below| below <= point);
    let last = || sums.partition_point(|&below| below < point);
    if id < sums.len() { id as u32 } else { last() as u32 }
}

/// The id of the highest logit; of equals, the lowest id.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(no_choice(logits));
        }
        if best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((id as u32, logit));
        }
    }
    best.map(|(id, _)| id).ok_or_else(|| no_choice(logits))
}

fn no_choice(values: &[f32]) -> Error {
    let nan = values.iter().filter(|x| x.is_nan()).count();
    let what = format!(
        "{nan} of {} values are NaN; the weights or an injected tensor hold non-finite numbers",
        values.len()
    );
    Error::internal("choose a token", what)
}

fn keep_top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let kth = *kth;
    logits.iter_mut().filter(|x| **x < kth).for_each(|x| *x = f32::NEG_INFINITY);
}

/// Removes the least probable tokens that together have at most 1 − p; the most probable stays.
fn keep_top_p(logits: &mut [f32], temperature: f64, p: f64) {
    if p >= 1.0 {
        return;
    }
    let probabilities = softmax_f64(logits, temperature);
    let mut ascending: Vec<usize> = (0..logits.len()).collect();
    // Of equals, the higher id goes first.
    ascending.sort_unstable_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    ascending.pop();
    let mut removed = 0.0;
    for id in ascending {
        removed += probabilities[id];
        if removed > 1.0 - p {
            break;
        }
        logits[id] = f32::NEG_INFINITY;
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): a counter through a bijective mixer. Small, seeded by any
/// number, the same on every platform, and good for far more draws than a text has tokens.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64 { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_k: usize, top_p: f64, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed, ..Sampling::default() }).unwrap()
    }

    #[test]
    fn splitmix64_gives_its_published_numbers() {
        let mut rng = SplitMix64::new(1234567);
        let want =
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        for want in want {
            assert_eq!(rng.next_u64(), want);
        }
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.next_unit())));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_refuses_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]).unwrap(), 0);
        assert!(
            argmax(&[1.0, f32::NAN]).unwrap_err().to_string().contains("1 of 2 values are NaN")
        );
        assert!(argmax(&[]).is_err());
        assert!(sampler(1.0, 0, 1.0, 0).draw(&[0.5, f32::NAN]).is_err());
        assert!(sampler(1.0, 0, 1.0, 0).draw(&[0.0, 0.0]).is_err());
    }

    #[test]
    fn top_k_keeps_ties_with_the_kth() {
        let p = sampler(1.0, 2, 1.0, 0).probabilities(&[1.0, 0.0, 1.0, 2.0]);
        assert!(p[1] == 0.0 && p[0] == p[2] && p[3] > p[0]);
        assert!(sampler(1.0, 9, 1.0, 0).probabilities(&[1.0, 0.0]).iter().all(|&p| p > 0.0));
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let kept = |p: f64| {
            sampler(1.0, 0, p, 0).probabilities(&logits).iter().filter(|&&p| p > 0.0).count()
        };
        assert_eq!(
            [kept(0.4), kept(0.6), kept(0.9), kept(0.96), kept(1.0), kept(1e-9)],
            [1, 2, 3, 4, 4, 1]
        );
    }

    #[test]
    fn top_p_sees_the_distribution_at_its_temperature() {
        // at temperature 2 the first of [4, 0, 0] has 0.787, at 1 it has 0.965
        let count = |t: f64| {
            sampler(t, 0, 0.9, 0)
                .probabilities(&[4.0, 0.0, 0.0])
                .iter()
                .filter(|&&p| p > 0.0)
                .count()
        };
        assert_eq!((count(1.0), count(2.0)), (1, 3));
    }

    #[test]
    fn temperature_divides_the_logits() {
        let p = sampler(0.5, 0, 1.0, 0).probabilities(&[1.0, 0.0]);
        assert!((p[0] / p[1] - 2f32.exp()).abs() < 1e-5);
        let greedy = sampler(0.0, 1, 0.1, 0).probabilities(&[1.0, 0.0]);
        assert!((greedy[0] / greedy[1] - 1f32.exp()).abs() < 1e-5, "unfiltered at temperature 0");
    }

    #[test]
    fn the_penalty_lowers_what_occurred_once() {
        let sampler =
            Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }).unwrap();
        let mut logits = [4.0, -4.0, 4.0, 0.0];
        sampler.adjust(&mut logits, &[0, 1, 0, 99], 2);
        assert_eq!(logits, [2.0, -8.0, 4.0, 0.0]);
    }

    #[test]
    fn openais_penalties_are_for_what_was_chosen_and_bias_for_what_is_named() {
        let options =
            Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        let sampler = Sampler::new(options).unwrap().with_bias(vec![(3, 10.0), (99, 1.0)]);
        assert!(sampler.adjusts());
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        // 0 is in the prompt alone; 1 was chosen twice, 2 once.
        sampler.adjust(&mut logits, &[0, 0, 1, 2, 1], 2);
        assert_eq!(logits, [1.0, 0.0, 0.25, 11.0]);
        assert!(Sampler::new(Sampling { presence_penalty: f64::NAN, ..options }).is_err());
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let probabilities = [0.5, 0.0, 0.25, 0.25];
        let mut sampler = sampler(1.0, 0, 1.0, 42);
        let mut again = sampler.clone();
        let n = 100_000;
        let mut counts = [0u32; 4];
        for _ in 0..n {
            let id = sampler.draw(&probabilities).unwrap();
            assert_eq!(id, again.draw(&probabilities).unwrap());
            counts[id as usize] += 1;
        }
        assert_eq!(counts[1], 0, "what has no probability is never drawn");
        let terms = [0, 2, 3].map(|id| {
            let expected = f64::from(probabilities[id]) * f64::from(n);
            (f64::from(counts[id]) - expected).powi(2) / expected
        });
        let chi2: f64 = terms.iter().sum();
        assert!(chi2 < 27.63, "chi-square {chi2} of {counts:?}: p < 1e-6 at 2 degrees of freedom");
    }

    #[test]
    fn many_draws_are_single_draws_one_after_another() {
        let probabilities = [0.1, 0.0, 0.4, 0.2, 0.0];
        let mut one = sampler(1.0, 0, 1.0, 9);
        let mut many = one.clone();
        let singly: Vec<u32> = (0..500).map(|_| one.draw(&probabilities).unwrap()).collect();
        assert_eq!(many.draw_many(&probabilities, 500).unwrap(), singly);
        assert_eq!(many.draw(&probabilities).unwrap(), one.draw(&probabilities).unwrap());
        assert!(many.draw_many(&[0.5, f32::NAN], 1).is_err());
        // The largest share that there is never picks an id without probability.
        let sums = running_sums(&probabilities).unwrap();
        assert_eq!(
            (pick(&sums, 0.0), pick(&sums, 1.0 - 2f64.powi(-53)), pick(&sums, 1.0)),
            (0, 3, 3)
        );
    }

    #[test]
    fn options_out_of_range_are_named() {
        let bad = |change: fn(&mut Sampling)| {
            let mut options = Sampling::default();
            change(&mut options);
            Sampler::new(options).unwrap_err().to_string()
        };
        assert!(bad(|o| o.temperature = -1.0).contains("temperature is -1"));
        assert!(bad(|o| o.temperature = f64::NAN).contains("temperature"));
        assert!(bad(|o| o.top_p = 0.0).contains("top_p is 0"));
        assert!(bad(|o| o.top_p = 1.5).contains("top_p"));
        assert!(bad(|o| o.repetition_penalty = 0.0).contains("repetition_penalty"));
    }
}
