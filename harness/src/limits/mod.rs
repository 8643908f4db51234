//! `llorch-diff limits DIR`: what a saved run could have seen. For each stage the smallest change that its
//! verdict would have shown, wherever it had been; below that nobody can tell it from rounding.

mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use llorch_trace::{Point, Stage};
use serde_json::json;

use crate::run::RunError;
use crate::saved;
use crate::text::{pattern, print};

pub use measure::{Limits, Place, measure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder that `llorch-diff run --out` wrote
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Whose tensors are looked at; the subject's unless another is named
    #[arg(long, value_name = "NAME")]
    pub of: Option<String>,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Form::Table)]
    pub format: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Table,
    Md,
    Json,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (result, collected) =
        saved::open(&args.dir).map_err(|error| RunError::Usage(error.to_string()))?;
    let names: Vec<&str> = collected.evidence.iter().map(|e| e.name.as_str()).collect();
    let wanted = args.of.as_deref().or(names.first().copied()).unwrap_or_default();
    let Some(evidence) = collected.evidence.iter().find(|e| e.name == wanted) else {
        let there = names.join(", ");
        return Err(RunError::Usage(format!(
            "{} has no implementation {wanted:?}; it has {there}",
            args.dir.display()
        ))
        .into());
    };
    let Some(oracle) = &collected.truth.oracle else {
        let why = collected.unchecked.last().map_or(String::new(), |u| format!(": {}", u.reason));
        return Err(RunError::Environment(format!(
            "failed to recompute the stages of {}{why}",
            args.dir.display()
        ))
        .into());
    };
    let limits = measure(&collected.plan, evidence, oracle)
        .map_err(|error| RunError::Environment(error.to_string()))?;
    if limits.is_empty() {
        return Err(RunError::Usage(format!(
            "{wanted} has no stage in {} that was captured with its inputs",
            args.dir.display()
        ))
        .into());
    }
    print(&match args.format {
        Form::Json => serde_json::to_string_pretty(&as_json(&result.model.name, wanted, &limits))?,
        form => tables(&result.model.name, wanted, &limits, form),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn tables(model: &str, whose: &str, limits: &[Limits], form: Form) -> String {
    let mut table = Table::new();
    let style = if form == Form::Md { presets::ASCII_MARKDOWN } else { presets::UTF8_BORDERS_ONLY };
    table.load_style(style).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "point",
        "places",
        "factor, WARN",
        "factor, FAIL",
        "factor, at best",
        "at",
        "one element, WARN",
        "one element, FAIL",
    ]);
    for l in limits {
        table.add_row([
            label(l.stage),
            l.places.to_string(),
            figure(l.factor_warn),
            figure(l.factor_fail),
            figure(l.best),
            at(&l.best_at),
            figure(l.element_warn),
            figure(l.element_fail),
        ]);
    }
    let mut lines = vec![
        format!("What is just seen in the tensors of {whose} on {model}"),
        String::new(),
        table.to_string(),
        String::new(),
        "factor: the whole tensor times 1 + x, wherever it happens; at best: where the least is seen"
            .to_string(),
        "one element: moved by x; the median of all elements"
            .to_string(),
    ];
    for l in limits {
        if let Some((eps, place)) = &l.eps {
            lines.push(format!("{}: an eps off by {eps:.1e} at {}", label(l.stage), at(place)));
        }
    }
    lines.join("\n")
}

/// 0 where numbers are only moved: there any change is seen.
fn figure(limit: f64) -> String {
    if limit == 0.0 { "any".into() } else { format!("{limit:.1e}") }
}

fn label(stage: Stage) -> String {
    pattern(Point::of_layer(stage, 0))
}

fn at(place: &Place) -> String {
    format!("{} (case {}, step {})", place.point, place.case, place.step)
}

fn as_json(model: &str, whose: &str, limits: &[Limits]) -> serde_json::Value {
    let place = |p: &Place| json!({ "point": p.point, "case": p.case, "step": p.step });
    let one = |l: &Limits| {
        json!({
            "point": label(l.stage),
            "places": l.places,
            "factor_warn": l.factor_warn,
            "factor_fail": l.factor_fail,
            "factor_best": l.best,
            "factor_best_at": place(&l.best_at),
            "element_warn": l.element_warn,
            "element_fail": l.element_fail,
            "eps": l.eps.as_ref().map(|(eps, at)| json!({ "off_by": eps, "at": place(at) })),
        })
    };
    json!({
        "schema": "llorch.limits/1",
        "model": model,
        "implementation": whose,
        "limits": limits.iter().map(one).collect::<Vec<_>>(),
    })
}
