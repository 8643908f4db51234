//! @NAME@: an adapter for llorch-diff.
//!
//! It speaks the adapter protocol, version 1 (adapters/PROTOCOL.md), on stdin and stdout. Three files:
//!
//! - this one: what it says of itself, and the protocol, which can stay as it is;
//! - `engine.rs`: a STUB, which computes nothing real, until you put your engine there;
//! - `model.rs`: config.json and model.safetensors.
//!
//! ```text
//! cargo build --release
//! llorch-diff adapter check target/release/@NAME@      # the protocol is kept
//! llorch-diff run --subject target/release/@NAME@      # the numbers are compared
//! llorch-diff bisect --subject target/release/@NAME@   # the first wrong stage
//! ```

mod engine;
mod model;
mod show;

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{json, Value};

use engine::Engine;
use model::{Sizes, Weights};
use show::{is_shown, softmax, Show};

// --- What the adapter says of itself -----------------------------------------------------------------

const NAME: &str = "@NAME@";
const VERSION: &str = "0.1.0 (stub)"; // of what does the computing
/// `kernels`: this graph was written for llorch. `semantics`: the engine's own graph runs.
const WORTH: &str = "kernels";
/// `deterministic` promises the same bytes for the same request, run after run: drop it if that isn't so.
const CAPABILITIES: [&str; 3] = ["capture", "generate", "deterministic"];

/// Every point there is, `i` for the layer. Delete what your engine can't show; it is then declared as
/// unsupported, and the rest is compared. A first day's engine may show `logits.last` alone.
pub const SHOWN: &[&str] = &[
    "tokens",
    "embeddings",
    "h.i.ln_1",
    "h.i.attn.q",
    "h.i.attn.k",
    "h.i.attn.v",
    "h.i.attn.cache.k",
    "h.i.attn.cache.v",
    "h.i.attn.scores",
    "h.i.attn.probs",
    "h.i.attn.context",
    "h.i.attn.out",
    "h.i.resid_mid",
    "h.i.ln_2",
    "h.i.mlp.fc",
    "h.i.mlp.act",
    "h.i.mlp.out",
    "h.i",
    "ln_f",
    "logits",
    "logits.last",
    "argmax",
    "next.probs",
];
const WHY_NOT: &str = "not shown by this adapter";

/// Where the native tensor is and how it becomes ours, by point: told in reports.
const RECIPE: &str = "made up by a stub";

// --- The protocol ------------------------------------------------------------------------------------

/// An `error` of this class: unsupported, input, resource or internal.
#[derive(Debug)]
pub struct Refusal(pub &'static str, pub String);

pub type Answer<T> = Result<T, Refusal>;

pub fn input<T>(message: impl Into<String>) -> Answer<T> {
    Err(Refusal("input", message.into()))
}

fn unsupported<T>(what: &str) -> Answer<T> {
    Err(Refusal("unsupported", format!("{NAME} {what}")))
}

/// One line on stdout, which belongs to the protocol: print with `eprintln!`.
pub fn send(message: &Value) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{message}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0); // nobody listens any more
    }
}

type Cancelled = Arc<Mutex<HashSet<String>>>;

fn main() {
    let (sender, lines) = channel::<Vec<u8>>();
    let cancelled = Cancelled::default();
    let seen = cancelled.clone();
    // In a thread, so that a `cancel` is seen while a run is going on.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            if let Ok(message) = serde_json::from_slice::<Value>(&line) {
                if let (Some("cancel"), Some(id)) =
                    (message["type"].as_str(), message["id"].as_str())
                {
                    seen.lock().unwrap().insert(id.to_string());
                    continue;
                }
            }
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut adapter = Adapter { loaded: None, cancelled };
    for line in lines {
        let message: Result<Value, _> = serde_json::from_slice(&line);
        let id = message.as_ref().ok().and_then(|m| m["id"].as_str()).map(String::from);
        let answered = match &message {
            Ok(message) if message.is_object() => {
                // A panic becomes an error: the next request may go well.
                catch_unwind(AssertUnwindSafe(|| adapter.answer(message))).unwrap_or_else(|_| {
                    Err(Refusal("internal", "panicked; stderr says where".into()))
                })
            }
            Ok(_) => input("expected a JSON object"),
            Err(error) => input(format!("bad JSON: {error}")),
        };
        send(&answered.unwrap_or_else(|Refusal(class, message)| {
            json!({"type": "error", "id": id, "class": class, "message": message})
        }));
    }
}

struct Adapter {
    loaded: Option<(Sizes, Engine)>,
    cancelled: Cancelled,
}

impl Adapter {
    fn answer(&mut self, message: &Value) -> Answer<Value> {
        match message["type"].as_str() {
            Some("hello") => hello(message),
            Some("load") => self.load(message),
            Some("run") => self.run(message),
            _ => unsupported("doesn't do that"),
        }
    }

    fn load(&mut self, message: &Value) -> Answer<Value> {
        let started = Instant::now();
        self.loaded = None; // one that fails leaves none
        if message.get("dtype").is_some_and(|dtype| dtype != "f32") {
            return unsupported("computes in f32 only");
        }
        let Some(folder) = message["model_dir"].as_str() else {
            return input("`model_dir` isn't a path");
        };
        let sizes = Sizes::read(&Path::new(folder).join("config.json"))?;
        let weights = Weights::read(&Path::new(folder).join("model.safetensors"), &sizes)?;
        let threads = message["threads"].as_u64().unwrap_or(1).max(1) as usize;
        let engine = Engine::new(&sizes, &weights, threads)?;
        self.loaded = Some((sizes, engine));
        Ok(json!({"type": "loaded", "seconds": started.elapsed().as_secs_f64()}))
    }

