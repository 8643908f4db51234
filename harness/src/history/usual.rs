//! What is usual: the median of earlier figures, and how far they lie from it.
//!
//! The median and the median absolute deviation (MAD), not mean and standard deviation, so that a few
//! bad nights don't make themselves usual. 1.4826 · MAD estimates the standard deviation of normal
//! figures (Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", JASA 88, 1993).

/// How many earlier runs are looked at.
pub const RUNS: usize = 14;

/// Fewer say nothing about what is usual: with four figures, one odd one in two moves the MAD.
pub const LEAST: usize = 5;

/// How many standard deviations off is unusual. A run has some thousand figures; of normal ones six in
/// ten million are further off than this, so that a false alarm is expected less than once in a year of
/// nights.
const OFF: f64 = 5.0;

/// 1 / Φ⁻¹(3/4).
const CONSISTENT: f64 = 1.4826;

/// What is usual of one figure.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Usual {
    pub median: f64,
    pub mad: f64,
    /// Of how many runs.
    pub runs: usize,
}

/// `None` where there are too few figures.
pub fn usual(figures: &[f64]) -> Option<Usual> {
    if figures.len() < LEAST {
        return None;
    }
    let centre = median(figures);
    let off: Vec<f64> = figures.iter().map(|x| (x - centre).abs()).collect();
    Some(Usual { median: centre, mad: median(&off), runs: figures.len() })
}

/// The middle figure, or the mean of the two middle ones; 0 of none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

impl Usual {
    /// What the MAD makes of the standard deviation.
    pub fn deviation(&self) -> f64 {
        CONSISTENT * self.mad
    }

    /// Whether a figure is beyond the usual spread, which is taken to be at least `least` of the median:
    /// programs that give the same bits every time have a MAD of 0.
    pub fn is_beyond(&self, figure: f64, least: f64) -> bool {
        let spread = self.deviation().max(least * self.median.abs());
        (figure - self.median).abs() > OFF * spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_the_middle_figures() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        // 1, 1, 2, 2, 4, 6, 9: median 2, deviations 1 1 0 0 2 4 7 with median 1.
        let of = usual(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]).unwrap();
        assert_eq!((of.median, of.mad, of.runs), (2.0, 1.0, 7));
    }

    #[test]
    fn a_few_figures_say_nothing() {
        assert_eq!(usual(&[1.0; LEAST - 1]), None);
        assert!(usual(&[1.0; LEAST]).is_some());
    }

    #[test]
    fn what_is_beyond_is_five_deviations_off_and_one_bad_night_changes_nothing() {
        let mut figures = vec![10.0, 11.0, 9.0, 10.5, 9.5, 10.0, 10.2];
        let of = usual(&figures).unwrap();
        assert!(!of.is_beyond(13.0, 0.0) && of.is_beyond(15.0, 0.0) && of.is_beyond(5.0, 0.0));
        figures.push(1e6);
        assert!(usual(&figures).unwrap().is_beyond(20.0, 0.0));
    }

    #[test]
    fn equal_figures_have_the_least_spread() {
        let of = usual(&[2.0; 14]).unwrap();
        assert_eq!(of.mad, 0.0);
        assert!(!of.is_beyond(2.4, 0.05) && of.is_beyond(2.6, 0.05));
        // Always exact, and no longer.
        assert!(usual(&[0.0; 14]).unwrap().is_beyond(1e-9, 0.05));
    }
}
