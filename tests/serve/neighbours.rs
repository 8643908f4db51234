//! What a request gets does not depend on who else asks.

use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Daemon;

/// Requests of many kinds: short and long prompts, greedy and drawn, with and without logprobs.
fn requests() -> Vec<Value> {
    let words = ["the angel", "of the Lord", "and", "king", "said unto", "a hacker", "program"];
    let text = |n: usize, from: usize| -> String {
        (0..n).map(|i| words[(i * 5 + from) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    let common = json!({"ignore_eos": true, "return_token_ids": true});
    let ask = |more: Value| {
        let mut ask = common.clone();
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    (0..16)
        .map(|i| {
            let prompt = text([2, 60, 5, 20][i % 4], i);
            ask(match i % 5 {
                0 => json!({"prompt": prompt, "max_tokens": 40, "temperature": 0}),
                1 => json!({"prompt": prompt, "max_tokens": 30, "temperature": 0.8, "seed": i, "logprobs": 3}),
                2 => json!({"prompt": prompt, "max_tokens": 20, "temperature": 1.2, "top_p": 0.9, "seed": i, "n": 3}),
                3 => json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 1}),
                _ => json!({"prompt": prompt, "max_tokens": 25, "temperature": 0, "frequency_penalty": 0.5, "presence_penalty": 0.2}),
            })
        })
        .collect()
}

#[test]
fn alone_and_among_others_the_same_to_the_last_digit() {
    for dtype in ["f32", "bf16", "int8"] {
        let daemon = Daemon::start(&["--max-batch", "8", "--dtype", dtype]);
        let requests = requests();
        let alone: Vec<Value> =
            requests.iter().map(|ask| daemon.complete(ask.clone())["choices"].clone()).collect();
        for round in 0..3 {
            let together: Vec<Value> = std::thread::scope(|scope| {
                let threads: Vec<_> = requests
                    .iter()
                    .map(|ask| scope.spawn(|| daemon.complete(ask.clone())["choices"].clone()))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for ((alone, together), ask) in alone.iter().zip(&together).zip(&requests) {
                assert_eq!(alone, together, "{dtype}, round {round}: {ask}");
            }
        }
        assert!(daemon.metric("llorch_prompt_tokens_reused_total") > 0.0);
        daemon.wait_until_idle(Duration::from_secs(5));
        let ended = daemon.metric("llorch_completions_ended_total{outcome=\"completed\"}");
        assert_eq!((daemon.metric("llorch_completions_accepted_total"), ended), (64.0, 64.0));
        // They were computed together.
        let (sum, steps) =
            (daemon.metric("llorch_batch_sequences_sum"), daemon.metric("llorch_steps_total"));
        assert!(sum / steps > 1.5, "{sum} sequences in {steps} steps");
    }
}
