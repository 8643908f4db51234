//! Which heads, tokens and channels are wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::signatures::Site;

/// Of what is beyond, this share in one head or token makes it that one's.
const MOSTLY: f64 = 0.95;
/// What one element can weigh: an error without bounds is not all that counts.
const HEAVY: f64 = 1e3;

/// Where the elements beyond are, of a cause or of one place of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Zoom {
    /// Elements beyond, and all.
    pub beyond: usize,
    pub total: usize,
    heads: BTreeMap<usize, f64>,
    tokens: BTreeMap<usize, f64>,
    channels: BTreeSet<usize>,
    /// The number of heads, of tokens and of channels of the tensor; 0 where it has none.
    sizes: [usize; 3],
}

impl Zoom {
    pub fn of(site: &Site<'_>) -> Zoom {
        let width = site.given.shape.last().copied().unwrap_or(1).max(1);
        let last = site.given.values.len().saturating_sub(1);
        let (heads, tokens) = site.place(last);
        let size = |of: Option<usize>| of.map_or(0, |last| last + 1);
        let channels =
            if site.point.stage.is_causal() || site.given.shape.len() < 2 { 0 } else { width };
        let mut zoom = Zoom {
            total: site.counts.iter().filter(|c| **c).count(),
            sizes: [size(heads), size(tokens), channels],
            ..Zoom::default()
        };
        for i in site.beyond() {
            zoom.beyond += 1;
            let weight = site.excess[i].min(HEAVY);
            let (head, token) = site.place(i);
            if let Some(head) = head {
                *zoom.heads.entry(head).or_default() += weight;
            }
            if let Some(token) = token {
                *zoom.tokens.entry(token).or_default() += weight;
            }
            zoom.channels.insert(i % width);
        }
        zoom
    }

    /// The heads of another place of the same cause.
    pub fn join_heads(&mut self, other: &Zoom) {
        for (head, weight) in &other.heads {
            *self.heads.entry(*head).or_default() += weight;
        }
    }

    /// The head that is wrong, if it is one of several.
    pub fn head(&self) -> Option<usize> {
        (self.sizes[0] > 1).then(|| mostly(&self.heads)).flatten()
    }

    /// The token of the step that is wrong, if it is one alone.
    pub fn token(&self) -> Option<usize> {
        mostly(&self.tokens)
    }

    /// The channel that is wrong, if it is one of several.
    pub fn channel(&self) -> Option<usize> {
        let one = (self.channels.len() == 1 && self.sizes[2] > 1).then(|| self.channels.first());
        one.flatten().copied()
    }

    /// `34 of 896 elements: all heads, token 3 of 7, 17 of 128 channels`.
    pub fn describe(&self) -> String {
        let part = |one: Option<usize>, wrong: usize, of: usize, name: &str| match (one, of) {
            (_, 0) => None,
            (Some(one), of) if of > 1 => Some(format!("{name} {one} of {of}")),
            (_, 1) => None,
            _ if wrong == of => Some(format!("all {of} {name}s")),
            _ => Some(format!("{wrong} of {of} {name}s")),
        };
        let parts: Vec<String> = [
            part(self.head(), self.heads.len(), self.sizes[0], "head"),
            part(self.token(), self.tokens.len(), self.sizes[1], "token"),
            part(self.channel(), self.channels.len(), self.sizes[2], "channel"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let at = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
        format!("{} of {} elements{at}", self.beyond, self.total)
    }
}

fn mostly(weights: &BTreeMap<usize, f64>) -> Option<usize> {
    let all: f64 = weights.values().sum();
    weights.iter().find(|(_, weight)| **weight >= MOSTLY * all).map(|(key, _)| *key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_named_where_it_is_most_of_it() {
        let of = |pairs: &[(usize, f64)]| mostly(&pairs.iter().copied().collect());
        assert_eq!(of(&[(7, 100.0), (2, 1.0)]), Some(7));
        assert_eq!(of(&[(7, 60.0), (2, 50.0)]), None);
        assert_eq!(of(&[]), None);
    }
}
