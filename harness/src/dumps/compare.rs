//! `llorch-diff compare`: dumps against each other, whoever wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use llorch_trace::Dims;
use serde::Serialize;

use super::pairing::{self, Options, Outcome};
use super::raw::SourceError;
use super::recipe;
use super::show;
use super::side::{Key, Side, Understood};
use super::sizes::learn;
use super::source::{self, LeftOut};
use crate::parallel;
use crate::report::Format;
use crate::result::{Row, RunVerdict, Unchecked, Verdict};
use crate::text::pattern;

pub const SCHEMA: &str = "llorch.compare/1";

/// Compare dumps: bundles, folders of .npy, .npz, .safetensors, .pt and llama-eval-callback's output.
///
/// Two or more sources, or one folder whose files differ by the implementation at the end of their
/// names. Names of Hugging Face, TransformerLens, llama.cpp and of checkpoint files are understood;
/// what is transposed, merged or batched is brought into one layout, and the output says how.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A bundle, the folder of a run, a folder of .npy files, a .npz, a .safetensors, a .pt, or a text
    /// that llama-eval-callback printed
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<PathBuf>,
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// One tolerance for every point instead of each checkpoint's: |a−b| ≤ T·max(1,|a|,|b|)
    #[arg(long, value_name = "T", value_parser = tolerance)]
    pub tolerance: Option<f64>,
    /// Compare the others with this one only (default: every pair)
    #[arg(long, value_name = "NAME")]
    pub reference: Option<String>,
    /// Show the first N elements of each row
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub values: usize,
    /// The model's config.json (or its folder), for names and layouts that depend on its sizes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Attention heads, for merged layouts, where no config.json is at hand
    #[arg(long, value_name = "N")]
    pub heads: Option<NonZeroUsize>,
    /// Only this case of sources that hold several
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// A line for each layer and step instead of the worst of them
    #[arg(long)]
    pub all: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t >= 0.0 && t.is_finite() => Ok(t),
        _ => Err("expected a number from 0 up".into()),
    }
}

/// What a comparison found; everything that is shown is rendered from it.
#[derive(Debug, Serialize)]
pub struct Compared {
    pub schema: &'static str,
    pub verdict: RunVerdict,
    pub sources: Vec<SourceRecord>,
    pub rows: Vec<Row>,
    pub unchecked: Vec<Unchecked>,
    /// Files and folders that are no source and part of none.
    pub left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
pub struct SourceRecord {
    pub name: String,
    pub path: PathBuf,
    pub form: &'static str,
    /// Tensors that have a place, and how many of them something was compared with.
    pub tensors: usize,
    pub compared: usize,
    /// By point pattern: how the native tensor became ours.
    pub recipes: BTreeMap<String, String>,
    /// By reason: names that are none of our points.
    pub unmapped: BTreeMap<String, Vec<String>>,
    /// Further names of a point with the same content.
    pub repeated: Vec<String>,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Config(#[from] llorch_trace::Error),
    #[error("failed to compare: {0}")]
    Usage(String),
}

/// Exit code: 0 PASS or WARN, 1 FAIL, 2 usage (a source that can't be read, ambiguous names), 4 where
/// a source has nothing that could be compared, or only some elements of its tensors.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let compared = match compare(args) {
        Ok(compared) => compared,
        Err(error) => {
            llorch_models::errln!("error: {error}");
            return Ok(2);
        }
    };
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&compared)? + "\n",
        Format::Table => show::text(&compared, args.all, false),
        Format::Md => show::text(&compared, args.all, true),
    };
    show::print(&text)?;
    Ok(compared.verdict.exit_code(false))
}

pub fn compare(args: &Args) -> Result<Compared, CompareError> {
    let (sides, left_out) = open(args)?;
    let options = Options { tolerance: args.tolerance, values: args.values };
    let mut outcome = Outcome::default();
    for (a, b) in pairs(&sides, args.reference.as_deref())? {
        pairing::pair(&sides[a], &sides[b], options, &mut outcome)?;
    }
    Ok(conclude(sides, outcome, left_out))
}

