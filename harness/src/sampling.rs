//! What a sampler draws from: temperature, top-k and top-p in float64, and the tokens that rounding
//! may put on either side of a cut. Pure arithmetic, for the judge and for `invariants`.

use llorch_trace::protocol::Sampling;

use crate::oracle::bounds::gamma;
use crate::oracle::softmax;

/// Temperature, then top-k, then top-p, in float64; the order and the treatment of ties are those of
/// Hugging Face's logits warpers: top-k keeps every token equal to the k-th, top-p drops the tail
/// whose cumulative probability, summed from the least likely, is at most 1 − p, and keeps one.
pub fn replay(logits: &[f64], sampling: &Sampling) -> Vec<f64> {
    if sampling.temperature <= 0.0 {
        return softmax(logits);
    }
    let mut scores: Vec<f64> = logits.iter().map(|l| l / sampling.temperature).collect();
    if let Some(kth) = kth_largest(&scores, sampling.top_k) {
        scores.iter_mut().filter(|s| **s < kth).for_each(|s| *s = f64::NEG_INFINITY);
    }
    if sampling.top_p < 1.0 {
        let probs = softmax(&scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&i, &j| probs[i].total_cmp(&probs[j]));
        let mut sum = 0.0;
        for &i in &order[..order.len().saturating_sub(1)] {
            sum += probs[i];
            if sum > 1.0 - sampling.top_p {
                break;
            }
            scores[i] = f64::NEG_INFINITY;
        }
    }
    softmax(&scores)
}

/// The k-th largest, where top-k drops anything.
fn kth_largest(scores: &[f64], k: usize) -> Option<f64> {
    if k == 0 || k >= scores.len() {
        return None;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    Some(sorted[k - 1])
}

/// How far an honest sampler may be from the float64 replay before it filters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slack {
    /// Unit roundoff of what it computes in.
    pub u: f64,
    /// How far its logits may be from those replayed; 0 where they are the same.
    pub delta: f64,
}

impl Slack {
    /// By how much two logits may come closer together or move apart: both move by Δ, and both are
    /// rounded once in the division by the temperature.
    pub fn reach(&self, logits: &[f64]) -> f64 {
        let largest = logits.iter().filter(|l| l.is_finite()).fold(0.0f64, |m, l| m.max(l.abs()));
        2.0 * (self.delta + self.u * largest)
    }
}

/// The tokens that an honest sampler may keep or drop, whatever the replay does with them.
///
/// Top-k: a logit within `reach` below the k-th may be rounded to equal it and be kept. Top-p: a
/// token is dropped while the ascending sum S of probabilities is at most 1 − p. The probabilities
/// are off by a factor of e^(±reach/τ), the two sums of n terms that S is made of by γₙ each (any
/// order of summation: the terms are positive), exp and the division by a few u; so where S is
/// within that of 1 − p, either may be right. Of equal logits (as rounding sees them) any may be the
/// first, so S runs from the token alone above all lower ones to all of its equals together.
pub fn uncertain(logits: &[f64], sampling: &Sampling, slack: Slack) -> Vec<bool> {
    let n = logits.len();
    let mut uncertain = vec![false; n];
    if sampling.temperature <= 0.0 {
        return uncertain;
    }
    let reach = slack.reach(logits);
    let mut kept: Vec<usize> = (0..n).collect();
    let mut doubtful_mass = 0.0;
    if let Some(kth) = kth_largest(logits, sampling.top_k) {
        for i in 0..n {
            // Equal logits stay equal when divided; a difference of the logits may part them.
            let same = logits[i] == kth && slack.delta == 0.0;
            uncertain[i] = !same && (logits[i] - kth).abs() <= reach;
        }
        // Those above the k-th keep their rank when all are rounded alike.
        if slack.delta == 0.0 {
            (0..n).filter(|&i| logits[i] > kth).for_each(|i| uncertain[i] = false);
        }
        kept.retain(|&i| logits[i] >= kth || uncertain[i]);
    }
    if sampling.top_p < 1.0 && !kept.is_empty() {
        let scores: Vec<f64> = kept.iter().map(|&i| logits[i] / sampling.temperature).collect();
        let probs = softmax(&scores);
        doubtful_mass +=
            kept.iter().zip(&probs).filter(|(i, _)| uncertain[**i]).map(|(_, p)| p).sum::<f64>();
        mark_near_top_p(
            &kept,
            logits,
            &probs,
            sampling,
            slack,
            reach,
            doubtful_mass,
            &mut uncertain,
        );
    }
    uncertain
}

