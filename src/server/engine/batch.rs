//! What a step feeds.

/// Tokens of prompts in a step while others are being continued: what a step may last longer for their sake.
const BESIDE: usize = 64;
/// The same while nobody is.
const ALONE: usize = 256;

/// How many tokens of its prompt each sequence may feed in this step, by what is left of it (0 for those that are being
/// continued): the room is shared evenly, and what one doesn't need goes to the others. `turn` says who comes first where it
/// doesn't divide.
pub fn shares(left: &[usize], turn: usize) -> Vec<usize> {
    let is_continued = left.contains(&0);
    let mut room = if is_continued { BESIDE } else { ALONE };
    let mut given = vec![0; left.len()];
    let mut wanting: Vec<usize> = (0..left.len()).filter(|i| left[*i] > 0).collect();
    if !wanting.is_empty() {
        let n = wanting.len();
        wanting.rotate_left(turn % n);
    }
    while room > 0 && !wanting.is_empty() {
        let each = (room / wanting.len()).max(1);
        for &i in &wanting {
            let more = each.min(left[i] - given[i]).min(room);
            given[i] += more;
            room -= more;
        }
        wanting.retain(|i| given[*i] < left[*i]);
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_prompt_leaves_room_for_a_short_one() {
        assert_eq!(shares(&[1000, 10], 0), [246, 10]);
        assert_eq!(shares(&[1000, 10, 0], 0), [54, 10, 0]);
        assert_eq!(shares(&[0, 0], 3), [0, 0]);
        assert_eq!(shares(&[], 3), [0; 0]);
    }

    proptest! {
        #[test]
        fn the_room_is_used_and_nobody_waits_for_ever(
            left in prop::collection::vec(0usize..2000, 1..80),
            turn in 0usize..100,
        ) {
            let given = shares(&left, turn);
            let room = if left.contains(&0) { BESIDE } else { ALONE };
            prop_assert_eq!(given.iter().sum::<usize>(), room.min(left.iter().sum()));
            prop_assert!(given.iter().zip(&left).all(|(given, left)| given <= left));
            // Whoever wants something gets some of it within as many turns as there are others.
            let wanting = left.iter().filter(|left| **left > 0).count();
            for (i, _) in left.iter().enumerate().filter(|(_, left)| **left > 0) {
                prop_assert!((0..wanting).any(|t| shares(&left, turn + t)[i] > 0));
            }
        }
    }
}