fn open(args: &Args) -> Result<(Vec<Side>, Vec<LeftOut>), CompareError> {
    let said = args.config.as_deref().map(dims).transpose()?;
    let (mut raw, mut left_out) = (Vec::new(), Vec::new());
    for opened in parallel::map(&args.sources, |path| source::open(path)) {
        let opened = opened?;
        raw.extend(opened.sources);
        left_out.extend(opened.left_out);
    }
    if let [only] = raw.as_slice() {
        let what = format!(
            "{} holds tensors of {} alone; give a second source",
            only.path.display(),
            only.name
        );
        return Err(CompareError::Usage(what));
    }
    let mut names: Vec<(String, PathBuf)> =
        raw.iter().map(|r| (r.name.clone(), r.path.clone())).collect();
    tell_apart(&mut names);
    for (raw, (name, _)) in raw.iter_mut().zip(names) {
        raw.name = name;
    }
    let mut understood: Vec<Understood> = raw.into_iter().map(Understood::of).collect();
    let n_layer = layers(&understood, said);
    for side in &mut understood {
        let own = n_layer.or(side.last_state_of_a_whole_set());
        side.place_states(own);
    }
    let known = learn(&understood, said, args.heads.map(NonZeroUsize::get));
    let mut sides = Vec::new();
    for (side, known) in understood.into_iter().zip(&known) {
        sides.push(side.resolve(known)?);
    }
    refuse_ambiguous(&sides)?;
    align_cases(&mut sides, args.case.as_deref()).map_err(CompareError::Usage)?;
    Ok((sides, left_out))
}

fn dims(path: &Path) -> Result<Dims, llorch_trace::Error> {
    match path.is_dir() {
        true => Dims::from_config_file(&path.join("config.json")),
        false => Dims::from_config_file(path),
    }
}

/// The number of layers: said, in a bundle's manifest, or one more than the highest that any source
/// names where that is as many as its hidden states.
fn layers(sides: &[Understood], said: Option<Dims>) -> Option<usize> {
    let declared = said.or_else(|| sides.iter().find_map(Understood::dims));
    declared.map(|d| d.n_layer).or_else(|| sides.iter().filter_map(Understood::layers_seen).max())
}

/// Two dumps of one implementation are told apart by where they are.
fn tell_apart(names: &mut [(String, PathBuf)]) {
    let taken = names.to_vec();
    for (i, (name, path)) in names.iter_mut().enumerate() {
        let twins: Vec<&PathBuf> = taken
            .iter()
            .enumerate()
            .filter(|(j, (other, _))| *j != i && other == name)
            .map(|(_, (_, path))| path)
            .collect();
        if twins.is_empty() {
            continue;
        }
        // The shortest tail of the path that no twin has.
        let tail = |path: &Path, n: usize| -> PathBuf {
            let parts: Vec<_> = path.components().collect();
            parts[parts.len().saturating_sub(n)..].iter().collect()
        };
        let depth = (1..=path.components().count())
            .find(|n| twins.iter().all(|twin| tail(twin, *n) != tail(path, *n)));
        *name = match depth {
            Some(depth) => format!("{name} ({})", tail(path, depth).display()),
            None => format!("{name} #{}", i + 1),
        };
    }
}

fn refuse_ambiguous(sides: &[Side]) -> Result<(), CompareError> {
    let mut lines = Vec::new();
    for side in sides {
        for a in &side.ambiguous {
            lines.push(format!("  {}: {}: {}", side.name, a.names.join(", "), a.reason));
        }
    }
    match lines.is_empty() {
        true => Ok(()),
        false => Err(CompareError::Usage(format!(
            "these names are ambiguous, and none is guessed:\n{}",
            lines.join("\n")
        ))),
    }
}

