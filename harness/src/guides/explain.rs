//! `llorch-diff explain`: the guide of a checkpoint.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use llorch_trace::points::CHECKPOINTS;
use serde::Serialize;

use super::{Guide, find, page, screen};
use crate::points_cmd::{self, PointRecord};
use crate::report::Style;
use crate::run::RunError;
use crate::text::print;

pub const SCHEMA: &str = "llorch.guide/1";
/// Columns where nobody says how many there are.
const WIDTH: u16 = 100;

/// Explain a checkpoint: what it computes, where references do, what goes wrong, how to look at it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number, slug or name of a checkpoint, or a point such as h.3.attn.out; the list of all without it
    #[arg(value_name = "CHECKPOINT|POINT")]
    pub what: Option<String>,

    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub format: Form,

    /// Write all guides as Markdown to this folder instead, with a list of them in README.md
    #[arg(long, value_name = "DIR", conflicts_with_all = ["what", "format"])]
    pub write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For a terminal, as wide as it is
    Text,
    /// Markdown
    Md,
    Json,
}

/// A guide with what the program knows of the checkpoint beside it.
#[derive(Debug, Serialize)]
struct Record<'a> {
    schema: &'static str,
    slug: &'static str,
    name: &'static str,
    points: Vec<PointRecord>,
    #[serde(flatten)]
    guide: &'a Guide,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.write {
        write_all(dir).map_err(|(path, error)| {
            let what = format!("failed to write {}: {error}", path.display());
            RunError::Environment(what)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = usize::from(Style::of_stdout(false).width.unwrap_or(WIDTH));
    let text = match &args.what {
        Some(what) => {
            let found = find(what)?;
            match args.format {
                Form::Text => screen::guide(found.guide, found.point, width),
                Form::Md => page::guide(found.guide),
                Form::Json => serde_json::to_string_pretty(&record(found.guide))?,
            }
        }
        None => match args.format {
            Form::Text => screen::list(width),
            Form::Md => page::list(),
            Form::Json => {
                let all: Vec<_> = super::all().iter().map(record).collect();
                serde_json::to_string_pretty(&all)?
            }
        },
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn record(guide: &Guide) -> Record<'_> {
    let checkpoint = &CHECKPOINTS[usize::from(guide.checkpoint)];
    Record {
        schema: SCHEMA,
        slug: checkpoint.slug,
        name: checkpoint.name,
        points: points_cmd::of_checkpoint(guide.checkpoint),
        guide,
    }
}

fn write_all(dir: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let put = |name: String, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|error| (path, error))
    };
    std::fs::create_dir_all(dir).map_err(|error| (dir.to_path_buf(), error))?;
    for guide in super::all() {
        put(format!("{}.md", guide.file_stem()), page::guide(guide))?;
    }
    put("README.md".into(), page::list())
}
