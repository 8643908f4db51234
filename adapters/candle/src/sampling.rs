//! From logits to probabilities to a token.
//!
//! Temperature and softmax are Candle's, and so is the draw: candle-transformers' `LogitsProcessor`
//! draws from the very probabilities that `next.probs` shows. The cuts by top-k and top-p are written
//! here with Hugging Face's meaning (top-p is measured on the probabilities left by top-k, and the
//! rest are normalized again), because `LogitsProcessor`'s own differ there and stay inside it.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_transformers::generation::{LogitsProcessor, Sampling as CandleSampling};
use llorch_trace::protocol::Sampling;

/// [V] logits to [V] probabilities. Temperature 0 is the plain softmax.
pub fn probabilities(logits: &Tensor, sampling: &Sampling) -> CandleResult<Tensor> {
    if sampling.temperature == 0.0 {
        return softmax_last_dim(&logits.contiguous()?);
    }
    let scaled = (logits / sampling.temperature)?;
    let mut values: Vec<f64> = scaled.to_dtype(DType::F64)?.to_vec1()?;
    if !cut(&mut values, sampling) {
        return softmax_last_dim(&scaled);
    }
    let kept = Tensor::from_vec(values, logits.dim(D::Minus1)?, &Device::Cpu)?;
    softmax_last_dim(&kept.to_dtype(logits.dtype())?)
}

/// Sets what top-k and top-p drop to −∞; false if they drop nothing.
fn cut(values: &mut [f64], sampling: &Sampling) -> bool {
    let by_k = sampling.top_k > 0 && sampling.top_k < values.len();
    if by_k {
        let mut order = values.to_vec();
        let (_, threshold, _) =
            order.select_nth_unstable_by(sampling.top_k - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        // Ties with the k-th stay, as in Hugging Face's TopKLogitsWarper.
        values.iter_mut().filter(|v| **v < threshold).for_each(|v| *v = f64::NEG_INFINITY);
    }
    let by_p = sampling.top_p < 1.0;
    if by_p {
        keep_top_p(values, sampling.top_p);
    }
    by_k || by_p
}

/// From the least likely upwards, drops tokens while their sum stays within 1 − p; keeps one at least.
fn keep_top_p(values: &mut [f64], top_p: f64) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let Some((&best, others)) = order.split_last() else { return };
    let max = values[best];
    let total: f64 = values.iter().map(|v| (v - max).exp()).sum();
    let mut sum = 0.0;
    for &i in others {
        sum += (values[i] - max).exp() / total;
        if sum > 1.0 - top_p {
            break;
        }
        values[i] = f64::NEG_INFINITY;
    }
}

/// The largest logit's id; of equal ones the lowest.
pub fn argmax(logits: &Tensor) -> CandleResult<u32> {
    let values: Vec<f64> = match logits.dtype() {
        DType::F32 => return Ok(first_largest(&logits.to_vec1::<f32>()?)),
        _ => logits.to_dtype(DType::F64)?.to_vec1()?,
    };
    Ok(first_largest(&values))
}

fn first_largest<T: PartialOrd + Copy>(values: &[T]) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best as u32
}

/// Draws tokens; one seed gives one sequence.
pub struct Drawer(LogitsProcessor);

impl Drawer {
    pub fn new(seed: u64) -> Drawer {
        Drawer(LogitsProcessor::from_sampling(seed, CandleSampling::All { temperature: 1.0 }))
    }

    pub fn draw(&mut self, logits: &Tensor, probabilities: &Tensor) -> CandleResult<u32> {
        let probabilities: Vec<f32> = probabilities.to_dtype(DType::F32)?.to_vec1()?;
        self.0.sample_f(logits, |drawn_from| drawn_from.copy_from_slice(&probabilities))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A softmax of their logarithms gives these back.
    const PROBS: [f32; 4] = [0.5, 0.25, 0.15, 0.1];

    fn logits() -> Tensor {
        Tensor::new(&PROBS.map(f32::ln), &Device::Cpu).unwrap()
    }

    fn probs(temperature: f64, top_k: usize, top_p: f64) -> Vec<f32> {
        let sampling = Sampling { temperature, top_k, top_p, seed: 0 };
        probabilities(&logits(), &sampling).unwrap().to_vec1().unwrap()
    }

    fn close(a: &[f32], b: &[f32]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
    }

    #[test]
    fn cuts_as_hugging_face_does() {
        close(&probs(0.0, 2, 0.1), &PROBS);
        close(&probs(1.0, 2, 1.0), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        // 0.1 + 0.15 = 0.25 is within 1 − 0.7, 0.25 more is not.
        close(&probs(1.0, 0, 0.7), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        // After top-k the largest has 2/3, so 0.6 is reached by it alone; before it had 0.5.
        close(&probs(1.0, 2, 0.6), &[1.0, 0.0, 0.0, 0.0]);
        close(&probs(1.0, 0, 1e-9), &[1.0, 0.0, 0.0, 0.0]);
        let squared = [0.25, 0.0625, 0.0225, 0.01].map(|p| p / 0.345f32);
        close(&probs(0.5, 0, 1.0), &squared);
    }

    #[test]
    fn argmax_takes_the_lowest_of_equals() {
        let logits = Tensor::new(&[0f32, 3.0, 3.0, -1.0], &Device::Cpu).unwrap();
        assert_eq!(argmax(&logits).unwrap(), 1);
        assert_eq!(argmax(&logits.to_dtype(DType::F64).unwrap()).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let logits = logits();
        let cut =
            probabilities(&logits, &Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() })
                .unwrap();
        let draw = |seed| {
            let mut drawer = Drawer::new(seed);
            (0..3000).map(|_| drawer.draw(&logits, &cut).unwrap()).collect::<Vec<_>>()
        };
        let first = draw(1);
        assert_eq!(first, draw(1));
        assert_ne!(first, draw(2));
        assert!(first.iter().all(|id| *id < 2));
        // 2000 expected, standard deviation 26.
        let zeros = first.iter().filter(|id| **id == 0).count();
        assert!((1840..2160).contains(&zeros), "{zeros}");
    }
}
