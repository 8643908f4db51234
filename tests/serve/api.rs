//! What is asked and what is answered.

use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::{Daemon, agent, text};

#[test]
fn the_small_endpoints_answer() {
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.get("/health").1["status"], "ok");
    let (_, models) = daemon.get("/v1/models");
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("nano")));
    let (status, tokens) = daemon.post("/tokenize", &json!({"text": "Hello."}));
    let hello = json!({"ids": [15496, 13], "tokens": ["Hello", "."], "count": 2});
    assert_eq!((status, tokens), (200, hello));
    assert_eq!(
        daemon.post("/detokenize", &json!({"ids": [15496, 13]})).1,
        json!({"text": "Hello."})
    );
    assert_eq!(daemon.post("/detokenize", &json!({"ids": []})).1, json!({"text": ""}));
    assert_eq!(daemon.get("/ready").0, 200);
    let card = &daemon.get("/v1/models").1["data"][0];
    assert_eq!((&card["n_layer"], &card["dtype"]), (&json!(4), &json!("f32")));
    // Every endpoint is described, and every one that is described is there.
    let api = daemon.get("/openapi.json").1;
    for (path, methods) in api["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = &path.replace("{model}", "nano");
            let status = match method.as_str() {
                "get" => daemon.get(path).0,
                _ => daemon.post(path, &json!({})).0,
            };
            assert!(matches!(status, 200 | 400), "{method} {path}: {status}");
            assert!(methods[method]["responses"]["200"].is_object());
        }
    }
    assert_eq!(api["paths"].as_object().unwrap().len(), 9);
    assert_eq!(daemon.get("/v1/models/nano").1, *card);
    for other in ["gpt-5", "nano/", "a/b", "%ff"] {
        let (status, answer) = daemon.get(&format!("/v1/models/{other}"));
        let code = &answer["error"]["code"];
        assert_eq!((status, code), (404, &json!("model_not_found")), "{other}");
    }
}

