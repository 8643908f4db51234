//! `trace`: the adapter protocol, spoken in memory.

use std::io::{BufReader, Cursor, Write};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use llorch_cpud::trace::serve;
use llorch_trace::files::read_npy;
use llorch_trace::{PointSet, all_points};
use serde_json::{Value, json};

use crate::support::{TinyModel, capture, prompt};

/// Sends requests, returns the answers.
fn talk(requests: &[Value]) -> Vec<Value> {
    let lines: String = requests.iter().map(|r| format!("{r}\n")).collect();
    talk_raw(lines.into_bytes())
}

fn talk_raw(lines: Vec<u8>) -> Vec<Value> {
    let mut out = Vec::new();
    serve(BufReader::new(Cursor::new(lines)), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn load(dir: &Path) -> Value {
    json!({"type": "load", "model_dir": dir, "dtype": "f32", "threads": 1})
}

fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    TinyModel::new(4, 96).write(dir.path());
    dir
}

#[test]
fn says_who_it_is_and_what_it_can() {
    let answers = talk(&[json!({"type": "hello", "protocol": 1, "future": true})]);
    assert_eq!(
        (&answers[0]["type"], &answers[0]["name"]),
        (&"hello".into(), &"llorch-cpud".into())
    );
    let capabilities = answers[0]["capabilities"].as_array().unwrap();
    for capability in
        ["capture", "tokenize", "generate", "inject", "sample", "draw", "batch", "deterministic"]
    {
        assert!(capabilities.contains(&capability.into()), "{capability}");
    }
    assert_eq!(answers[0]["unsupported"], json!([]));
    for (pattern, _) in answers[0]["recipes"].as_object().unwrap() {
        let set = PointSet::new(&[pattern]);
        assert!(
            all_points(2).into_iter().any(|at| set.contains_point(at)),
            "{pattern} is no point"
        );
    }
    let answers = talk(&[json!({"type": "hello", "protocol": 2})]);
    assert_eq!(answers[0]["class"], "unsupported");
}

#[test]
fn a_run_leaves_every_point_of_every_step_in_files() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let ids = prompt(5);
    let answers = talk(&[
        load(model.path()),
        json!({"type": "run", "id": "a", "ids": ids, "points": ["*"], "max_new_tokens": 3,
            "forced_ids": [7, 8, 9], "out_dir": out.path().join("deep/er")}),
    ]);
    assert_eq!(answers[0]["type"], "loaded");
    let done = answers.last().unwrap();
    assert_eq!(
        (&done["type"], &done["generated"], &done["text"]),
        (&"done".into(), &json!([7, 8, 9]), &Value::Null)
    );
    assert!(done["seconds"]["prefill"].as_f64().unwrap() > 0.0);

    let (captured, _) =
        capture(&TinyModel::new(4, 96).load(1), &ids, &[7, 8, 9], Default::default());
    let tensors = &answers[1..answers.len() - 1];
    assert_eq!(tensors.len(), 3 * all_points(2).len());
    for message in tensors {
        let step = message["step"].as_u64().unwrap() as usize;
        let point = message["point"].as_str().unwrap().parse().unwrap();
        let tensor = read_npy(Path::new(message["file"].as_str().unwrap())).unwrap();
        assert_eq!(message["shape"], json!(tensor.shape));
        assert_eq!(message["dtype"], tensor.dtype().name());
        assert_eq!(tensor, captured[&(step, point)], "{point} in step {step}");
    }
}

