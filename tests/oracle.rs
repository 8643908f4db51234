//! The float64 oracle against Hugging Face's model in float64, from goldens: no Python is needed.

use std::path::Path;

use llorch_diff::oracle::Oracle;
use llorch_trace::Bundle;

/// The bound of docs/TOLERANCES.md: room for float64's rounding over all blocks, none for a mistake.
const BOUND: f64 = 1e-10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_oracle_agrees_with_hf_in_float64_at_every_golden_step() {
    let golden = Bundle::open(&root().join("golden/nano/hf-f64")).unwrap();
    let case = &golden.manifest.cases["hello"];
    let chosen = case.generated.clone().unwrap();
    let oracle = Oracle::open(&root().join("golden/models/nano")).unwrap();
    let ours = oracle.continue_greedily(&case.ids, chosen.len()).unwrap();
    assert_eq!(ours.ids, chosen);
    let mut compared = 0;
    for (step, logits) in ours.logits.iter().enumerate() {
        if !golden.contains("hello", step, "logits.last") {
            continue;
        }
        let expected = golden.get("hello", step, "logits.last").unwrap().to_f64();
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let off = logits.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert_eq!(logits.len(), expected.len());
        assert!(off / largest <= BOUND, "step {step}: {off:e} of {largest}");
        compared += 1;
    }
    assert!(compared >= 2, "the goldens hold logits.last of {compared} steps");
}

#[test]
fn what_does_not_fit_is_refused() {
    let oracle = Oracle::open(&root().join("golden/models/nano")).unwrap();
    let says = |ids: &[u32], n| oracle.continue_greedily(ids, n).unwrap_err().to_string();
    assert!(says(&[], 1).contains("no token ids"));
    assert!(says(&[50257], 1).contains("50257"));
    assert!(says(&[1; 8], 100_000).contains("positions"));
    assert!(Oracle::open(Path::new("/nowhere")).is_err());
}
