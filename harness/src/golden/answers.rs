//! Puts one published question to the subject and holds its answer against the published one.

use llorch_trace::files::write_npy;
use llorch_trace::protocol::Inject;
use llorch_trace::{Point, Stage, Tensor};

use super::outcome::Check;
use super::published::{At, Entry, Kind, Mean};
use super::weights::Weights;
use crate::live::{Ask, Captured, Live, LiveError};

/// The token that begins and ends a text.
const END_OF_TEXT: &str = "<|endoftext|>";
const END_OF_TEXT_ID: u32 = 50256;

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The question can't be put to these weights, or the answer did not come whole.
    #[error("{0}")]
    Refused(String),
    /// The subject can't answer by its nature.
    #[error("{0}")]
    Unsupported(String),
}

impl From<llorch_trace::Error> for AnswerError {
    fn from(error: llorch_trace::Error) -> Self {
        AnswerError::Refused(error.to_string())
    }
}

impl From<String> for AnswerError {
    fn from(what: String) -> Self {
        AnswerError::Refused(what)
    }
}

type Result<T> = std::result::Result<T, AnswerError>;

/// The subject with its model, and the model's file.
#[derive(Debug)]
pub struct Questioner<'a> {
    pub live: &'a mut Live,
    pub weights: &'a Weights,
}