    fn run(&mut self, message: &Value) -> Answer<Value> {
        let Some(id) = message["id"].as_str() else { return input("`id` isn't a string") };
        let Some((sizes, engine)) = &mut self.loaded else { return input("no model is loaded") };
        let mut ids = tokens(message, "ids", sizes)?;
        let n = match message.get("max_new_tokens").map(Value::as_u64) {
            None => 0,
            Some(Some(n)) => n as usize,
            Some(None) => return input("`max_new_tokens` isn't a whole number from 0"),
        };
        if ids.is_empty() {
            return input("`ids` is empty");
        }
        let needed = ids.len().saturating_add(n.max(1) - 1);
        if needed > sizes.positions {
            return input(format!(
                "context overflow: {needed} positions, the model has {}",
                sizes.positions
            ));
        }
        let forced = match message["forced_ids"].is_null() {
            true => None,
            false => Some(tokens(message, "forced_ids", sizes)?),
        };
        if forced.as_ref().is_some_and(|forced| forced.len() != n) {
            return input("`forced_ids` doesn't have max_new_tokens entries");
        }
        if message["inject"].as_array().is_some_and(|inject| !inject.is_empty()) {
            return unsupported("can't inject");
        }
        if message["sampling"]["temperature"].as_f64().is_some_and(|t| t != 0.0) {
            return unsupported("can't sample");
        }
        let globs: Vec<String> = match message.get("points") {
            None => Vec::new(),
            Some(points) => match serde_json::from_value(points.clone()) {
                Ok(globs) => globs,
                Err(_) => return input("`points` isn't a list of strings"),
            },
        };
        let mut show = Show::new(id, globs, message["out_dir"].as_str());
        if message["out_dir"].as_str().is_none() {
            let every = SHOWN.iter().flat_map(|point| {
                (0..sizes.layers).map(move |i| point.replacen("h.i", &format!("h.{i}"), 1))
            });
            if every.into_iter().any(|point| show.wants(&point)) {
                return input("`out_dir` is missing: there is nowhere to put the tensors");
            }
        }

        engine.reset();
        let (mut generated, mut seconds) = (Vec::new(), [0.0; 2]);
        for step in 0..n.max(1) {
            if self.cancelled.lock().unwrap().contains(id) {
                return Err(Refusal("resource", "cancelled".into()));
            }
            let started = Instant::now();
            show.step = step;
            show.ids("tokens", &ids, &[ids.len()])?;
            let last = engine.forward(&ids, &mut show)?;
            show.floats("logits.last", &last, &[last.len()])?;
            // The first of equals.
            let best = (0..last.len())
                .fold(0, |best, i| if last[i] > last[best] { i } else { best })
                as i64;
            show.ids("argmax", &[best], &[])?;
            if show.wants("next.probs") {
                show.floats("next.probs", &softmax(&last), &[last.len()])?;
            }
            ids =
                vec![forced.as_ref().and_then(|forced| forced.get(step).copied()).unwrap_or(best)];
            if step < n {
                generated.push(ids[0]);
            }
            seconds[step.min(1)] += started.elapsed().as_secs_f64();
        }
        Ok(json!({"type": "done", "id": id, "generated": generated, "text": null,
            "seconds": {"prefill": seconds[0], "decode": seconds[1]}}))
    }
}

fn hello(message: &Value) -> Answer<Value> {
    if message.get("protocol").is_some_and(|protocol| protocol != 1) {
        return unsupported("speaks protocol 1 and no other");
    }
    let outside = ["tokens", "embeddings", "ln_f", "logits", "logits.last", "argmax", "next.probs"];
    let inside = [
        "ln_1",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.cache.k",
        "attn.cache.v",
        "attn.scores",
        "attn.probs",
        "attn.context",
        "attn.out",
        "resid_mid",
        "ln_2",
        "mlp.fc",
        "mlp.act",
        "mlp.out",
    ];
    let mut all: Vec<String> = outside.map(String::from).to_vec();
    all.extend(inside.map(|part| format!("h.*.{part}")));
    // `*` crosses dots, so that the blocks' own outputs must be named one by one.
    all.extend((0..100).map(|i| format!("h.{i}")));
    let missing: Vec<Value> = all
        .iter()
        .filter(|point| !is_shown(point))
        .map(|point| json!({"point": point, "reason": WHY_NOT}))
        .collect();
    Ok(json!({"type": "hello", "protocol": 1, "name": NAME, "version": VERSION, "worth": WORTH,
        "capabilities": CAPABILITIES, "unsupported": missing, "recipes": {"*": RECIPE}, "deviations": []}))
}

fn tokens(message: &Value, field: &str, sizes: &Sizes) -> Answer<Vec<i64>> {
    let Some(list) = message[field].as_array() else {
        return input(format!("`{field}` isn't a list"));
    };
    list.iter()
        .map(|id| match id.as_u64() {
            Some(id) if (id as usize) < sizes.vocab => Ok(id as i64),
            _ => input(format!(
                "`{field}` holds {id}, expected token ids from 0 to {}",
                sizes.vocab - 1
            )),
        })
        .collect()
}
