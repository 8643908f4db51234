//! The handshake: who it says that it is, and how it takes what it can't know.

use llorch_trace::protocol::{ErrorClass, PROTOCOL_VERSION, Response};
use serde_json::{Value, json};

use super::bench::Bench;
use super::check::{Stop, none_of};

/// The first process has been started by whoever runs the checks.
pub fn hello(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let hello = bench.greet(json!({"type": "hello", "protocol": PROTOCOL_VERSION}))?;
    let mut problems = Vec::new();
    let mut check = |good: bool, what: String| {
        if !good {
            problems.push(what);
        }
    };
    check(hello.protocol == PROTOCOL_VERSION, format!("protocol is {}", hello.protocol));
    check(!hello.name.trim().is_empty(), "name is empty".into());
    check(!hello.version.trim().is_empty(), "version is empty".into());
    for entry in &hello.unsupported {
        let good = !entry.point.is_empty() && !entry.reason.trim().is_empty();
        check(good, format!("unsupported {:?} has no reason", entry.point));
    }
    for entry in &hello.deviations {
        let bound = entry.bound.is_finite() && entry.bound > 0.0;
        check(bound, format!("the deviation at {} has bound {}", entry.point, entry.bound));
        let reason = !entry.reason.trim().is_empty();
        check(reason, format!("the deviation at {} has no reason", entry.point));
    }
    check(!hello.can("draw") || hello.can("sample"), "draw is declared without sample".into());
    check(
        !hello.can("inject") || hello.can("capture"),
        "inject is declared without capture".into(),
    );
    let sent = bench.sent();
    none_of(&problems, &sent, "what the table of `hello` says")?;
    bench.hello = Some(hello);
    Ok(())
}

pub fn another_protocol(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.fresh()?;
    bench.refuses(&json!({"type": "hello", "protocol": 2}), ErrorClass::Unsupported, None)
}

pub fn unknown_fields(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ungreeted()?;
    let with = |mut request: Value| {
        request["llorch_unknown"] = json!({"of": [1, null]});
        request
    };
    bench.greet(with(json!({"type": "hello", "protocol": PROTOCOL_VERSION})))?;
    let load = bench.load_request(bench.setup.model_dir);
    bench.load(with(load))?;
    let sampling = json!({"temperature": 0, "llorch_unknown": true});
    bench.done(with(json!({"sampling": sampling}))).map(|_| ())
}

pub fn unknown_type(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    bench.refuses(&json!({"type": "llorch_unknown"}), ErrorClass::Unsupported, None)?;
    // What has no type at all is as wrong as it is unknown.
    for request in [json!({"type": 3}), json!({})] {
        let expected = "an error of class unsupported or input, without an id";
        match bench.ask(&request, expected, bench.setup.limits.case)? {
            Response::Error(error) if error.class == ErrorClass::Input => {
                bench.is_refusal(&error, ErrorClass::Input, None)?;
            }
            Response::Error(error) => bench.is_refusal(&error, ErrorClass::Unsupported, None)?,
            other => return Err(bench.unexpected(&other, expected)),
        }
    }
    bench.alive()
}

pub fn bad_lines(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    for line in ["no JSON", "[1,2]", "{\"type\":\"run\"", "{\"type\":\"run\",\"id\":NaN}"] {
        bench.send_raw(line)?;
        bench.hears_refusal(ErrorClass::Input, None)?;
    }
    // A blank line is no message: the answer to what comes behind it is the next.
    bench.send_raw("   ")?;
    bench.alive()
}

/// What isn't declared is refused by name, never silently passed over.
pub fn undeclared(bench: &mut Bench<'_>) -> Result<(), Stop> {
    bench.ready()?;
    let mut tried = 0;
    if !bench.can("tokenize") {
        let request = json!({"type": "tokenize", "id": "t", "text": "Hello."});
        bench.refuses(&request, ErrorClass::Unsupported, Some("t"))?;
        tried += 1;
    }
    if !bench.can("draw") {
        let (file, out) = (bench.input_file("logits.npy"), bench.input_file("draws"));
        let request = json!({"type": "draw", "id": "d", "logits": {"file": file, "key": null},
            "sampling": {"temperature": 1}, "draws": 1, "out_dir": out});
        bench.send(&request)?;
        let expected = "an error of class unsupported with id d, or without one";
        let limit = std::time::Instant::now() + bench.setup.limits.case;
        match bench.receive(expected, limit)? {
            // Who doesn't know `draw` at all answers as to any unknown type.
            Response::Error(error) if error.id.is_none() => {
                bench.is_refusal(&error, ErrorClass::Unsupported, None)?;
            }
            Response::Error(error) => {
                bench.is_refusal(&error, ErrorClass::Unsupported, Some("d"))?;
            }
            other => return Err(bench.unexpected(&other, expected)),
        }
        tried += 1;
    }
    if !bench.can("inject") {
        let file = bench.input_file("injected.npy");
        let inject = json!([{"point": "h.0", "step": 0, "file": file}]);
        let request = bench.run_request(json!({"inject": inject}));
        let id = request["id"].as_str().unwrap_or_default().to_string();
        bench.refuses(&request, ErrorClass::Unsupported, Some(&id))?;
        tried += 1;
    }
    match tried {
        0 => Err(Stop::Skip("every capability is declared".into())),
        _ => bench.alive(),
    }
}
