//! What comes later changes nothing before it: the same number of tokens, the later ones others.

use super::finding::Finding;
use super::rows::{self, Row};
use super::rule::Rule;
use super::runs::Subject;
use crate::live::Captured;
use llorch_trace::Stage;

/// Where the tokens begin to differ: in the middle, and at the last one alone. A mask that is off by
/// one shows in the row before the cut, one that is missing in all of them.
pub fn cuts(tokens: usize) -> Vec<usize> {
    let mut cuts = vec![tokens / 2, tokens.saturating_sub(1)];
    cuts.retain(|&cut| cut > 0);
    cuts.dedup();
    cuts
}

/// The ids with others from `cut` on.
pub fn changed(ids: &[u32], cut: usize, vocab: usize) -> Vec<u32> {
    let vocab = vocab.max(2) as u64;
    let other = |(i, &id): (usize, &u32)| {
        // From 1 to V − 1 further on: never itself.
        let by = 1 + (u64::from(id) * 31 + i as u64 * 7919) % (vocab - 1);
        if i < cut { id } else { ((u64::from(id) + by) % vocab) as u32 }
    };
    ids.iter().enumerate().map(other).collect()
}

/// Every row before the cut, at every point.
pub fn check(
    subject: &Subject,
    rule: &Rule,
    case: &str,
    cut: usize,
    (one, other): (&Captured, &Captured),
    finding: &mut Finding,
) {
    // What belongs to the last token alone depends on all of them.
    let is_last = |s: Stage| matches!(s, Stage::LogitsLast | Stage::Argmax | Stage::NextProbs);
    for &point in subject.points.iter().filter(|p| !is_last(p.stage)) {
        let Some(a) = subject.tensor(one, 0, point, finding) else { continue };
        let Some(b) = subject.tensor(other, 0, point, finding) else { continue };
        for row in 0..cut {
            let at = Row { row, visible: row + 1 };
            rows::compare(finding, rule, (case, 0, point), (a, at), (b, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_later_token_is_another_and_no_earlier_one() {
        let ids: Vec<u32> = (0..50).map(|i| i * 37 % 64).collect();
        for cut in cuts(ids.len()) {
            let new = changed(&ids, cut, 64);
            assert_eq!(new[..cut], ids[..cut]);
            assert!((cut..50).all(|i| new[i] != ids[i] && new[i] < 64));
        }
        assert_eq!((cuts(1), cuts(2), cuts(3), cuts(9)), (vec![], vec![1], vec![1, 2], vec![4, 8]));
    }
}
