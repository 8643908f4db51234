//! Pearson's chi-square test of counts against expected counts.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Tokens are put together into bins of at least this many expected draws: below it the statistic
/// no longer follows the distribution (Cochran 1954, "Some methods for strengthening the common χ²
/// tests").
pub const LEAST_EXPECTED: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    pub statistic: f64,
    pub bins: usize,
    /// The probability that honest draws are off by as much or more.
    pub p: f64,
}

/// Bins of the coarse test.
const COARSE: f64 = 64.0;

/// In as many bins as the draws allow, likes with likes: a bin holds tokens of about one probability.
/// None where everything is in one bin, and there is nothing to test. `expected` adds up to as much
/// as `counts` do.
pub fn fit(counts: &[u64], expected: &[f64]) -> Option<Fit> {
    let mut order: Vec<usize> = (0..expected.len()).collect();
    order.sort_by(|&a, &b| expected[a].total_cmp(&expected[b]).then(a.cmp(&b)));
    in_bins(counts, expected, order, LEAST_EXPECTED)
}

/// In at most 64 bins, along the ids. A generator that is a little biased moves many tokens a little
/// to one side: thousands of bins drown that, few show it.
pub fn fit_along_ids(counts: &[u64], expected: &[f64]) -> Option<Fit> {
    let least = expected.iter().sum::<f64>() / COARSE;
    in_bins(counts, expected, (0..expected.len()).collect(), least.max(LEAST_EXPECTED))
}

fn in_bins(counts: &[u64], expected: &[f64], order: Vec<usize>, least: f64) -> Option<Fit> {
    let mut bins: Vec<(f64, f64)> = Vec::new();
    let (mut seen, mut due) = (0.0, 0.0);
    for i in order {
        seen += counts[i] as f64;
        due += expected[i];
        if due >= least {
            bins.push((seen, due));
            (seen, due) = (0.0, 0.0);
        }
    }
    if let Some(last) = bins.last_mut() {
        last.0 += seen;
        last.1 += due;
    }
    if bins.len() < 2 {
        return None;
    }
    let statistic: f64 = bins.iter().map(|(seen, due)| (seen - due).powi(2) / due).sum();
    let distribution = ChiSquared::new((bins.len() - 1) as f64).ok()?;
    Some(Fit { statistic, bins: bins.len(), p: distribution.sf(statistic) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_the_tables() {
        // Quantiles of the distribution, from R's pchisq(..., lower.tail = FALSE).
        let p = |statistic: f64, df: f64| ChiSquared::new(df).unwrap().sf(statistic);
        for (statistic, df, expected) in [
            (3.841459, 1.0, 0.05),
            (27.63102, 2.0, 1e-6),
            (124.3421, 100.0, 0.05),
            (5165.615, 5000.0, 0.05),
        ] {
            let found = p(statistic, df);
            assert!((found / expected - 1.0).abs() < 1e-4, "{statistic} at {df}: {found}");
        }
        // Far out it is 0, not nonsense.
        assert!((0.0..1e-100).contains(&p(1e5, 10.0)));
        assert!((0.0..1e-100).contains(&p(1e6, 20_000.0)));
    }

    #[test]
    fn rare_tokens_share_a_bin() {
        let fit = fit(&[50, 47, 2, 1], &[49.0, 48.0, 2.0, 1.0]).unwrap();
        assert_eq!(fit.bins, 2, "three expected draws are put to the nearest bin");
        let expected = 1.0 / 49.0 + 1.0 / 51.0;
        assert!((fit.statistic - expected).abs() < 0.1, "{fit:?}");
        assert!(super::fit(&[100], &[100.0]).is_none());
        assert!(super::fit(&[1, 1], &[1.0, 1.0]).is_none());
    }

    #[test]
    fn a_slight_bias_along_the_ids_shows_in_few_bins() {
        let n = 10_000;
        // Two draws in a hundred of the upper half went to the lower.
        let counts: Vec<u64> = (0..n).map(|i| if i < n / 2 { 102 } else { 98 }).collect();
        let expected = vec![100.0; n];
        assert!(fit(&counts, &expected).unwrap().p > 0.5);
        let coarse = fit_along_ids(&counts, &expected).unwrap();
        assert!(coarse.bins <= 64 && coarse.p < 1e-6, "{coarse:?}");
    }
}
