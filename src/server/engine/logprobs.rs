//! How likely tokens were: log softmax of the model's own logits, before penalties, temperature and filters.

use crate::tokenizer::Tokenizer;

#[derive(Debug, Clone)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f64,
    /// The most likely ones, the likeliest first, of equals the lower id; and the token itself, if it isn't one of them.
    pub top: Vec<(String, f64)>,
}

/// Of `id` among `logits`, `[V]`, and the `n` likeliest.
pub fn logprob(tokenizer: &Tokenizer, logits: &[f32], id: u32, n: usize) -> TokenLogprob {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln();
    let of = |id: u32| match logits.get(id as usize) {
        Some(logit) => f64::from(*logit) - log_sum,
        None => f64::NEG_INFINITY,
    };
    let mut top = likeliest(logits, n);
    if !top.contains(&id) {
        top.push(id);
    }
    let top = top.into_iter().map(|id| (tokenizer.piece(id), of(id)));
    TokenLogprob { token: tokenizer.piece(id), logprob: of(id), top: top.collect() }
}

/// The ids of the `n` highest logits, in one pass: `n` is small.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for (id, &logit) in logits.iter().enumerate() {
        let is_lower = |other: &u32| logits[*other as usize].total_cmp(&logit).is_ge();
        if best.len() < n || !best.last().is_none_or(is_lower) {
            let at = best.partition_point(is_lower);
            best.insert(at, id as u32);
            best.truncate(n);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_sort(
            logits in prop::collection::vec((-4i8..4).prop_map(f32::from), 1..60),
            n in 0usize..8,
        ) {
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(n);
            prop_assert_eq!(likeliest(&logits, n), order);
        }
    }
}
