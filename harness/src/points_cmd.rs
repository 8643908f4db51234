//! `llorch-diff points`: every point with its checkpoint, shape, tolerance class and recipe.

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use llorch_models::ResolveOptions;
use llorch_trace::{Class, Dims, Point, Stage};
use serde::Serialize;
use serde_json::json;

use crate::run::RunError;
use crate::text::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the layers and sizes of this model instead of symbols
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Form::Table)]
    pub format: Form,

    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Table,
    Json,
}

/// How each stage comes from those before it, in the terms of Hugging Face's GPT-2 (Radford et al.
/// 2019; the weights' names are those of the checkpoint files).
fn recipe(stage: Stage) -> &'static str {
    match stage {
        Stage::Tokens => "the ids fed at this step: the prompt's, then one new token a step",
        Stage::Embeddings => "wte[ids] + wpe[positions]",
        Stage::Ln1 => "layer norm of the block's input with ln_1's gain and bias, biased variance",
        Stage::Q => "first third of ln_1 · c_attn.weight [E, 3E] + bias, split into heads",
        Stage::K => "second third of the same",
        Stage::V => "last third of the same",
        Stage::CacheK => "k of all steps so far, one after another",
        Stage::CacheV => "v of all steps so far, one after another",
        Stage::Scores => "q · kᵀ / √D; causal cells only: key j for query t where j ≤ S − T + t",
        Stage::Probs => "softmax of the causal scores over the keys, 0 elsewhere",
        Stage::Context => "probs · v, heads side by side",
        Stage::AttnOut => "context · attn.c_proj.weight [E, E] + bias",
        Stage::ResidMid => "the block's input + attn.out",
        Stage::Ln2 => "layer norm of resid_mid with ln_2's gain and bias",
        Stage::Fc => "ln_2 · mlp.c_fc.weight [E, 4E] + bias",
        Stage::Act => "gelu_new of mlp.fc: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))",
        Stage::MlpOut => "mlp.act · mlp.c_proj.weight [4E, E] + bias",
        Stage::Block => "resid_mid + mlp.out: the block's output",
        Stage::LnF => "layer norm of the last block's output with ln_f's gain and bias",
        Stage::Logits => "ln_f · wteᵀ, the tied head",
        Stage::LogitsLast => "the last row of logits",
        Stage::Argmax => "the lowest id of the largest of logits.last",
        Stage::NextProbs => {
            "softmax(logits.last); with a temperature: / temperature, top-k, top-p, softmax"
        }
        Stage::Generated => "the ids chosen when left alone, and their text",
    }
}

/// The shape in symbols.
fn symbols(stage: Stage) -> &'static str {
    match stage {
        Stage::Tokens => "[T]",
        Stage::Q | Stage::K | Stage::V => "[H,T,D]",
        Stage::CacheK | Stage::CacheV => "[H,S,D]",
        Stage::Scores | Stage::Probs => "[H,T,S]",
        Stage::Fc | Stage::Act => "[T,4E]",
        Stage::Logits => "[T,V]",
        Stage::LogitsLast | Stage::NextProbs => "[V]",
        Stage::Argmax => "[]",
        Stage::Generated => "[N]",
        _ => "[T,E]",
    }
}

/// A point as a guide lists it.
#[derive(Debug, Clone, Serialize)]
pub struct PointRecord {
    pub point: String,
    /// Without the layer; `block` for a block's own output.
    #[serde(skip)]
    pub stage: String,
    pub shape: String,
    pub class: String,
    pub recipe: &'static str,
}

pub const LEGEND: &str = "T tokens of this step, S keys visible, E width, H heads, D = E/H, V vocabulary, \
     N new tokens; i runs over all layers. A class t means |a − b| ≤ t · max(1, |a|, |b|).";

/// The points of a checkpoint, in data-flow order, with symbols for sizes.
pub fn of_checkpoint(number: u8) -> Vec<PointRecord> {
    let mut points = llorch_trace::all_points(1);
    points.push(Point::new(Stage::Generated));
    // Of the blocks, later ones belong to another checkpoint than the first.
    let later = Point::of_layer(Stage::Block, 1);
    let at = points.iter().position(|p| p.stage == Stage::LnF).unwrap_or(points.len());
    points.insert(at, later);
    let of_it = points.into_iter().filter(|p| p.checkpoint().number == number);
    of_it
        .map(|point| PointRecord {
            point: match (point.stage, point.layer) {
                (Stage::Block, Some(0)) => "h.0".into(),
                (Stage::Block, _) => "h.i, i ≥ 1".into(),
                _ => point.to_string().replacen("h.0", "h.i", 1),
            },
            stage: crate::guides::stage_name(point.stage),
            shape: symbols(point.stage).into(),
            class: class(&point),
            recipe: recipe(point.stage),
        })
        .collect()
}