fn mark_near_top_p(
    kept: &[usize],
    logits: &[f64],
    probs: &[f64],
    sampling: &Sampling,
    slack: Slack,
    reach: f64,
    doubtful_mass: f64,
    uncertain: &mut [bool],
) {
    let gamma = gamma(kept.len(), slack.u);
    let factor = (reach / sampling.temperature).exp() * (1.0 + 2.0 * gamma + 8.0 * slack.u);
    let target = 1.0 - sampling.top_p;
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by(|&a, &b| logits[kept[a]].total_cmp(&logits[kept[b]]));
    let logit = |at: usize| logits[kept[order[at]]];
    // Running sums over `order`: before[at] is what lies below the token at that place.
    let mut before = Vec::with_capacity(order.len() + 1);
    let mut sum = 0.0;
    before.push(0.0);
    for &a in &order {
        sum += probs[a];
        before.push(sum);
    }
    let (mut low, mut high) = (0, 0);
    for at in 0..order.len() {
        while logit(low) < logit(at) - reach {
            low += 1;
        }
        while high < order.len() && logit(high) <= logit(at) + reach {
            high += 1;
        }
        let least = (before[low] + probs[order[at]] - doubtful_mass) / factor;
        let most = (before[high] + doubtful_mass) * factor;
        // The likeliest stays whatever the sum says, if it is alone.
        let alone_on_top = low + 1 == order.len() && at == low;
        if least <= target && most > target && !alone_on_top {
            uncertain[kept[order[at]]] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: f64 = 1.0 / (1u64 << 24) as f64;

    fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 0 }
    }

    fn doubtful(logits: &[f64], s: Sampling, delta: f64) -> Vec<usize> {
        let marks = uncertain(logits, &s, Slack { u: U, delta });
        (0..marks.len()).filter(|&i| marks[i]).collect()
    }

    #[test]
    fn replay_filters_as_the_warpers_do() {
        let logits = [3.0f64.ln(), 2.0f64.ln(), 1.0f64.ln(), 1.0f64.ln()];
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12);
        let plain = replay(&logits, &sampling(1.0, 0, 1.0));
        assert!(close(&plain, &[3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 1.0 / 7.0]));
        assert!(close(&replay(&logits, &sampling(1.0, 2, 1.0)), &[0.6, 0.4, 0.0, 0.0]));
        // Equal to the third: both stay.
        assert!(close(&replay(&logits, &sampling(1.0, 3, 1.0)), &plain));
        assert!(close(&replay(&logits, &sampling(1.0, 0, 0.7)), &[0.6, 0.4, 0.0, 0.0]));
        assert!(close(&replay(&logits, &sampling(1.0, 0, 1e-9)), &[1.0, 0.0, 0.0, 0.0]));
        let cold = replay(&logits, &sampling(0.5, 0, 1.0));
        assert!(close(&cold, &[9.0 / 15.0, 4.0 / 15.0, 1.0 / 15.0, 1.0 / 15.0]));
    }

    #[test]
    fn near_the_kth_a_lower_logit_is_uncertain_and_an_equal_one_is_not() {
        let logits = [3.0, 2.0, 2.0 - 1e-8, 2.0 - 1e-5, 2.0 + 1e-8];
        // The k-th is index 1: what is above stays above, what is just below may equal it.
        assert_eq!(doubtful(&logits, sampling(0.7, 3, 1.0), 0.0), [2]);
        assert_eq!(doubtful(&[3.0, 2.0, 2.0, 1.0], sampling(0.7, 2, 1.0), 0.0), [0; 0]);
        // Where the logits themselves may differ, all that are near may change places.
        assert_eq!(doubtful(&logits, sampling(0.7, 3, 1.0), 1e-4), [1, 2, 3, 4]);
        assert_eq!(doubtful(&logits, sampling(0.7, 0, 1.0), 1e-4), [0; 0]);
        assert_eq!(doubtful(&logits, sampling(0.0, 3, 0.5), 1e-4), [0; 0]);
    }

    #[test]
    fn where_the_running_sum_meets_the_cut_either_may_be_right() {
        let logits = [0.5f64, 0.3, 0.15, 0.05].map(f64::ln);
        assert_eq!(doubtful(&logits, sampling(1.0, 0, 0.9), 0.0), [0; 0]);
        // 0.05 + 0.15 is 1 − 0.8, to the last bit or not.
        assert_eq!(doubtful(&logits, sampling(1.0, 0, 0.8), 0.0), [2]);
        assert_eq!(doubtful(&logits, sampling(1.0, 0, 0.8 - 1e-5), 0.0), [0; 0]);
        // Of equals at the cut any may be dropped first.
        let equals = [0.4f64, 0.2, 0.2, 0.2].map(f64::ln);
        assert_eq!(doubtful(&equals, sampling(1.0, 0, 0.7), 0.0), [1, 2, 3]);
        // The likeliest alone is never dropped; the one of two that is, nobody knows.
        assert_eq!(doubtful(&[1.0], sampling(1.0, 0, 1e-9), 0.0), [0; 0]);
        assert_eq!(doubtful(&[1.0, 1.0], sampling(1.0, 0, 0.4), 0.0), [0, 1]);
    }

    #[test]
    fn a_token_in_doubt_at_top_k_widens_the_doubt_at_top_p() {
        // Whether the last of the three is kept decides on which side of 1 − p the middle lies.
        let logits = [0.6f64.ln(), 0.2f64.ln(), 0.2f64.ln() - 1e-9];
        let s = sampling(1.0, 2, 0.7);
        assert_eq!(doubtful(&logits, s, 0.0), [1, 2]);
    }
}