impl Questioner<'_> {
    pub fn ask(&mut self, entry: &Entry) -> Result<Vec<Check>> {
        match &entry.kind {
            Kind::Logits { input_ids, mean_all_logits, at, argmax_per_position } => {
                self.logits(input_ids, mean_all_logits.as_ref(), at, argmax_per_position.as_deref())
            }
            Kind::WeightRow { tensor, row, first, tol } => {
                Ok(Check::numbers(tensor, first, &self.weights.row(tensor, *row)?, *tol))
            }
            Kind::Stage { first, tol } => {
                let note = entry.note.as_deref().unwrap_or_default();
                let (what, found) = self.stage(note)?;
                Ok(Check::numbers(what, first, &found, *tol))
            }
            Kind::LastHiddenState { text, position, first, tol } => {
                let ids = self.live.tokenize(text)?;
                let captured = self.capture(&ids, &["ln_f"], 0)?;
                let found = row(captured.get(0, Point::new(Stage::LnF))?, *position)?;
                Ok(Check::numbers("ln_f", first, &found, *tol))
            }
            Kind::Stages { input_ids, position, layer, stages, tol } => {
                let mut checks = Vec::new();
                let glob = format!("h.{layer}*");
                let captured = self.capture(input_ids, &["embeddings", &glob], 0)?;
                for (name, expected) in stages {
                    let all = self.named_stage(name, input_ids, *position, *layer, &captured)?;
                    let from = if name.ends_with("_last3") {
                        all.len().saturating_sub(expected.len())
                    } else {
                        0
                    };
                    checks.extend(Check::numbers(name, expected, &all[from..], *tol));
                }
                Ok(checks)
            }
            Kind::NextToken { text, argmax, argmax_text, logit, tol } => {
                let ids = self.live.tokenize(text)?;
                let captured = self.capture(&ids, &["logits.last"], 1)?;
                let logits = captured.get(0, Point::new(Stage::LogitsLast))?.to_f64();
                let found = logits.get(*argmax as usize).copied().unwrap_or(f64::NAN);
                Ok(vec![
                    Check::equal("argmax", argmax, &best(&logits)),
                    Check::number(format!("logit of {argmax}"), *logit, found, *tol),
                    Check::equal("text of argmax", argmax_text, &captured.text.unwrap_or_default()),
                ])
            }
            Kind::GreedyIds { text, input_ids, ids, first_logprobs, tol } => self.greedy_ids(
                text.as_deref(),
                input_ids.as_deref(),
                ids,
                first_logprobs.as_deref(),
                *tol,
            ),
            Kind::GreedyText { text, input_ids, continuation, max_tokens } => {
                self.greedy_text(text, input_ids.as_deref(), continuation, *max_tokens)
            }
            Kind::LoglikelihoodPerToken { context, text, logprobs, rtol } => {
                let found = self.logprobs(context, text)?;
                let count = Check::equal("number of tokens", &logprobs.len(), &found.len());
                let each = logprobs.iter().zip(&found).enumerate();
                let each = each.map(|(i, (e, f))| {
                    Check::number(format!("logprob {i}"), *e, *f, rtol * e.abs())
                });
                Ok([count].into_iter().chain(each).collect())
            }
            Kind::Loglikelihood { context, text, sum_logprob, rtol } => {
                let found: f64 = self.logprobs(context, text)?.iter().sum();
                Ok(vec![Check::number(
                    "sum of logprobs",
                    *sum_logprob,
                    found,
                    rtol * sum_logprob.abs(),
                )])
            }
            Kind::MeanLoss { text, prepend_bos, value, tol } => {
                let found = match prepend_bos {
                    true => self.logprobs(END_OF_TEXT, text)?,
                    false => self.logprobs_after_first(text)?,
                };
                let mean = -found.iter().sum::<f64>() / found.len().max(1) as f64;
                Ok(vec![Check::number("mean loss", *value, mean, *tol)])
            }
            Kind::Tokenize { text, ids } => {
                Ok(vec![Check::equal("ids", ids, &self.live.tokenize(text)?)])
            }
        }
    }

    fn capture(&mut self, ids: &[u32], points: &[&str], new: usize) -> Result<Captured> {
        for point in points {
            if let Some(why) = self.live.hello().unsupported_reason(point) {
                return Err(AnswerError::Unsupported(format!("{point}: {why}")));
            }
        }
        let points = points.iter().map(|p| p.to_string()).collect();
        Ok(self.live.run(Ask {
            ids: ids.to_vec(),
            points,
            max_new_tokens: new,
            ..Ask::default()
        })?)
    }

    fn all_logits(&mut self, ids: &[u32]) -> Result<Tensor> {
        let mut captured = self.capture(ids, &["logits"], 0)?;
        let came = captured.tensors.remove(&(0, Point::new(Stage::Logits)));
        came.ok_or_else(|| AnswerError::Refused("logits did not come".into()))
    }

    fn logits(
        &mut self,
        ids: &[u32],
        mean: Option<&Mean>,
        at: &[At],
        argmax: Option<&[u32]>,
    ) -> Result<Vec<Check>> {
        let logits = self.all_logits(ids)?;
        let mut checks = Vec::new();
        if let Some(mean) = mean {
            let found = logits.to_f64().iter().sum::<f64>() / logits.len().max(1) as f64;
            checks.push(Check::number("mean of all logits", mean.value, found, mean.atol));
        }
        for at in at {
            let row = row(&logits, at.position)?;
            for (id, expected) in &at.token_logits {
                let index: usize =
                    id.parse().map_err(|_| format!("token id {id:?} is no number"))?;
                let found = row.get(index).copied().unwrap_or(f64::NAN);
                let what = format!("logits[{}, {id}]", at.position);
                checks.push(Check::number(what, *expected, found, at.tol));
            }
        }
        for (position, expected) in argmax.unwrap_or_default().iter().enumerate() {
            let found = best(&row(&logits, position)?);
            checks.push(Check::equal(format!("argmax at {position}"), expected, &found));
        }
        Ok(checks)
    }

    /// A module of block 0 applied to a raw row of wte: the row is put where the module reads, and
    /// the subject computes on.
    fn stage(&mut self, note: &str) -> Result<(&'static str, Vec<f64>)> {
        let token =
            note.split("wte[").nth(1).and_then(|rest| rest.split(']').next()?.parse::<u32>().ok());
        let token = token.ok_or_else(|| format!("its note names no row of wte: {note:?}"))?;
        let (what, put, read) = match note {
            note if note.contains("ln_1") => {
                ("ln_1(wte)", Point::new(Stage::Embeddings), Point::of_layer(Stage::Ln1, 0))
            }
            note if note.contains("mlp.c_fc") => {
                ("c_fc(wte)", Point::of_layer(Stage::Ln2, 0), Point::of_layer(Stage::Fc, 0))
            }
            note => {
                return Err(format!("its note names neither ln_1 nor mlp.c_fc: {note:?}").into());
            }
        };
        let input = self.weights.row("wte.weight", Some(token as usize))?;
        if !self.live.hello().can("inject") {
            // No prompt shows a module alone: then it is the weights that are checked.
            return Ok(match read.stage {
                Stage::Ln1 => (what, self.weights.layer_norm("h.0.ln_1", &input)?),
                _ => (what, self.weights.conv1d("h.0.mlp.c_fc", &input)?),
            });
        }
        let values: Vec<f32> = input.iter().map(|x| *x as f32).collect();
        let folder = tempfile::tempdir().map_err(|e| AnswerError::Refused(e.to_string()))?;
        let file = folder.path().join("row.npy");
        write_npy(&file, &Tensor::f32(vec![1, values.len()], values))?;
        let inject = vec![Inject { point: put.to_string(), step: 0, file, key: None }];
        let points = vec![read.to_string()];
        let captured = self.live.run(Ask { ids: vec![token], points, inject, ..Ask::default() })?;
        Ok((what, row(captured.get(0, read)?, 0)?))
    }

    /// `q_first3`, `ln_1_last3`, …: the values of that stage at one position; of heads, the first.
    fn named_stage(
        &self,
        name: &str,
        ids: &[u32],
        position: usize,
        layer: usize,
        captured: &Captured,
    ) -> Result<Vec<f64>> {
        let bare = name.trim_end_matches("_first3").trim_end_matches("_last3");
        let stage = match bare {
            "wte" => {
                let id = ids.get(position).ok_or_else(|| format!("no position {position}"))?;
                return Ok(self.weights.row("wte.weight", Some(*id as usize))?);
            }
            "embed" => Stage::Embeddings,
            "ln_1" => Stage::Ln1,
            "q" => Stage::Q,
            "k" => Stage::K,
            "v" => Stage::V,
            "attn_out" => Stage::AttnOut,
            "ln_2" => Stage::Ln2,
            "c_fc" => Stage::Fc,
            "gelu" => Stage::Act,
            "mlp" => Stage::MlpOut,
            other => return Err(format!("stage {other:?} is none that is known").into()),
        };
        let tensor = captured.get(0, Point::of_layer(stage, layer))?;
        // Of [H,T,D] the first head is the first [T,D].
        row(tensor, position)
    }

    fn greedy_ids(
        &mut self,
        text: Option<&str>,
        input_ids: Option<&[u32]>,
        ids: &[u32],
        logprobs: Option<&[f64]>,
        tol: Option<f64>,
    ) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        let prompt = match (input_ids, text) {
            (Some(ids), _) => ids.to_vec(),
            (None, Some(text)) => self.live.tokenize(text)?,
            (None, None) => return Err("it has neither text nor input_ids".to_string().into()),
        };
        let Some(expected) = ids.strip_prefix(prompt.as_slice()) else {
            return Ok(vec![Check::equal(
                "prompt",
                &ids[..prompt.len().min(ids.len())].to_vec(),
                &prompt,
            )]);
        };
        let captured = self.capture(&prompt, &["logits.last"], expected.len())?;
        checks.push(Check::equal("generated ids", &expected.to_vec(), &captured.generated));
        for (step, expected) in logprobs.unwrap_or_default().iter().enumerate() {
            let logits = captured.get(step, Point::new(Stage::LogitsLast))?.to_f64();
            let id = captured.generated.get(step).copied().unwrap_or_default() as usize;
            let found = logprob(&logits, id);
            checks.push(Check::number(
                format!("logprob {step}"),
                *expected,
                found,
                tol.unwrap_or(1e-4),
            ));
        }
        Ok(checks)
    }

    fn greedy_text(
        &mut self,
        text: &str,
        input_ids: Option<&[u32]>,
        continuation: &str,
        max_tokens: Option<usize>,
    ) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        let prompt = self.live.tokenize(text)?;
        if let Some(ids) = input_ids {
            checks.push(Check::equal("prompt", &ids.to_vec(), &prompt));
        }
        let expected = self.live.tokenize(continuation)?;
        let n = max_tokens.unwrap_or(expected.len());
        let captured = self.capture(&prompt, &[], n)?;
        match captured.text {
            Some(found) => checks.push(Check::equal("text", &continuation.to_string(), &found)),
            None => checks.push(Check::equal("ids of the text", &expected, &captured.generated)),
        }
        Ok(checks)
    }

    /// Log-probability of each token of `text` after `context`; the two are tokenized apart.
    fn logprobs(&mut self, context: &str, text: &str) -> Result<Vec<f64>> {
        let mut ids = match context {
            END_OF_TEXT => vec![END_OF_TEXT_ID],
            context => self.live.tokenize(context)?,
        };
        let from = ids.len();
        ids.extend(self.live.tokenize(text)?);
        self.logprobs_from(&ids, from)
    }

    /// Of each token but the first, which nothing predicts.
    fn logprobs_after_first(&mut self, text: &str) -> Result<Vec<f64>> {
        let ids = self.live.tokenize(text)?;
        self.logprobs_from(&ids, 1)
    }

    fn logprobs_from(&mut self, ids: &[u32], from: usize) -> Result<Vec<f64>> {
        let logits = self.all_logits(ids)?;
        (from..ids.len())
            .map(|i| Ok(logprob(&row(&logits, i.saturating_sub(1))?, ids[i] as usize)))
            .collect()
    }
}

/// Row `at` along the last axis but one, of the first block where there are more axes.
fn row(tensor: &Tensor, at: usize) -> Result<Vec<f64>> {
    match tensor.shape.as_slice() {
        [.., rows, n] if at < *rows => Ok((at * n..(at + 1) * n).map(|i| tensor.get(i)).collect()),
        shape => Err(format!("shape {shape:?} has no row {at}").into()),
    }
}

/// Ties go to the lowest id.
fn best(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn logprob(logits: &[f64], id: usize) -> f64 {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
    logits.get(id).map_or(f64::NAN, |l| l - top - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_a_softmax() {
        let logits = [1f64.ln(), 2f64.ln(), 5f64.ln()];
        assert!((logprob(&logits, 2) - (5f64 / 8.0).ln()).abs() < 1e-15);
        assert!(logprob(&logits, 3).is_nan());
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn rows_of_heads_are_those_of_the_first() {
        let heads = Tensor::f32(vec![2, 2, 2], (0..8).map(|i| i as f32).collect());
        assert_eq!(row(&heads, 1).unwrap(), [2.0, 3.0]);
        assert!(row(&heads, 2).is_err());
    }
}
