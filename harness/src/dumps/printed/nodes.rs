//! Headers and elements of a whole file put together.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use llorch_trace::Dtype;

use super::header::{self, Header};
use super::rows::Rows;
use super::{Cells, PrintedError, PrintedFile, PrintedNode};

/// Whether a graph begins with it: the embeddings of the tokens are looked up.
fn is_first(header: &Header) -> bool {
    header.op == "GET_ROWS" && header.source == "token_embd.weight"
}

pub fn read(path: &Path) -> Result<PrintedFile, PrintedError> {
    let file = File::open(path).map_err(|e| PrintedError::new(path, e))?;
    let mut reader = Reader::new(path);
    let mut lines = BufReader::new(file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let n = lines.read_until(b'\n', &mut bytes).map_err(|e| PrintedError::new(path, e))?;
        if n == 0 {
            break;
        }
        reader.line(&String::from_utf8_lossy(&bytes));
    }
    reader.end();
    if reader.headers == 0 {
        let what = "no line of it is a node that llama-eval-callback printed (`common_debug_cb_eval: \
                    attn_norm-0 = (f32) ADD(…) = {…}`); expected that, a bundle, a folder of .npy \
                    files, a .npz, a .safetensors or a .pt";
        return Err(PrintedError::new(path, what));
    }
    reader.check_evaluations()?;
    Ok(reader.found)
}

/// What is known of a node that later ones name as their source.
struct Made {
    op: String,
    source: String,
    /// Its place among the nodes, if it was printed whole.
    node: Option<usize>,
}

struct Reader<'a> {
    path: &'a Path,
    headers: usize,
    /// The tokens of each graph that has begun.
    evaluations: Vec<usize>,
    open: Option<(Header, Rows)>,
    /// The nodes of this evaluation by name; of several the last.
    made: HashMap<String, Made>,
    found: PrintedFile,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path) -> Self {
        let (evaluations, made) = (Vec::new(), HashMap::new());
        Reader { path, headers: 0, evaluations, open: None, made, found: PrintedFile::default() }
    }

    fn line(&mut self, line: &str) {
        if let Some(header) = header::parse(line) {
            self.end();
            self.headers += 1;
            match header {
                Ok(header) => {
                    let rows = Rows::new(header.ne);
                    self.open = Some((header, rows));
                }
                Err(why) => self.found.unusable.push((format!("node {}", self.headers), why)),
            }
            return;
        }
        // Other lines are the program's log, which may come between.
        if !Rows::is_line(line) {
            return;
        }
        if let Some((header, rows)) = &mut self.open
            && let Err(why) = rows.take(line)
        {
            self.found.unusable.push((header.name.clone(), why));
            self.open = None;
        }
    }

    /// A node is over: the next one begins, or the file ends.
    fn end(&mut self) {
        let Some((header, rows)) = self.open.take() else { return };
        if is_first(&header) || self.evaluations.is_empty() {
            self.evaluations.push(header.ne[1]);
            self.made.clear();
        }
        let dtype = match header.kind.as_str() {
            "f16" => Dtype::F16,
            "bf16" => Dtype::BF16,
            "i64" | "i32" | "i16" | "i8" => Dtype::I64,
            _ => Dtype::F32,
        };
        let node = match rows.finish() {
            Ok((values, rounding)) => {
                let cells =
                    Cells { path: self.path.to_path_buf(), ne: header.ne, values, rounding };
                let evaluation = self.evaluations.len() - 1;
                let name = header.name.clone();
                self.found.nodes.push(PrintedNode { name, dtype, evaluation, cells });
                Some(self.found.nodes.len() - 1)
            }
            Err(why) => {
                self.found.unusable.push((header.name.clone(), why));
                None
            }
        };
        if let Some(layer) = header.name.strip_prefix("ffn_inp-") {
            self.name_attention_output(layer, &header.source);
        }
        self.made.insert(header.name, Made { op: header.op, source: header.source, node });
    }

    /// The attention's output has no name of its own (`node_21`): it is what the residual connection
    /// `ffn_inp` adds to the block's input. In the last layer, rows may have been picked from it first.
    fn name_attention_output(&mut self, layer: &str, source: &str) {
        let mut at = self.made.get(source);
        if let Some(rows) = at.filter(|made| made.op == "GET_ROWS") {
            at = self.made.get(&rows.source);
        }
        if let Some(node) = at.and_then(|made| self.found.nodes.get_mut(made.node?))
            && node.name.starts_with("node_")
        {
            node.name = format!("attn_out-{layer}");
        }
    }

    /// After the first evaluation each is a decode step of one token; anything else, a warm-up or a
    /// prompt in several batches, would put tensors under steps that they aren't of.
    fn check_evaluations(&self) -> Result<(), PrintedError> {
        let tokens = &self.evaluations;
        match tokens.iter().skip(1).all(|n| *n == 1) {
            true => Ok(()),
            false => Err(PrintedError::new(
                self.path,
                format!(
                    "it holds {} evaluations of the graph, of {tokens:?} tokens, and which of them is \
                     the prompt isn't said; print one: --no-warmup, and --ubatch-size as large as the \
                     prompt",
                    tokens.len()
                ),
            )),
        }
    }
}