#[test]
fn injection_by_file_and_key_reaches_the_run() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let run = |id: &str, ids: Vec<u32>, inject: Value| {
        json!({"type": "run", "id": id, "ids": ids, "points": ["h.1", "logits.last"], "inject": inject,
            "max_new_tokens": 1, "out_dir": out.path().join(id)})
    };
    let file = out.path().join("first/0000_h.1.npy");
    talk(&[load(model.path()), run("first", prompt(4), json!([]))]);
    let key_file = out.path().join("key.safetensors");
    let tensor = read_npy(&file).unwrap();
    let bytes = tensor.data.to_le_bytes();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, tensor.shape.clone(), &bytes);
    std::fs::write(&key_file, safetensors::serialize([("k", view.unwrap())], None).unwrap())
        .unwrap();
    let answers = talk(&[
        load(model.path()),
        run("second", vec![1, 2, 3, 4], json!([{"point": "h.1", "step": 0, "file": file}])),
        run(
            "third",
            vec![1, 2, 3, 4],
            json!([{"point": "h.1", "step": 0, "file": key_file, "key": "k"}]),
        ),
    ]);
    assert_eq!(answers.iter().filter(|a| a["type"] == "done").count(), 2, "{answers:?}");
    let last = |id: &str| read_npy(&out.path().join(id).join("0000_logits.last.npy")).unwrap();
    assert_eq!(last("first"), last("second"));
    assert_eq!(last("first"), last("third"));
}

#[test]
fn sampling_follows_its_seed_and_leaves_nothing_behind() {
    let model = tiny();
    let run = |id: &str, seed: u64| {
        json!({"type": "run", "id": id, "ids": [1, 2], "max_new_tokens": 12, "out_dir": "/unused",
            "sampling": {"temperature": 1.5, "top_k": 0, "top_p": 1, "seed": seed}})
    };
    let greedy = json!({"type": "run", "id": "g", "ids": [1, 2], "max_new_tokens": 12, "out_dir": "/unused"});
    let answers =
        talk(&[load(model.path()), run("a", 1), greedy.clone(), run("b", 1), run("c", 2), greedy]);
    let ids: Vec<&Value> = answers[1..].iter().map(|a| &a["generated"]).collect();
    assert_eq!((ids[0], ids[1]), (ids[2], ids[4]));
    assert!(ids[0] != ids[3] && ids[0] != ids[1], "{ids:?}");
    assert!(!Path::new("/unused").exists(), "no points, no folder");
}

#[test]
fn draws_follow_the_seed_and_the_first_is_that_of_a_run() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let sampling = |seed: u64| json!({"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": seed});
    let run = |seed: u64| {
        json!({"type": "run", "id": "r", "ids": [1, 2], "points": ["logits.last"], "max_new_tokens": 1,
            "sampling": sampling(seed), "out_dir": out.path()})
    };
    let draw = |id: &str, seed: u64, draws: usize| {
        json!({"type": "draw", "id": id, "logits": {"file": out.path().join("0000_logits.last.npy")},
            "sampling": sampling(seed), "draws": draws, "out_dir": out.path().join(id)})
    };
    let (many, again) = (draw("many", 1, 3000), draw("again", 1, 3000));
    let requests =
        [load(model.path()), run(1), many, again, draw("few", 1, 3), draw("other", 2, 3000)];
    let answers = talk(&requests);
    assert_eq!(answers.len(), 3 + 2 * 4, "{answers:#?}");
    let message = &answers[3];
    assert_eq!(
        (&message["point"], &message["dtype"], &message["shape"]),
        (&"draws".into(), &"i64".into(), &json!([3000]))
    );
    let drawn = |id: &str| read_npy(&out.path().join(id).join("0000_draws.npy")).unwrap().to_f64();
    let (many, few) = (drawn("many"), drawn("few"));
    assert!(many == drawn("again") && many != drawn("other") && many[..3] == few);
    assert_eq!(answers[2]["generated"], json!([many[0] as u32]));
    let mut kept = many.clone();
    kept.sort_by(f64::total_cmp);
    kept.dedup();
    assert!(kept.len() > 1 && kept.len() <= 20, "{} tokens pass top-k", kept.len());
}