#[test]
fn tokens_whose_bytes_are_no_text_are_spelled_out() {
    let daemon = Daemon::start(&[]);
    // A treble clef is four bytes, in tokens that are parts of it.
    let (_, clef) = daemon.post("/tokenize", &json!({"text": "\u{1d11e}"}));
    let tokens: Vec<&str> =
        clef["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert!(tokens.len() > 1 && tokens.iter().all(|t| t.starts_with("bytes:\\x")), "{tokens:?}");
    let joined = tokens.join("").replace("bytes:", "");
    assert_eq!(joined, "\\xf0\\x9d\\x84\\x9e");
    let echoed = daemon
        .complete(json!({"prompt": clef["ids"], "echo": true, "max_tokens": 0, "logprobs": 1}));
    assert_eq!(text(&echoed), "\u{1d11e}");
    assert_eq!(echoed["choices"][0]["logprobs"]["tokens"], json!(tokens));
    assert_eq!(echoed["choices"][0]["logprobs"]["text_offset"], json!(vec![0; tokens.len()]));
}

#[test]
fn echo_gives_the_prompt_back_with_the_logprobs_that_it_had_as_an_answer() {
    let daemon = Daemon::start(&[]);
    let ask = json!({"prompt": "Hello.", "max_tokens": 40, "temperature": 0, "ignore_eos": true, "logprobs": 2, "return_token_ids": true});
    let answer = daemon.complete(ask);
    let given = &answer["choices"][0]["logprobs"];
    let ids = answer["choices"][0]["token_ids"].as_array().unwrap();
    let prompt: Vec<Value> = [json!(15496), json!(13)].into_iter().chain(ids.clone()).collect();
    let echo = |more: Value| {
        let mut ask = json!({"prompt": prompt, "echo": true, "logprobs": 2, "temperature": 0, "return_token_ids": true});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.complete(ask)
    };
    for n in [0, 1] {
        let echoed = echo(json!({"max_tokens": n}));
        let choice = &echoed["choices"][0];
        let found = &choice["logprobs"];
        assert!(text(&echoed).starts_with(&format!("Hello.{}", text(&answer))));
        assert_eq!(found["token_logprobs"][0], Value::Null);
        assert_eq!(found["top_logprobs"][0], Value::Null);
        assert_eq!(found["tokens"].as_array().unwrap().len(), 42 + n);
        assert_eq!(choice["token_ids"].as_array().unwrap().len(), 42 + n);
        assert_eq!(choice["finish_reason"], "length");
        // To the bit: a prompt in one piece gives what it gave token by token.
        for key in ["tokens", "token_logprobs", "top_logprobs"] {
            let (found, given) = (found[key].as_array().unwrap(), given[key].as_array().unwrap());
            assert_eq!(found[2..42], given[..], "{key}");
        }
        let offsets = found["text_offset"].as_array().unwrap();
        assert_eq!((&offsets[..3], offsets.len()), (&[json!(0), json!(5), json!(6)][..], 42 + n));
        assert_eq!(echoed["usage"]["completion_tokens"], n);
    }
    // Without logprobs, and streamed.
    let echoed = daemon.complete(json!({"prompt": "Hello.", "echo": true, "max_tokens": 0}));
    assert_eq!((text(&echoed), &echoed["choices"][0]["logprobs"]), ("Hello.".into(), &Value::Null));
    let whole = echo(json!({"max_tokens": 3}));
    let parts = streamed(
        &daemon,
        json!({"prompt": prompt, "echo": true, "logprobs": 2, "temperature": 0, "max_tokens": 3}),
    );
    let joined: String = parts.iter().map(text).collect();
    assert_eq!(joined, text(&whole));
    assert_eq!(parts[0]["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 42);
}

/// The chunks of a stream, without the last line.
fn streamed(daemon: &Daemon, mut ask: Value) -> Vec<Value> {
    ask["stream"] = json!(true);
    let response = agent().post(format!("{}/v1/completions", daemon.url)).send_json(&ask).unwrap();
    let body = response.into_body().read_to_string().unwrap();
    let lines: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    let (last, chunks) = lines.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

#[test]
fn several_prompts_with_several_answers_each_are_what_each_is_alone() {
    let daemon = Daemon::start(&[]);
    let ask = json!({"max_tokens": 8, "temperature": 0.9, "seed": 5, "ignore_eos": true, "n": 3});
    let with = |prompt: Value| {
        let mut ask = ask.clone();
        ask["prompt"] = prompt;
        ask
    };
    let both = daemon.complete(with(json!(["Hello.", "And the"])));
    let texts = |answer: &Value| -> Vec<String> {
        answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap().into())
            .collect()
    };
    let alone = [daemon.complete(with(json!("Hello."))), daemon.complete(with(json!("And the")))];
    assert_eq!(texts(&both), [texts(&alone[0]), texts(&alone[1])].concat());
    let indices: Vec<u64> =
        both["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        both["usage"],
        json!({"prompt_tokens": 4, "completion_tokens": 48, "total_tokens": 52})
    );
    // Three draws, and the first of them is that of n = 1.
    let mut one = with(json!("Hello."));
    one["n"] = json!(1);
    assert_eq!(texts(&daemon.complete(one))[0], texts(&alone[0])[0]);
    assert_ne!(texts(&alone[0])[0], texts(&alone[0])[1]);
    // Streamed, parts of all of them come as they are made.
    let parts = streamed(&daemon, with(json!(["Hello.", "And the"])));
    let mut joined = vec![String::new(); 6];
    for part in &parts {
        joined[part["choices"][0]["index"].as_u64().unwrap() as usize].push_str(&text(part));
    }
    assert_eq!(joined, texts(&both));
}

#[test]
fn bias_and_penalties_change_what_is_chosen() {
    let daemon = Daemon::start(&[]);
    let ask = |more: Value| {
        let mut ask = json!({"prompt": "And the", "max_tokens": 30, "temperature": 0, "ignore_eos": true, "return_token_ids": true});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let ids = daemon.complete(ask)["choices"][0]["token_ids"].clone();
        ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<u64>>()
    };
    let plain = ask(json!({}));
    assert_eq!(ask(json!({"logit_bias": {"13": 100}})), vec![13; 30]);
    assert!(!ask(json!({"logit_bias": {plain[0].to_string(): -100}})).contains(&plain[0]));
    let distinct = |ids: &[u64]| ids.iter().collect::<std::collections::HashSet<_>>().len();
    let frequent = ask(json!({"frequency_penalty": 2}));
    let present = ask(json!({"presence_penalty": 2}));
    assert!(distinct(&frequent) > distinct(&plain), "{plain:?} {frequent:?}");
    assert!(distinct(&present) > distinct(&plain), "{plain:?} {present:?}");
    assert_eq!(
        ask(json!({"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}})),
        plain
    );
}

#[test]
fn text_and_ids_whole_and_streamed_give_what_generate_gives() {
    let daemon = Daemon::start(&[]);
    let ask = json!({"prompt": "Hello.", "max_tokens": 10, "temperature": 0, "ignore_eos": true, "return_token_ids": true});
    let whole = daemon.complete(ask.clone());
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12})
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "length");

    let mut by_ids = ask.clone();
    by_ids["prompt"] = json!([15496, 13]);
    assert_eq!(daemon.complete(by_ids)["choices"], whole["choices"]);

    for one in [json!(["Hello."]), json!([[15496, 13]])] {
        let mut listed = ask.clone();
        listed["prompt"] = one;
        assert_eq!(daemon.complete(listed)["choices"], whole["choices"]);
    }

    let printed = Command::new(env!("CARGO_BIN_EXE_llorch-cpud"))
        .args(["generate", "Hello.", "-n", "10", "--model", "nano"])
        .output()
        .unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(
        printed.trim_end_matches('\n').ends_with(text(&whole).trim_end_matches('\n')),
        "{printed:?}"
    );

    let mut streamed = ask;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let response =
        agent().post(format!("{}/v1/completions", daemon.url)).send_json(&streamed).unwrap();
    let body = response.into_body().read_to_string().unwrap();
    let lines: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    let (last, chunks) = lines.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
    let joined: String = chunks.iter().map(text).collect();
    assert_eq!(joined, text(&whole));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stop_string_ends_the_text_before_itself() {
    let daemon = Daemon::start(&[]);
    let ask = |stop: Value| json!({"prompt": "Hello.", "max_tokens": 24, "temperature": 0, "ignore_eos": true, "stop": stop});
    let whole = text(&daemon.complete(ask(Value::Null)));
    // Some four characters from the middle, so that they cross a token's border.
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(4).collect();
    let stopped = daemon.complete(ask(json!([middle])));
    assert_eq!(text(&stopped), whole[..whole.find(&middle).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn the_same_seed_draws_the_same_text_and_logprobs_are_those_of_the_tokens() {
    let daemon = Daemon::start(&[]);
    let ask = |seed: u64| json!({"prompt": "In the", "max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": seed, "logprobs": 3});
    let (a, b) = (daemon.complete(ask(7)), daemon.complete(ask(7)));
    assert_eq!(a["choices"], b["choices"]);
    let seeds: Vec<String> = (0..5).map(|s| text(&daemon.complete(ask(s)))).collect();
    assert!(seeds.iter().any(|t| *t != seeds[0]), "five seeds gave one text: {seeds:?}");
    let l = &a["choices"][0]["logprobs"];
    let n = a["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert_eq!(l["tokens"].as_array().unwrap().len(), n);
    for i in 0..n {
        let chosen = l["token_logprobs"][i].as_f64().unwrap();
        let top = l["top_logprobs"][i].as_object().unwrap();
        let best = top.values().map(|p| p.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!(chosen <= best && best < 0.0 && (3..=4).contains(&top.len()), "{chosen} {top:?}");
        assert_eq!(top[l["tokens"][i].as_str().unwrap()], chosen, "itself too, likely or not");
    }
    // None of the most likely ones is asked for: the token's own all the same.
    let none =
        daemon.complete(json!({"prompt": "In the", "max_tokens": 0, "echo": true, "logprobs": 0}));
    let l = &none["choices"][0]["logprobs"];
    assert_eq!(l["top_logprobs"], json!([null, {" the": l["token_logprobs"][1]}]));
}

/// Evaluation harnesses ask for one token more than they want, and take the last entry away.
#[test]
fn the_token_that_ends_the_text_has_its_place_among_the_others() {
    let daemon = Daemon::start(&[]);
    let ask = |more: Value| {
        let mut ask = json!({"prompt": [15496, 13, 198], "max_tokens": 5, "temperature": 0, "logprobs": 1,
            "logit_bias": {"50256": 100}, "return_token_ids": true});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    let ended = daemon.complete(ask(json!({})));
    let choice = &ended["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
    let l = &choice["logprobs"];
    assert_eq!((&l["tokens"], &l["text_offset"]), (&json!(["<|endoftext|>"]), &json!([0])));
    assert!(l["token_logprobs"][0].as_f64().unwrap() < 0.0 && l["top_logprobs"][0].is_object());
    assert_eq!(choice["token_ids"], json!([50256]));
    assert_eq!(ended["usage"]["completion_tokens"], 1);
    for max_tokens in [1, 5] {
        let echoed = daemon.complete(ask(json!({"echo": true, "max_tokens": max_tokens})));
        let l = &echoed["choices"][0]["logprobs"];
        assert_eq!(l["tokens"], json!(["Hello", ".", "\n", "<|endoftext|>"]));
        assert_eq!(l["text_offset"], json!([0, 5, 6, 7]));
        assert_eq!(echoed["choices"][0]["text"], "Hello.\n");
    }
    let whole = streamed(&daemon, ask(json!({"stream_options": {"include_usage": true}})));
    let tokens = whole.iter().filter_map(|c| c["choices"][0]["logprobs"]["tokens"].as_array());
    assert_eq!(tokens.flatten().collect::<Vec<_>>(), ["<|endoftext|>"]);
    // The usage comes last; before it there is none, and that is said.
    let usages: Vec<_> = whole.iter().map(|c| c.get("usage").unwrap()).collect();
    let (last, before) = usages.split_last().unwrap();
    assert!(before.iter().all(|usage| usage.is_null()), "{usages:?}");
    assert_eq!(**last, ended["usage"]);
}

/// A byte that is no character waits for the next one, and no longer.
#[test]
fn bytes_that_become_no_character_do_not_hold_back_the_text() {
    let daemon = Daemon::start(&[]);
    // A continuation byte by itself, again and again.
    let ask = json!({"prompt": "a", "max_tokens": 6, "temperature": 0, "logit_bias": {"222": 100}, "logprobs": 0});
    let parts = streamed(&daemon, ask.clone());
    let texts: Vec<&str> =
        parts.iter().map(|p| p["choices"][0]["text"].as_str().unwrap()).collect();
    let one = "\u{fffd}";
    assert_eq!(texts, ["", one, one, one, one, one, one]);
    let offsets = &daemon.complete(ask)["choices"][0]["logprobs"]["text_offset"];
    assert_eq!(*offsets, json!([0, 0, 1, 2, 3, 4]));
}

#[test]
fn what_is_wrong_is_named_in_openais_form() {
    let daemon = Daemon::start(&[]);
    let cases = [
        (json!({}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "no tokens"),
        (json!({"prompt": [999999]}), 400, "999999"),
        (json!({"prompt": []}), 400, "no tokens"),
        (json!({"prompt": ["a", ""]}), 400, "no tokens"),
        (json!({"prompt": vec!["a"; 129]}), 400, "128"),
        (json!({"prompt": ["a", "b"], "n": 65}), 400, "128"),
        (json!({"prompt": "a b ".repeat(300)}), 400, "context"),
        (json!({"prompt": "a", "max_tokens": 0}), 400, "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 100000}), 400, "context"),
        (json!({"prompt": "a", "temperature": -1}), 400, "temperature"),
        (json!({"prompt": "a", "top_p": 0}), 400, "top_p"),
        (json!({"prompt": "a", "repetition_penalty": 1e-38}), 400, "0.01"),
        (json!({"prompt": "a", "seed": 9223372036854775808u64}), 400, "2^63 - 1"),
        (json!({"prompt": "a", "logprobs": 99}), 400, "0 to 5"),
        (json!({"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}), 400, "5 texts"),
        (json!({"prompt": "a", "stop": ""}), 400, "an empty text"),
        (json!({"prompt": "a", "top_k": -2}), 400, "-1 for all"),
        (json!({"prompt": "a", "n": 0}), 400, "n is 0"),
        (json!({"prompt": "a", "n": 129}), 400, "n is 129"),
        (json!({"prompt": "a", "best_of": 2}), 422, "best_of is not offered"),
        (json!({"prompt": "a", "suffix": "b"}), 422, "suffix is not offered"),
        (json!({"prompt": "a", "presence_penalty": 3}), 400, "presence_penalty"),
        (json!({"prompt": "a", "logit_bias": {"50257": 1}}), 400, "50257"),
        (json!({"prompt": "a", "logit_bias": {"x": 1}}), 400, "token id"),
        (json!({"prompt": "a", "logit_bias": {"1": 101}}), 400, "101"),
        (json!({"prompt": "a", "model": "gpt-5"}), 404, "gpt-5"),
        (json!({"prompt": "a", "max_tokens": "ten"}), 400, "ten"),
    ];
    for (body, status, says) in cases {
        let (found, answer) = daemon.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{body} {answer}");
        assert!(message.contains(says), "{body}: {message}");
        assert!(answer["error"]["type"].is_string(), "{answer}");
    }
    // Whatever the type is, the parameter is named, and nothing of how this program is written.
    let wrong_types = [
        ("prompt", json!({"max_tokens": 1})),
        ("prompt", json!({"prompt": {"text": "a"}})),
        ("max_tokens", json!({"prompt": "a", "max_tokens": "ten"})),
        ("max_tokens", json!({"prompt": "a", "max_tokens": -1})),
        ("temperature", json!({"prompt": "a", "temperature": "hot"})),
        ("seed", json!({"prompt": "a", "seed": 1.5})),
        ("n", json!({"prompt": "a", "n": -1})),
        ("n", json!({"prompt": "a", "n": "two"})),
        ("echo", json!({"prompt": "a", "echo": 1})),
        ("logit_bias", json!({"prompt": "a", "logit_bias": [1]})),
        ("user", json!({"prompt": "a", "user": 5})),
        ("stop", json!({"prompt": "a", "stop": [1]})),
        ("stream", json!({"prompt": "a", "stream": "yes"})),
        ("stream_options", json!({"prompt": "a", "stream_options": []})),
        ("model", json!({"prompt": "a", "model": ["x".repeat(500)]})),
    ];
    for (param, body) in wrong_types {
        let (status, answer) = daemon.post("/v1/completions", &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
        assert!(message.starts_with(param) && message.contains("expected"), "{message}");
        assert!(message.len() < 150, "{message}");
    }
    let (status, answer) = daemon.post("/tokenize", &json!({"text": 5}));
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("text")), "{answer}");
    let (status, answer) = daemon.post("/v1/completions", &json!([]));
    let message = "the body is []; expected a JSON object";
    assert_eq!((status, answer["error"]["message"].as_str()), (400, Some(message)));
    // A client whose language has one kind of numbers.
    let float =
        daemon.complete(json!({"prompt": [15496.0], "max_tokens": 2.0, "ignore_eos": true}));
    assert_eq!(float["usage"]["completion_tokens"], 2);
    // A client that writes null where it wants nothing said.
    let all = json!({"prompt": "a", "max_tokens": 1, "top_k": -1});
    assert_eq!(daemon.post("/v1/completions", &all).0, 200);
    let nulls = json!({"prompt": "a", "max_tokens": 1, "stream": null, "stop": null, "n": null});
    assert_eq!(daemon.post("/v1/completions", &nulls).0, 200);
    assert_eq!(daemon.get("/nothing").0, 404);
    assert_eq!(daemon.get("/v1/completions").0, 405);
    // Just beyond the limit of 1 MiB: of a much longer body the daemon would not read the rest, and
    // the client might still be writing when the connection is closed.
    let huge = json!({"prompt": "a".repeat(1 << 20)});
    assert_eq!(daemon.post("/v1/completions", &huge).0, 413);
    // And it is still there.
    assert_eq!(daemon.get("/health").0, 200);
}
