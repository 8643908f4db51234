//! Every kind of published question has a right answer that passes and a wrong one that fails. The
//! right ones are nano's, from its goldens by Hugging Face: no real weights are needed to know that the
//! questions are put as they are meant.

use llorch_diff::golden::answers::Questioner;
use llorch_diff::golden::outcome::Check;
use llorch_diff::golden::published::Entry;
use llorch_diff::golden::weights::Weights;
use llorch_diff::lineup;
use llorch_diff::live::Live;
use llorch_diff::provision::ProvisionOptions;
use llorch_trace::{Bundle, Dtype, Tensor};
use serde_json::{Value, json};

/// "Hello." and its goldens, `hello` in golden/nano/hf-f64.
struct Known {
    golden: Bundle,
    weights: Weights,
}

impl Known {
    fn row(&self, step: usize, key: &str, row: usize, n: usize) -> Vec<f64> {
        let tensor: Tensor = self.golden.get("hello", step, key).unwrap();
        let width = *tensor.shape.last().unwrap();
        (row * width..row * width + n).map(|i| tensor.get(i)).collect()
    }

    fn logprob(&self, step: usize, key: &str, id: u32) -> f64 {
        let logits = self.golden.get("hello", step, key).unwrap().to_f64();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
        logits[id as usize] - top - sum.ln()
    }