#[test]
fn every_mistake_is_answered_with_its_class_and_the_next_request_served() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let wrong = out.path().join("wrong.npy");
    llorch_trace::files::write_npy(&wrong, &llorch_trace::Tensor::f32(vec![2], vec![0.0; 2]))
        .unwrap();
    let run = |change: Value| {
        let mut run = json!({"type": "run", "id": "r", "ids": [1], "max_new_tokens": 1, "out_dir": out.path()});
        run.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        run
    };
    let inject = |point: &str, step: usize, file: &Path| {
        run(json!({"inject": [{"point": point, "step": step, "file": file}]}))
    };
    let row = out.path().join("row.npy");
    llorch_trace::files::write_npy(&row, &llorch_trace::Tensor::f32(vec![2], vec![f32::NAN; 2]))
        .unwrap();
    let draw = |change: Value| {
        let mut draw = json!({"type": "draw", "id": "r", "logits": {"file": wrong}, "draws": 1,
            "sampling": {"temperature": 1}, "out_dir": out.path()});
        draw.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        draw
    };
    let square = out.path().join("square.npy");
    llorch_trace::files::write_npy(&square, &llorch_trace::Tensor::f32(vec![1, 1], vec![0.0]))
        .unwrap();
    let before = [
        (run(json!({})), "input", "no model is loaded"),
        (
            json!({"type": "load", "model_dir": model.path(), "dtype": "f64", "threads": 1}),
            "unsupported",
            "f64",
        ),
        (
            json!({"type": "load", "model_dir": "/nowhere", "dtype": "f32", "threads": 1}),
            "input",
            "/nowhere",
        ),
    ];
    let after = [
        (run(json!({"ids": []})), "input", "no tokens"),
        (run(json!({"ids": [300]})), "input", "token id 300"),
        (run(json!({"max_new_tokens": 161})), "input", "161 positions"),
        (run(json!({"ids": [-1]})), "input", "-1"),
        (run(json!({"ids": "no"})), "input", "run"),
        (run(json!({"forced_ids": [1, 2]})), "input", "2 forced ids"),
        (run(json!({"sampling": {"temperature": -1}})), "input", "temperature is -1"),
        (inject("h.9", 0, &wrong), "input", "2 layers"),
        (inject("h.0.nothing", 0, &wrong), "input", "h.0.nothing"),
        (inject("h.0", 1, &wrong), "input", "1 steps"),
        (inject("h.0", 0, &wrong), "input", "[1, 96]"),
        (inject("h.0", 0, Path::new("/nowhere.npy")), "input", "/nowhere.npy"),
        (draw(json!({"sampling": {"temperature": 0}})), "input", "temperature is 0"),
        (draw(json!({"sampling": {"temperature": 1, "top_p": 2}})), "input", "top_p is 2"),
        (draw(json!({"draws": 200_000_000})), "input", "at most 100000000"),
        (draw(json!({"draws": -1})), "input", "-1"),
        (draw(json!({"logits": {"file": "/nowhere.npy"}})), "input", "/nowhere.npy"),
        (draw(json!({"logits": {"file": square}})), "input", "[1, 1]"),
        (draw(json!({"logits": {"file": row}})), "internal", "NaN"),
        (json!({"type": "tokenize", "id": "t", "text": "x"}), "unsupported", "no tokenizer"),
        (json!({"type": "dance", "id": "d"}), "unsupported", "dance"),
        (json!({"id": "none"}), "unsupported", "type"),
        (json!([1]), "input", "expected a JSON object"),
    ];
    let mut requests: Vec<Value> = before.iter().map(|(r, ..)| r.clone()).collect();
    requests.push(load(model.path()));
    requests.extend(after.iter().map(|(r, ..)| r.clone()));
    requests.push(run(json!({})));
    let mut answers = talk(&requests);
    assert_eq!(answers.pop().unwrap()["type"], "done", "it goes on");
    assert_eq!(answers.remove(before.len())["type"], "loaded");
    assert_eq!(answers.len(), before.len() + after.len(), "one answer each: {answers:#?}");
    for ((request, class, part), answer) in before.iter().chain(&after).zip(&answers) {
        assert_eq!(
            (&answer["type"], &answer["class"]),
            (&"error".into(), &(*class).into()),
            "{request}: {answer}"
        );
        assert!(answer["message"].as_str().unwrap().contains(part), "{request}: {answer}");
        assert_eq!(answer["id"], request.get("id").cloned().unwrap_or(Value::Null), "{request}");
    }
    let answers = talk_raw(b"not json\n\xff\xfe\n\n{\"type\":\"hello\",\"protocol\":1}".to_vec());
    let types: Vec<&str> = answers.iter().map(|a| a["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["error", "error", "hello"], "an empty line is nothing");
}

/// Hands each answer on as soon as it is written.
struct Answers(Sender<Value>);

impl Write for Answers {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.send(serde_json::from_slice(line).unwrap()).unwrap();
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn several_sequences_go_on_as_each_does_alone() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let sampling = json!({"temperature": 1.5, "top_k": 0, "top_p": 1, "seed": 3});
    let run = |ids: Value| json!({"type": "run", "id": "a", "ids": ids, "max_new_tokens": 12, "sampling": sampling});
    let with = |key: &str, value: Value| {
        let mut request = run(json!([1, 2]));
        request["beside"] = json!([[3], [4, 5, 6]]);
        request[key] = value;
        request
    };
    let mut watched = with("points", json!(["tokens"]));
    watched["out_dir"] = json!(out.path());
    let answers = talk(&[
        load(model.path()),
        run(json!([1, 2])),
        run(json!([3])),
        run(json!([4, 5, 6])),
        with("text", json!(false)),
        with("beside", json!([[3], []])),
        watched,
        run(json!([1, 2])),
    ]);
    let alone: Vec<&Value> = answers[1..4].iter().map(|a| &a["generated"]).collect();
    assert_eq!(&answers[4]["generated"], alone[0]);
    assert_eq!(answers[4]["beside"], json!([alone[1], alone[2]]));
    assert!(answers[4]["seconds"]["decode"].as_f64().unwrap() > 0.0);
    for refused in &answers[5..7] {
        assert_eq!(refused["class"], "input", "{refused}");
    }
    assert_eq!(&answers[7]["generated"], alone[0], "what was refused left nothing behind");
    assert!(answers[7].get("beside").is_none(), "{}", answers[7]);
}

#[test]
fn cancel_stops_a_run_that_is_going_on_and_one_that_waits() {
    let (model, out) = (tiny(), tempfile::tempdir().unwrap());
    let (requests, mut write) = std::io::pipe().unwrap();
    let (send, answers) = channel();
    let server = std::thread::spawn(move || serve(BufReader::new(requests), &mut Answers(send)));
    let run = |id: &str, n: usize| json!({"type": "run", "id": id, "ids": [1], "points": ["tokens"], "max_new_tokens": n, "out_dir": out.path().join(id)});
    for request in [load(model.path()), run("long", 160), run("waiting", 3), run("next", 1)] {
        writeln!(write, "{request}").unwrap();
    }
    assert_eq!(answers.recv().unwrap()["type"], "loaded");
    assert_eq!(answers.recv().unwrap()["type"], "tensor");
    writeln!(
        write,
        "{}\n{}",
        json!({"type": "cancel", "id": "waiting"}),
        json!({"type": "cancel", "id": "long"})
    )
    .unwrap();
    drop(write);
    let mut ends = answers.iter().filter(|a| a["type"] != "tensor");
    for id in ["long", "waiting"] {
        let end = ends.next().unwrap();
        assert_eq!(
            (&end["id"], &end["class"], &end["message"]),
            (&id.into(), &"resource".into(), &"cancelled".into())
        );
    }
    assert_eq!(ends.next().unwrap()["type"], "done");
    assert!(ends.next().is_none());
    server.join().unwrap().unwrap();
}
