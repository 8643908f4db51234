//! The harness's end of the pipes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use llorch_trace::Tensor;
use llorch_trace::files::read_npy;
use llorch_trace::protocol::{DoneMessage, ErrorMessage, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Adapter {
    child: Child,
    output: BufReader<ChildStdout>,
    pub folder: TempDir,
}

/// Tensors of one case by step and point, and how it ended.
#[derive(Debug)]
pub struct Case {
    pub tensors: BTreeMap<(usize, String), Tensor>,
    pub done: DoneMessage,
}

impl Adapter {
    /// A started process and an empty folder for its models and tensors.
    // This package has no supervisor to start processes through.
    #[allow(clippy::disallowed_methods)]
    pub fn start(args: &[&str]) -> Adapter {
        let mut child = Command::new(env!("CARGO_BIN_EXE_llorch-adapter-candle"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Adapter { child, output, folder: tempfile::tempdir().unwrap() }
    }

    pub fn send(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn receive(&mut self) -> Response {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    pub fn ask(&mut self, request: &Value) -> Response {
        self.send(&format!("{request}\n"));
        self.receive()
    }

    pub fn load(&mut self, dtype: &str) -> Response {
        let folder = self.folder.path().to_path_buf();
        self.ask(&json!({"type": "load", "model_dir": folder, "dtype": dtype, "threads": 2}))
    }

    pub fn fails(&mut self, request: &Value) -> ErrorMessage {
        match self.ask(request) {
            Response::Error(error) => error,
            other => panic!("{request} was answered by {other:?}"),
        }
    }

    /// A run request with the tests' defaults; `extra` adds fields and replaces them.
    pub fn request(&self, ids: &[u32], extra: Value) -> Value {
        let mut request = json!({"type": "run", "id": "case", "ids": ids, "points": [],
            "max_new_tokens": 0, "forced_ids": null,
            "sampling": {"temperature": 0, "top_k": 0, "top_p": 1, "seed": 0}, "inject": [],
            "out_dir": self.folder.path().join("out")});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        request
    }

    pub fn run(&mut self, ids: &[u32], extra: Value) -> Case {
        let request = self.request(ids, extra);
        self.send(&format!("{request}\n"));
        let mut tensors = BTreeMap::new();
        loop {
            match self.receive() {
                Response::Tensor(message) => {
                    assert!(message.file.is_absolute() && message.id == "case", "{message:?}");
                    let tensor = read_npy(&message.file).unwrap();
                    assert_eq!((&tensor.shape, tensor.dtype()), (&message.shape, message.dtype));
                    assert!(tensors.insert((message.step, message.point), tensor).is_none());
                }
                Response::Done(done) => return Case { tensors, done },
                other => panic!("{request} was answered by {other:?}"),
            }
        }
    }

    /// Closes stdin; gives the exit code.
    pub fn finish(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().code()
    }
}

impl Case {
    pub fn get(&self, step: usize, point: &str) -> Vec<f64> {
        let tensor = self.tensors.get(&(step, point.to_string()));
        tensor.unwrap_or_else(|| panic!("{point} at step {step} is missing")).to_f64()
    }
}