/// A source without cases goes with one that has one; with one that has several, the user says which.
fn align_cases(sides: &mut [Side], wanted: Option<&str>) -> Result<(), String> {
    let named: BTreeSet<String> =
        sides.iter().flat_map(Side::cases).filter(|case| !case.is_empty()).collect();
    let list = || named.iter().cloned().collect::<Vec<_>>().join(", ");
    if let Some(wanted) = wanted {
        if !named.contains(wanted) {
            return Err(match named.is_empty() {
                true => format!("no source has a case {wanted}: none has cases; leave --case out"),
                false => format!("no source has a case {wanted}; found {}", list()),
            });
        }
        for side in sides.iter_mut() {
            let kept = |case: &str| case.is_empty() || case == wanted;
            rename_cases(side, |case| kept(case).then(|| wanted.to_string()));
            side.unmapped.retain(|u| kept(&u.case));
            side.misshapen.retain(|key| kept(&key.case));
        }
        return Ok(());
    }
    for side in sides.iter_mut().filter(|side| side.cases().iter().any(String::is_empty)) {
        let folder = side.path.file_name().map(|n| n.to_string_lossy().into_owned());
        let only = if named.len() == 1 { named.first().cloned() } else { None };
        let Some(case) = only.or(folder.filter(|f| named.contains(f))) else {
            if named.is_empty() {
                continue;
            }
            return Err(format!(
                "{} has no cases, others have {}; say which with --case",
                side.name,
                list()
            ));
        };
        rename_cases(side, |old| Some(if old.is_empty() { case.clone() } else { old.to_string() }));
    }
    Ok(())
}

fn rename_cases(side: &mut Side, rename: impl Fn(&str) -> Option<String>) {
    let points = std::mem::take(&mut side.points);
    side.points = points
        .into_iter()
        .filter_map(|(mut key, located)| {
            key.case = rename(&key.case)?;
            Some((key, located))
        })
        .collect();
}

fn pairs(sides: &[Side], reference: Option<&str>) -> Result<Vec<(usize, usize)>, CompareError> {
    let n = sides.len();
    let Some(wanted) = reference else {
        return Ok((0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).collect());
    };
    let Some(b) = sides.iter().position(|side| side.name == wanted) else {
        let names: Vec<&str> = sides.iter().map(|side| side.name.as_str()).collect();
        let what = format!(
            "there is no source {wanted} to be the reference; there are {}",
            names.join(", ")
        );
        return Err(CompareError::Usage(what));
    };
    Ok((0..n).filter(|a| *a != b).map(|a| (a, b)).collect())
}

fn conclude(sides: Vec<Side>, outcome: Outcome, left_out: Vec<LeftOut>) -> Compared {
    let Outcome { rows, unchecked } = outcome;
    // Whatever another source has too should have been compared.
    let has = |side: &Side, key: &Key| {
        let mut keys = side.points.keys().chain(&side.misshapen);
        keys.any(|k| (k.point, k.step) == (key.point, key.step))
    };
    let lacking = sides.iter().enumerate().any(|(i, side)| {
        let others = || sides.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| other);
        side.misshapen.iter().any(|key| others().any(|other| has(other, key)))
    });
    let sources: Vec<SourceRecord> = sides.into_iter().map(|side| record(side, &rows)).collect();
    let worst = rows.iter().map(|row| row.verdict).max();
    let verdict = match worst {
        Some(Verdict::Fail | Verdict::Error) => RunVerdict::Fail,
        _ if lacking || sources.iter().any(|s| s.compared == 0) => RunVerdict::Incomplete,
        // What agrees where it is printed has not been compared where it isn't.
        _ if rows.iter().any(|row| row.verdict == Verdict::Unchecked) => RunVerdict::Incomplete,
        Some(Verdict::Warn) => RunVerdict::Warn,
        _ => RunVerdict::Pass,
    };
    Compared { schema: SCHEMA, verdict, sources, rows, unchecked, left_out }
}

fn record(side: Side, rows: &[Row]) -> SourceRecord {
    let mut recipes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, located) in &side.points {
        if !located.recipes.is_empty() {
            let sentence = recipe::sentence(&located.recipes);
            recipes.entry(pattern(key.point)).or_default().insert(sentence);
        }
    }
    let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" | ");
    let mut unmapped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for u in side.unmapped {
        let name = if u.case.is_empty() { u.name } else { format!("{}/{}", u.case, u.name) };
        unmapped.entry(u.reason).or_default().push(name);
    }
    let mine = |row: &&Row| row.a == side.name || row.b == side.name;
    let places: BTreeSet<_> =
        rows.iter().filter(mine).map(|row| (&row.case, row.step, row.point)).collect();
    SourceRecord {
        tensors: side.points.len(),
        compared: places.len(),
        recipes: recipes.into_iter().map(|(point, set)| (point, join(set))).collect(),
        unmapped,
        repeated: side.repeated,
        name: side.name,
        path: side.path,
        form: side.form,
    }
}
