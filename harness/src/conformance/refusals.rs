//! Requests that can't be answered: each gets an error of class `input`, and the adapter goes on.

use llorch_trace::protocol::ErrorClass;
use serde_json::{Value, json};

use super::bench::Bench;
use super::check::Stop;

pub fn empty_prompt(bench: &mut Bench<'_>) -> Result<(), Stop> {
    refuse(bench, vec![json!({"ids": []})])
}

pub fn bad_ids(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let size = bench.setup.dims.vocab_size;
    let ids = [json!([size]), json!([1, -1]), json!([1.5]), json!("Hello."), json!([true])];
    refuse(bench, ids.into_iter().map(|ids| json!({"ids": ids})).collect())
}

pub fn too_long(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let n = bench.setup.dims.n_positions;
    let (full, beyond) = (bench.ids(n, 3), bench.ids(n + 1, 3));
    let mut requests = vec![json!({"ids": beyond})];
    if bench.can("generate") {
        requests.push(json!({"ids": full, "max_new_tokens": 2}));
        requests.push(json!({"max_new_tokens": 1_000_000_000}));
    }
    refuse(bench, requests)
}

pub fn bad_forced(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.needs("generate")?;
    let size = bench.setup.dims.vocab_size;
    refuse(
        bench,
        vec![
            json!({"max_new_tokens": 2, "forced_ids": [1]}),
            json!({"max_new_tokens": 1, "forced_ids": [size]}),
        ],
    )
}

pub fn bad_fields(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let mut requests = vec![json!({"max_new_tokens": -1}), json!({"points": "h.0"})];
    if !bench.points().is_empty() {
        requests.push(json!({"points": ["*"], "out_dir": null}));
    }
    refuse(bench, requests)?;
    bench.ready()?;
    // Without an id that can be repeated, the error has none.
    bench.refuses(&json!({"type": "run", "ids": [1]}), ErrorClass::Input, None)?;
    bench.alive()
}

fn refuse(bench: &mut Bench<'_>, requests: Vec<Value>) -> Result<(), Stop> {
    bench.ready()?;
    for fields in requests {
        let request = bench.run_request(fields);
        let id = request["id"].as_str().unwrap_or_default().to_string();
        bench.refuses(&request, ErrorClass::Input, Some(&id))?;
    }
    bench.alive()
}
