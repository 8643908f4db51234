//! What this reference says of itself before anything is asked of it.

use std::collections::BTreeMap;

use llorch_trace::protocol::{Deviation, HelloResponse, PROTOCOL_VERSION, Unsupported, Worth};

use crate::variant::Variant;

/// What Cargo.lock said when it was built (build.rs).
const CANDLE: [(&str, &str); 3] = [
    ("candle-core", env!("CANDLE_CORE_VERSION")),
    ("candle-nn", env!("CANDLE_NN_VERSION")),
    ("candle-transformers", env!("CANDLE_TRANSFORMERS_VERSION")),
];

const TOKENS: &str = "the ids fed, u32 -> i64";

const ARGMAX: &str = "this adapter's scan of logits.last: the lowest id of a tie";

const LOGITS_LAST: &str =
    "the last row of logits; where logits is not asked for, that row's product alone: v";

const NEXT_PROBS: &str = "candle_nn::ops::softmax_last_dim(logits.last / temperature), after this adapter's \
     top-k and top-p with Hugging Face's meaning; tokens are drawn from it by candle-transformers' \
     LogitsProcessor";

const GRAPH_RECIPES: [(&str, &str); 22] = [
    ("tokens", TOKENS),
    ("embeddings", "candle_nn::Embedding(wte)(ids) + Embedding(wpe)(positions): t e"),
    ("h.*.ln_1", "candle_nn::LayerNorm (f32: its fused kernel, variance as E[x²] − mean²): t e"),
    ("h.*.attn.q", "candle_nn::Linear(c_attn, transposed view): t (three h d) -> three h t d, [0]"),
    ("h.*.attn.k", "candle_nn::Linear(c_attn, transposed view): t (three h d) -> three h t d, [1]"),
    ("h.*.attn.v", "candle_nn::Linear(c_attn, transposed view): t (three h d) -> three h t d, [2]"),
    ("h.*.attn.cache.*", "candle_nn::kv_cache::KvCache::append, what it returns: h s d"),
    ("h.*.attn.scores", "q.matmul(k.t()) * (1/√d) + mask (0 or −∞): h t s"),
    ("h.*.attn.probs", "candle_nn::ops::softmax_last_dim(scores): h t s"),
    ("h.*.attn.context", "probs.matmul(v): h t d -> t (h d)"),
    ("h.*.attn.out", "candle_nn::Linear(c_proj): t e"),
    ("h.*.resid_mid", "the block's input + attn.out: t e"),
    ("h.*.ln_2", "candle_nn::LayerNorm, as ln_1: t e"),
    ("h.*.mlp.fc", "candle_nn::Linear(c_fc): t i"),
    ("h.*.mlp.act", "Tensor::gelu (tanh): t i"),
    ("h.*.mlp.out", "candle_nn::Linear(c_proj): t e"),
    ("h.*", "resid_mid + mlp.out: t e"),
    ("ln_f", "candle_nn::LayerNorm, as ln_1: t e"),
    ("logits", "candle_nn::Linear(wte, no bias): t v"),
    ("logits.last", LOGITS_LAST),
    ("argmax", ARGMAX),
    ("next.probs", NEXT_PROBS),
];

const UPSTREAM_RECIPES: [(&str, &str); 6] = [
    ("tokens", TOKENS),
    (
        "ln_f",
        "candle_transformers whisper TextDecoder::forward on GPT-2's weights, cross-attention zero, k_proj \
         without bias (softmax takes the missing q·b_k out); it keeps no self-attention cache, so a decode \
         step recomputes the whole sequence: one s e -> t e, the last t rows",
    ),
    ("logits", "TextDecoder::final_linear(ln_f): one t v -> t v"),
    ("logits.last", LOGITS_LAST),
    ("argmax", ARGMAX),
    ("next.probs", NEXT_PROBS),
];

pub fn hello(variant: Variant) -> HelloResponse {
    let upstream = variant == Variant::Upstream;
    let mut capabilities =
        vec!["capture", "tokenize", "generate", "inject", "sample", "bench", "deterministic"];
    let recipes: &[(&str, &str)] = if upstream {
        &UPSTREAM_RECIPES
    } else {
        capabilities.push("f64");
        &GRAPH_RECIPES
    };
    HelloResponse {
        protocol: PROTOCOL_VERSION,
        name: variant.name().into(),
        version: CANDLE.map(|(name, version)| format!("{name} {version}")).join(", "),
        worth: if upstream { Worth::Semantics } else { Worth::Kernels },
        capabilities: capabilities.into_iter().map(String::from).collect(),
        unsupported: if upstream { unsupported() } else { Vec::new() },
        recipes: recipes
            .iter()
            .map(|(p, r)| (p.to_string(), r.to_string()))
            .collect::<BTreeMap<_, _>>(),
        deviations: if variant == Variant::GraphF64 { Vec::new() } else { deviations() },
    }
}

/// Rounding, but more of it than other softmaxes have: 50,257 / 32 terms a lane, each off by half an
/// ulp of a sum near 1, are 9.4e-5 at worst. Measured with a peak of 0.87: 7.8e-6.
fn deviations() -> Vec<Deviation> {
    vec![Deviation {
        point: "next.probs".into(),
        bound: 1e-4,
        reason: "candle-nn's softmax sums the exponentials in f32, in 32 lanes: beside a peak the tail of \
                 a large vocabulary is rounded away"
            .into(),
    }]
}

fn unsupported() -> Vec<Unsupported> {
    let reason = "candle-transformers' Whisper decoder exposes nothing before its final layer norm";
    ["embeddings", "h.*"]
        .map(|point| Unsupported { point: point.into(), reason: reason.into() })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use llorch_trace::all_points;
    use llorch_trace::points::glob_matches;

    #[test]
    fn the_version_is_the_locked_one() {
        let lock = include_str!("../Cargo.lock");
        for (package, version) in CANDLE {
            let pin = format!("name = \"{package}\"\nversion = \"{version}\"\n");
            assert!(lock.contains(&pin), "{package}");
        }
    }

    #[test]
    fn recipes_are_of_the_supported_points_and_of_all_of_them() {
        for variant in [Variant::Graph, Variant::GraphF64, Variant::Upstream] {
            let hello = hello(variant);
            for point in all_points(2).iter().map(|p| p.to_string()) {
                let told = hello.recipes.keys().any(|glob| glob_matches(glob, &point));
                assert_eq!(told, hello.unsupported_reason(&point).is_none(), "{point}");
            }
            for glob in hello.recipes.keys() {
                let points: Vec<_> = all_points(2).into_iter().map(|p| p.to_string()).collect();
                let matched: Vec<_> = points.iter().filter(|p| glob_matches(glob, p)).collect();
                assert!(!matched.is_empty(), "{glob}");
                assert!(matched.iter().all(|p| hello.unsupported_reason(p).is_none()), "{glob}");
            }
        }
    }
}
