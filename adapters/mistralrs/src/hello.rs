//! What this reference says of itself before anything is asked of it.

use llorch_trace::protocol::{HelloResponse, PROTOCOL_VERSION, Unsupported, Worth};

use crate::model::NO_GPT2;
use crate::variant::Variant;

/// What Cargo.lock said when it was built (build.rs).
const PACKAGES: [(&str, &str); 3] = [
    ("mistralrs-core", env!("MISTRALRS_CORE_VERSION")),
    ("mistralrs-quant", env!("MISTRALRS_QUANT_VERSION")),
    ("candle-core", env!("CANDLE_CORE_VERSION")),
];

const RECIPES: [(&str, &str); 12] = [
    ("h.*.ln_1", "mistralrs_core::layers::layer_norm of what was put before it: t e"),
    ("h.*.attn.q", "mistralrs_quant::linear_b(c_attn): t (three h d) -> three h t d, [0]"),
    ("h.*.attn.k", "mistralrs_quant::linear_b(c_attn): t (three h d) -> three h t d, [1]"),
    ("h.*.attn.v", "mistralrs_quant::linear_b(c_attn): t (three h d) -> three h t d, [2]"),
    (
        "h.*.attn.probs",
        "candle_nn::ops::softmax_last_dim(scores + mistralrs_core::layers::CausalMasker's mask): h t s",
    ),
    ("h.*.attn.out", "mistralrs_quant::linear_b(c_proj): t e"),
    ("h.*.ln_2", "mistralrs_core::layers::layer_norm: t e"),
    ("h.*.mlp.fc", "mistralrs_quant::linear_b(c_fc): t i"),
    ("h.*.mlp.act", "mistralrs_core::layers::Activation::NewGelu: t i"),
    ("h.*.mlp.out", "mistralrs_quant::linear_b(c_proj): t e"),
    ("ln_f", "mistralrs_core::layers::layer_norm: t e"),
    ("logits", "candle_nn::Linear on mistralrs_core::layers::embedding(wte): t v"),
];

pub fn hello(_: Variant) -> HelloResponse {
    let nowhere = ["tokens", "h.*.attn.cache.*", "logits.last", "argmax", "next.probs"];
    HelloResponse {
        protocol: PROTOCOL_VERSION,
        name: "mistralrs".into(),
        version: PACKAGES.map(|(name, version)| format!("{name} {version}")).join(", "),
        worth: Worth::Kernels,
        capabilities: ["capture", "inject", "components", "deterministic"].map(String::from).into(),
        // Of the others some can only be put in place; a run that asks for them says why.
        unsupported: nowhere
            .map(|point| Unsupported { point: point.into(), reason: NO_GPT2.into() })
            .to_vec(),
        recipes: RECIPES.iter().map(|(p, r)| (p.to_string(), r.to_string())).collect(),
        deviations: Vec::new(),
    }
}