    /// One entry of every kind that the goldens can answer.
    fn entries(&self) -> Vec<Value> {
        let record = &self.golden.manifest.cases["hello"];
        let generated = record.generated.clone().unwrap();
        let (text, ids) = (record.text.clone().unwrap(), record.ids.clone());
        let all: Vec<u32> = ids.iter().chain(&generated).copied().collect();
        let logits = |key: &str| -> Value {
            let row = self.golden.get("hello", 0, key).unwrap();
            [0usize, 13, 50256]
                .into_iter()
                .map(|id| (id.to_string(), json!(row.get(id))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let dot = self.logprob(0, "logits#rows=0", 13);
        let first = self.logprob(0, "logits.last", generated[0]);
        let argmax = generated[0];
        let logit = self.golden.get("hello", 0, "logits.last").unwrap().get(argmax as usize);
        vec![
            json!({"kind": "logits", "input_ids": ids, "argmax_per_position": [null, argmax], "at": [
                {"position": 0, "tol": 1e-4, "token_logits": logits("logits#rows=0")},
                {"position": 1, "tol": 1e-4, "token_logits": logits("logits.last")}]}),
            json!({"kind": "weight_row", "tensor": "wte.weight", "row": 13, "tol": 1e-6,
                "first10": self.weights.row("wte.weight", Some(13)).unwrap()[..10]}),
            json!({"kind": "last_hidden_state", "text": "Hello.", "position": 1, "tol": 1e-4,
                "first10": self.row(0, "ln_f", 1, 10)}),
            json!({"kind": "stages", "input_ids": ids, "position": 1, "layer": 0, "tol": 1e-4, "stages": {
                "wte_first3": self.weights.row("wte.weight", Some(13)).unwrap()[..3],
                "embed_first3": self.row(0, "embeddings", 1, 3),
                "embed_last3": self.row(0, "embeddings", 1, 128)[125..],
                "ln_1_first3": self.row(0, "h.0.ln_1", 1, 3),
                "q_first3": self.row(0, "h.0.attn.q", 1, 3),
                "k_first3": self.row(0, "h.0.attn.k", 1, 3),
                "v_first3": self.row(0, "h.0.attn.v", 1, 3),
                "attn_out_first3": self.row(0, "h.0.attn.out", 1, 3),
                "ln_2_first3": self.row(0, "h.0.ln_2", 1, 3),
                "c_fc_first3": self.row(0, "h.0.mlp.fc", 1, 3),
                "gelu_first3": self.row(0, "h.0.mlp.act", 1, 3),
                "mlp_first3": self.row(0, "h.0.mlp.out", 1, 3)}}),
            json!({"kind": "greedy_ids", "text": "Hello.", "ids": all, "first_logprobs": [first], "tol": 1e-4}),
            json!({"kind": "greedy_ids", "input_ids": ids, "ids": all}),
            json!({"kind": "greedy_text", "text": "Hello.", "input_ids": ids, "continuation": text, "max_tokens": generated.len()}),
            json!({"kind": "loglikelihood", "context": "Hello", "text": ".", "sum_logprob": dot, "rtol": 1e-4}),
            json!({"kind": "loglikelihood_per_token", "context": "Hello", "text": ".", "logprobs": [dot], "rtol": 1e-4}),
            json!({"kind": "mean_loss", "text": "Hello.", "prepend_bos": false, "value": -dot, "tol": 1e-4}),
            json!({"kind": "next_token", "text": "Hello.", "argmax": argmax, "argmax_text": "", "logit": logit, "tol": 1e-4}),
            json!({"kind": "tokenize", "text": "Hello.", "ids": ids}),
            json!({"kind": "stage", "note": "block 0 ln_1 applied to wte[15496]", "tol": 1e-4, "first10": self.normalized(15496)}),
            json!({"kind": "stage", "note": "block 0 mlp.c_fc applied to wte[15496]", "tol": 1e-4,
                "first10": self.through_c_fc(15496)}),
        ]
    }

    /// A row of wte through the FFN's first matrix, by the harness's own float64.
    fn through_c_fc(&self, token: usize) -> Vec<f64> {
        let row = self.weights.row("wte.weight", Some(token)).unwrap();
        self.weights.conv1d("h.0.mlp.c_fc", &row).unwrap()[..10].to_vec()
    }

    /// Layer normalization of a row of wte, in float64 from the weights.
    fn normalized(&self, token: usize) -> Vec<f64> {
        let x = self.weights.row("wte.weight", Some(token)).unwrap();
        let (gain, bias) = (
            self.weights.row("h.0.ln_1.weight", None).unwrap(),
            self.weights.row("h.0.ln_1.bias", None).unwrap(),
        );
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let deviation = (variance + 1e-5).sqrt();
        let here: Vec<f64> =
            (0..10).map(|i| (x[i] - mean) / deviation * gain[i] + bias[i]).collect();
        let theirs = self.weights.layer_norm("h.0.ln_1", &x).unwrap();
        assert!(here.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-12));
        here
    }
}

fn entry(mut json: Value) -> Entry {
    let kind = json["kind"].as_str().unwrap().to_string();
    for (key, value) in
        [("id", kind.as_str()), ("trust", "test"), ("source", "Hugging Face on nano")]
    {
        json[key] = value.into();
    }
    // The goldens keep the argmax of the last position alone.
    if let Some(argmax) = json.get_mut("argmax_per_position") {
        *argmax = Value::Null;
    }
    serde_json::from_value(json).unwrap()
}

/// Adds one to the first number that is found where answers stand.
fn spoil(json: &mut Value) -> bool {
    const ANSWERS: [&str; 14] = [
        "token_logits",
        "first10",
        "first_logprobs",
        "stages",
        "logprobs",
        "sum_logprob",
        "value",
        "logit",
        "ids",
        "continuation",
        "at",
        "ln_1_first3",
        "0",
        "13",
    ];
    match json {
        Value::Number(n) if n.is_f64() => {
            *json = json!(n.as_f64().unwrap() + 1.0);
            true
        }
        Value::Number(n) => {
            *json = json!(n.as_u64().unwrap() + 1);
            true
        }
        Value::String(text) => {
            text.push('x');
            true
        }
        Value::Array(items) => items.iter_mut().rev().any(spoil),
        Value::Object(fields) => {
            fields.iter_mut().filter(|(k, _)| ANSWERS.contains(&k.as_str())).any(|(_, v)| spoil(v))
        }
        _ => false,
    }
}

#[test]
fn right_answers_pass_and_wrong_ones_fail() {
    let nano = llorch_models::resolve("nano", &Default::default()).unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let golden = Bundle::open(&root.join("golden/nano/hf-f64")).unwrap();
    let known = Known { golden, weights: Weights::open(&nano.dir).unwrap() };
    let options = ProvisionOptions { offline: true, quiet: true, allow: true };
    let engine = lineup::subject(None).unwrap().command(&options).unwrap();
    let mut live = Live::start(&engine, &nano.dir, Dtype::F32).unwrap();
    let mut questioner = Questioner { live: &mut live, weights: &known.weights };
    let generated = known.golden.manifest.cases["hello"].generated.clone().unwrap();
    for mut json in known.entries() {
        if json["kind"] == "next_token" {
            // The text of the one token, which the golden has only within the whole continuation.
            let shown = questioner.ask(&entry(json.clone())).unwrap();
            let text = shown.iter().find(|c| c.what == "text of argmax").unwrap().found.clone();
            json["argmax_text"] = serde_json::from_str(&text).unwrap();
            let whole = known.golden.manifest.cases["hello"].text.clone().unwrap();
            assert!(whole.starts_with(json["argmax_text"].as_str().unwrap()), "{generated:?}");
        }
        let failed = |checks: &[Check]| -> Vec<Check> {
            checks.iter().filter(|c| !c.passes).cloned().collect()
        };
        let right = questioner.ask(&entry(json.clone())).unwrap();
        assert!(
            !right.is_empty() && failed(&right).is_empty(),
            "{}: {:#?}",
            json["kind"],
            failed(&right)
        );
        assert!(spoil(&mut json), "{json}");
        let wrong = questioner.ask(&entry(json.clone())).unwrap();
        assert!(!failed(&wrong).is_empty(), "{}: a wrong answer passes: {json}", json["kind"]);
    }
    live.finish();
}
