//! GELU: the other forms of it, and other functions.

use llorch_trace::Stage;

use super::rounding::{NARROW, rounded};
use super::site::{Found, Site};
use crate::oracle::{bounds, gelu_new};

pub fn test(site: &Site<'_>, found: &mut Found) {
    let Some(x) = site.rows(site.own(Stage::Fc)) else { return };
    if x.len() != site.given.values.len() {
        return;
    }
    let x: Vec<f64> = x.iter().copied().collect();
    let fits = |f: &dyn Fn(f64) -> f64| {
        let bound = |i: usize| {
            // Any such function passes the rounding of what it is taken of on, and rounds a little.
            let steep = (f(x[i] * (1.0 + 1e-6)) - f(x[i])).abs() / 1e-6;
            bounds::gelu(x[i], site.u).bound + 8.0 * site.u * (f(x[i]).abs() + steep)
        };
        site.target().fits(|i| f(x[i]), bound)
    };
    let root = std::f64::consts::SQRT_2;
    found.test("gelu_erf", "with erf instead of tanh", || {
        Some(fits(&|x| 0.5 * x * (1.0 + erf(x / root))))
    });
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    found.test("gelu_sigmoid", "with x·sigmoid(1.702 x)", || {
        Some(fits(&|x| x * sigmoid(1.702 * x)))
    });
    found.test(None, "with x·sigmoid(x)", || Some(fits(&|x| x * sigmoid(x))));
    found.test(None, "with ReLU instead of GELU", || Some(fits(&|x| x.max(0.0))));
    found.test(None, "without the activation", || Some(fits(&|x| x)));
    for (to, slug) in NARROW.into_iter().filter(|(to, _)| to.unit_roundoff() > site.u) {
        let x = rounded(&ndarray::Array1::from(x.clone()), to);
        found.test(slug, format!("with the input rounded to {to}"), || {
            Some(site.target().fits(|i| gelu_new(x[i]), |i| bounds::gelu(x[i], site.u).bound))
        });
    }
}

/// The error function to float64's last digits or so: its Maclaurin series where that is short, else
/// the continued fraction of erfc (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        // 2/√π · e^(−z²) · Σ 2ⁿ z^(2n+1) / (2n+1)!!
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term > 1e-18 * sum {
            term *= 2.0 * z * z / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum
    } else {
        // erfc z = e^(−z²)/√π · 1/(z + (1/2)/(z + 1/(z + (3/2)/(z + …))))
        let fraction = (1..=80).rev().fold(z, |below, k| z + 0.5 * f64::from(k) / below);
        1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_that_of_the_tables() {
        // Abramowitz and Stegun, table 7.1, and mpmath.
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf(x) - expected).abs() < 1e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
