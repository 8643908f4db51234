//! Outputs of the real GPT-2 weights that others published, `golden/published/gpt2.json`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::assets;

pub const FILE: &str = "golden/published/gpt2.json";

/// One known answer: what the weights give for an input, and who says so.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    pub id: String,
    /// `test`: asserted by the source's own tests; `readme`, `notes`: shown in its documentation.
    pub trust: String,
    pub source: String,
    #[serde(default)]
    pub note: Option<String>,
    #[serde(flatten)]
    pub kind: Kind,
}

/// Tolerances are absolute (`tol`), or relative where they are called `rtol`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    Logits {
        input_ids: Vec<u32>,
        #[serde(default)]
        mean_all_logits: Option<Mean>,
        at: Vec<At>,
        #[serde(default)]
        argmax_per_position: Option<Vec<u32>>,
    },
    WeightRow {
        tensor: String,
        /// Absent where the tensor has one axis.
        #[serde(default)]
        row: Option<usize>,
        #[serde(alias = "first10", alias = "first4", alias = "first3", alias = "first2")]
        first: Vec<f64>,
        tol: f64,
    },
    /// A module applied to a row of wte; which one and which row only `note` says.
    Stage {
        #[serde(rename = "first10")]
        first: Vec<f64>,
        tol: f64,
    },
    LastHiddenState {
        text: String,
        position: usize,
        #[serde(rename = "first10")]
        first: Vec<f64>,
        tol: f64,
    },
    Stages {
        input_ids: Vec<u32>,
        position: usize,
        layer: usize,
        stages: BTreeMap<String, Vec<f64>>,
        tol: f64,
    },
    NextToken {
        text: String,
        argmax: u32,
        argmax_text: String,
        logit: f64,
        tol: f64,
    },
    GreedyIds {
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        input_ids: Option<Vec<u32>>,
        /// Prompt and continuation.
        ids: Vec<u32>,
        /// Of the first generated tokens.
        #[serde(default)]
        first_logprobs: Option<Vec<f64>>,
        #[serde(default)]
        tol: Option<f64>,
    },
    GreedyText {
        text: String,
        #[serde(default)]
        input_ids: Option<Vec<u32>>,
        continuation: String,
        #[serde(default)]
        max_tokens: Option<usize>,
    },
    LoglikelihoodPerToken {
        context: String,
        text: String,
        logprobs: Vec<f64>,
        rtol: f64,
    },
    Loglikelihood {
        context: String,
        text: String,
        sum_logprob: f64,
        rtol: f64,
    },
    MeanLoss {
        text: String,
        #[serde(default)]
        prepend_bos: bool,
        value: f64,
        tol: f64,
    },
    Tokenize {
        text: String,
        ids: Vec<u32>,
    },
}

#[derive(Debug, Clone, Deserialize)]
pub struct Mean {
    pub value: f64,
    pub atol: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct At {
    pub position: usize,
    pub tol: f64,
    /// By token id.
    pub token_logits: BTreeMap<String, f64>,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to read {FILE}: {0}")]
pub struct PublishedError(String);

impl Entry {
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Logits { .. } => "logits",
            Kind::WeightRow { .. } => "weight_row",
            Kind::Stage { .. } => "stage",
            Kind::LastHiddenState { .. } => "last_hidden_state",
            Kind::Stages { .. } => "stages",
            Kind::NextToken { .. } => "next_token",
            Kind::GreedyIds { .. } => "greedy_ids",
            Kind::GreedyText { .. } => "greedy_text",
            Kind::LoglikelihoodPerToken { .. } => "loglikelihood_per_token",
            Kind::Loglikelihood { .. } => "loglikelihood",
            Kind::MeanLoss { .. } => "mean_loss",
            Kind::Tokenize { .. } => "tokenize",
        }
    }

    /// Whether the tokenizer alone answers it, so that no weights are needed.
    pub fn needs_no_weights(&self) -> bool {
        matches!(self.kind, Kind::Tokenize { .. })
    }
}

/// The entries by model, in the order of the file.
pub fn read() -> Result<Vec<(String, Vec<Entry>)>, PublishedError> {
    let bytes =
        assets::get(FILE).ok_or_else(|| PublishedError("it is not in this build".into()))?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<(String, Vec<Entry>)>, PublishedError> {
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(|e| PublishedError(e.to_string()))?;
    let models = json.into_iter().filter(|(name, _)| !name.starts_with('_'));
    models
        .map(|(name, entries)| match serde_json::from_value(entries) {
            Ok(entries) => Ok((name, entries)),
            Err(e) => Err(PublishedError(format!("{name}: {e}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_understood_whole() {
        let models = read().unwrap();
        let names: Vec<(&str, usize)> = models.iter().map(|(n, e)| (n.as_str(), e.len())).collect();
        assert_eq!(names, [("gpt2", 24), ("gpt2-medium", 2), ("distilgpt2", 1)]);
        let bytes = assets::get(FILE).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for (name, entries) in &models {
            for (entry, raw) in entries.iter().zip(json[name].as_array().unwrap()) {
                assert_eq!(entry.kind_name(), raw["kind"].as_str().unwrap());
                // No number of the file may be dropped by a field that nobody reads.
                let known = [
                    "id",
                    "trust",
                    "source",
                    "note",
                    "kind",
                    "input_ids",
                    "mean_all_logits",
                    "at",
                    "argmax_per_position",
                    "tensor",
                    "row",
                    "first10",
                    "first4",
                    "first3",
                    "first2",
                    "tol",
                    "text",
                    "position",
                    "layer",
                    "stages",
                    "argmax",
                    "argmax_text",
                    "logit",
                    "ids",
                    "first_logprobs",
                    "continuation",
                    "max_tokens",
                    "context",
                    "logprobs",
                    "rtol",
                    "sum_logprob",
                    "value",
                    "prepend_bos",
                ];
                for key in raw.as_object().unwrap().keys() {
                    assert!(known.contains(&key.as_str()), "{}: {key}", entry.id);
                }
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_an_error_that_says_where() {
        let bytes = br#"{"gpt2":[{"id":"x","trust":"test","source":"s","kind":"haiku"}]}"#;
        assert!(parse(bytes).unwrap_err().to_string().contains("haiku"));
    }
}
