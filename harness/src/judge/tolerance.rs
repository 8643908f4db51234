//! How far a point may be off, by its place in the model.

use llorch_trace::{Class, Point};

/// What the total error of a deeper layer is judged at: rounding accumulates over blocks, so that
/// only block 0 is held to its checkpoint's class.
const DEEP: f64 = 1e-3;

/// The relative tolerance of a point, 0 where equality is asked for.
pub fn point_tolerance(point: Point) -> f64 {
    match (point.checkpoint().class, point.layer) {
        (Class::Exact, _) => 0.0,
        (Class::Mixed(t), Some(layer)) if layer > 0 => t.max(DEEP),
        (Class::Mixed(t), _) => t,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_0_is_held_to_its_class_and_deeper_ones_to_1e_3() {
        let of = |name: &str| point_tolerance(name.parse().unwrap());
        assert_eq!((of("h.0.ln_1"), of("h.1.ln_1")), (1e-5, 1e-3));
        assert_eq!((of("h.0"), of("h.3")), (1e-4, 1e-3));
        assert_eq!((of("embeddings"), of("argmax"), of("logits.last")), (0.0, 0.0, 1e-3));
    }
}