struct Line {
    checkpoint: String,
    point: String,
    shape: String,
    class: String,
    recipe: &'static str,
}

/// In data-flow order. Without a model one line stands for all layers.
fn lines(dims: Option<&Dims>) -> Vec<Line> {
    let points: Vec<(Point, String)> = match dims {
        Some(dims) => {
            llorch_trace::all_points(dims.n_layer).into_iter().map(|p| (p, p.to_string())).collect()
        }
        None => {
            let of_layer = |p: &Point| (*p, p.to_string().replacen("h.0", "h.i", 1));
            llorch_trace::all_points(1).iter().map(of_layer).collect()
        }
    };
    let generated = Point::new(Stage::Generated);
    let points = points.into_iter().chain([(generated, generated.to_string())]);
    let line = |(point, name): (Point, String)| Line {
        checkpoint: match (point.stage, dims) {
            (Stage::Block, None) => "7 block, 8 logits".into(),
            _ => format!("{} {}", point.checkpoint().number, point.checkpoint().slug),
        },
        point: name,
        shape: dims.map_or_else(|| symbols(point.stage).into(), |d| shape(&point, d)),
        class: class(&point),
        recipe: recipe(point.stage),
    };
    points.map(line).collect()
}

/// Sizes of the model; T and S, which a prompt decides, stay symbols.
fn shape(point: &Point, dims: &Dims) -> String {
    // Two numbers that no size of a model equals, to be found again in the shape.
    const T: usize = usize::MAX;
    const S: usize = usize::MAX - 1;
    let sizes = point.shape(dims, T, S).into_iter().map(|n| match n {
        _ if point.stage == Stage::Generated => "N".into(),
        T => "T".into(),
        S => "S".into(),
        n => n.to_string(),
    });
    format!("[{}]", sizes.collect::<Vec<String>>().join(","))
}

fn class(point: &Point) -> String {
    match point.checkpoint().class {
        _ if point.stage == Stage::Embeddings || point.is_integer() => "exact".into(),
        Class::Exact => "exact".into(),
        Class::Mixed(tolerance) => format!("{tolerance:.0e}"),
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dims = match &args.model {
        None => None,
        Some(name) => {
            let options = ResolveOptions { offline: args.offline, ..ResolveOptions::default() };
            let model = llorch_models::resolve(name, &options).map_err(RunError::from)?;
            let dims = Dims::from_config_file(&model.dir.join("config.json"));
            Some(dims.map_err(|e| RunError::Usage(e.to_string()))?)
        }
    };
    let lines = lines(dims.as_ref());
    match args.format {
        Form::Json => {
            let json: Vec<_> = lines
                .iter()
                .map(|l| {
                    json!({"checkpoint": l.checkpoint, "point": l.point, "shape": l.shape,
                        "class": l.class, "recipe": l.recipe})
                })
                .collect();
            print(&serde_json::to_string_pretty(&json)?)?;
        }
        Form::Table => print(&table(&lines))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["CHECKPOINT", "POINT", "SHAPE", "CLASS", "WHAT IT IS"]);
    for l in lines {
        table.add_row([&l.checkpoint, &l.point, &l.shape, &l.class, l.recipe]);
    }
    format!(
        "{}\n\nT tokens of this step, S keys visible, E width, H heads, D = E/H, V vocabulary, N new tokens; \
         i runs over all layers.\nA class t means |a − b| ≤ t · max(1, |a|, |b|).",
        table.trim_fmt()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_stage_and_sizes_where_a_model_is_named() {
        assert_eq!(lines(None).len(), 24);
        let dims = Dims {
            n_layer: 2,
            n_head: 4,
            n_embd: 8,
            n_inner: 32,
            vocab_size: 100,
            n_positions: 16,
        };
        let with_sizes = lines(Some(&dims));
        let scores = with_sizes.iter().find(|l| l.point == "h.1.attn.scores").unwrap();
        assert_eq!((scores.shape.as_str(), scores.checkpoint.as_str()), ("[4,T,S]", "4 scores"));
        assert_eq!(with_sizes.iter().find(|l| l.point == "h.1").unwrap().checkpoint, "8 logits");
    }
}
