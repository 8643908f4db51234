//! `llorch-diff export`: a run's tensors as loose `.npy` files, a folder per case, for NumPy and for
//! `compare`; or a model's weights as one GGUF file ([`crate::gguf`]).

use std::path::{Path, PathBuf};

use llorch_models::progress::Progress;
use llorch_trace::bundle::MANIFEST;
use llorch_trace::files::write_npy;
use llorch_trace::{Bundle, Dtype, Point, Stage, Tensor};

use super::names::file_stem;
use super::source::bundles_below;
use crate::gguf;
use crate::lineup::{self, Member};
use crate::live::{Ask, Live, LiveError};
use crate::provision::ProvisionOptions;
use crate::provision::disk::human_bytes;
use crate::supervise::FailureKind;

/// Write tensors as loose .npy files, named as checkpoints, or a model as GGUF.
///
/// --npy: from a saved run (`run --out DIR`, then `export --from DIR`), or by running a prompt now.
/// Files are DIR/CASE/checkpoint_NN_NAME[_lLL][_sSS]_IMPL.npy; without _l it is layer 0, without _s
/// the prefill. `llorch-diff compare DIR` reads them back.
///
/// --gguf: the weights and the vocabulary as one file for llama.cpp, all of it in F32; nothing is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder to write to; it must be new or empty
    #[arg(long, value_name = "DIR")]
    pub npy: Option<PathBuf>,
    /// The GGUF file to write; one that is there is replaced
    #[arg(long, value_name = "FILE", conflicts_with_all = ["npy", "from", "prompt", "ids", "new_tokens", "references", "subject", "points"])]
    pub gguf: Option<PathBuf>,
    /// Export a saved run, or one bundle, instead of running anything
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "prompt", "ids", "new_tokens", "references", "subject"])]
    pub from: Option<PathBuf>,
    /// Model: nano, gpt2, synth:gpt2, a hub id, or a folder
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// The prompt to run
    #[arg(long, value_name = "TEXT", default_value = "Hello.")]
    pub prompt: String,
    /// Token ids to run in place of a text: 15496,13
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompt")]
    pub ids: Vec<u32>,
    /// Tokens to generate; each decode step is exported too
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub new_tokens: usize,
    /// Export this reference too; may be repeated
    #[arg(long = "ref", value_name = "NAME[:VARIANT][@latest]|NAME=COMMAND")]
    pub references: Vec<String>,
    /// A command that speaks the adapter protocol, in place of llorch-cpud
    #[arg(long, value_name = "COMMAND")]
    pub subject: Option<String>,
    /// Only points that fit this glob, `h.*.attn.*` for instance; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub points: Vec<String>,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
}

/// Why nothing was written, and the exit code that says so.
#[derive(Debug)]
struct Stop {
    code: u8,
    message: String,
}

impl Stop {
    fn usage(message: impl ToString) -> Stop {
        Stop { code: 2, message: message.to_string() }
    }

    fn environment(message: impl ToString) -> Stop {
        Stop { code: 3, message: message.to_string() }
    }
}

/// Exit code: 0 once written, 2 usage, 3 where nothing could run.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    match write_asked(args) {
        Ok(told) => {
            Progress::new(false).say(&told);
            Ok(0)
        }
        Err(Stop { code, message }) => {
            llorch_models::errln!("error: {message}");
            Ok(code)
        }
    }
}

fn write_asked(args: &Args) -> Result<String, Stop> {
    match (&args.gguf, &args.npy) {
        (Some(file), _) => write_gguf(args, file),
        (None, Some(dir)) => {
            Ok(format!("wrote {} files below {}", write_npys(args, dir)?, dir.display()))
        }
        (None, None) => Err(Stop::usage("nothing to export to; expected --npy DIR or --gguf FILE")),
    }
}

fn write_gguf(args: &Args, file: &Path) -> Result<String, Stop> {
    let model = resolve(args)?;
    // A folder goes by its own name: its path means nothing elsewhere.
    let name = match model.dir.file_name() {
        Some(name) if llorch_models::may_be_a_folder(&args.model) && args.model.contains('/') => {
            name.to_string_lossy().into_owned()
        }
        _ => args.model.clone(),
    };
    let written = gguf::write(&model.dir, &name, file)
        .map_err(|e| Stop { code: e.exit_code(), message: e.to_string() })?;
    let vocabulary = match written.tokens {
        Some(tokens) => format!("{tokens} tokens"),
        None => "no vocabulary: the model has no tokenizer files".into(),
    };
    Ok(format!(
        "wrote {}: {} tensors in F32, {vocabulary}, {}",
        file.display(),
        written.tensors,
        human_bytes(written.bytes)
    ))
}

fn resolve(args: &Args) -> Result<llorch_models::ResolvedModel, Stop> {
    let options = llorch_models::ResolveOptions { offline: args.offline, ..Default::default() };
    llorch_models::resolve(&args.model, &options)
        .map_err(|e| Stop { code: e.exit_code(), message: e.to_string() })
}

fn write_npys(args: &Args, dir: &Path) -> Result<usize, Stop> {
    let mut out = Folder::new(dir, &args.points)?;
    match &args.from {
        Some(dir) => {
            for bundle in bundles(dir)? {
                out.write_bundle(&bundle)?;
            }
        }
        None => run_now(args, &mut out)?,
    }
    match out.files {
        0 => Err(Stop::usage("failed to export: there is no tensor that fits --points")),
        files => Ok(files),
    }
}

/// Opened and verified before anything is written.
fn bundles(dir: &Path) -> Result<Vec<Bundle>, Stop> {
    let dirs = match dir.join(MANIFEST).is_file() {
        true => vec![dir.to_path_buf()],
        false if dir.is_dir() => bundles_below(dir).map_err(Stop::usage)?,
        false => {
            return Err(Stop::usage(format!(
                "failed to read {}: there is no such folder",
                dir.display()
            )));
        }
    };
    if dirs.is_empty() {
        let what = format!("failed to read {}: it is no bundle and holds none", dir.display());
        return Err(Stop::usage(what));
    }
    let open = |dir: &PathBuf| {
        let bundle = Bundle::open(dir).map_err(Stop::usage)?;
        bundle.verify().map_err(Stop::usage)?;
        Ok(bundle)
    };
    dirs.iter().map(open).collect()
}

fn run_now(args: &Args, out: &mut Folder) -> Result<(), Stop> {
    let model = resolve(args)?;
    let mut members = vec![lineup::subject(args.subject.as_deref()).map_err(Stop::usage)?];
    if !args.references.is_empty() {
        members.extend(lineup::references(&args.references).map_err(Stop::usage)?);
    }
    let mut prompt = Some(args.ids.clone()).filter(|ids| !ids.is_empty());
    // The first one's choice of tokens is fed to all, so that their steps compare.
    let mut forced: Option<Vec<u32>> = None;
    let progress = Progress::new(false);
    for (n, member) in members.iter().enumerate() {
        let bar = progress.steps("export", "implementation", members.len());
        bar.set(n as u64);
        bar.detail(&member.name);
        let (name, mut live) = start(member, &model.dir, args.offline)?;
        let ids = match &prompt {
            Some(ids) => ids.clone(),
            None => tokenize(&mut live, args, &model.dir)?,
        };
        let ask = Ask {
            ids: ids.clone(),
            points: if args.points.is_empty() { vec!["*".into()] } else { args.points.clone() },
            max_new_tokens: args.new_tokens,
            forced_ids: forced.clone(),
            ..Ask::default()
        };
        let captured = live.run(ask).map_err(Stop::environment)?;
        live.finish();
        for ((step, point), tensor) in &captured.tensors {
            out.write("prompt", *step, *point, &name, tensor)?;
        }
        out.write_generated("prompt", &name, &captured.generated)?;
        prompt = Some(ids);
        forced = forced.or(Some(captured.generated));
    }
    Ok(())
}

/// By the implementation's own tokenizer, or by our engine's where it has none.
fn tokenize(live: &mut Live, args: &Args, model_dir: &Path) -> Result<Vec<u32>, Stop> {
    match live.tokenize(&args.prompt) {
        Err(LiveError::Adapter(failure)) if failure.kind == FailureKind::Unsupported => {
            let engine = lineup::subject(None).map_err(Stop::usage)?;
            let (_, mut engine) = start(&engine, model_dir, args.offline)?;
            let ids = engine.tokenize(&args.prompt).map_err(Stop::environment);
            engine.finish();
            ids
        }
        other => other.map_err(Stop::environment),
    }
}

fn start(member: &Member, model_dir: &Path, offline: bool) -> Result<(String, Live), Stop> {
    let options = ProvisionOptions { offline, quiet: false, allow: true };
    let command = member.command(&options).map_err(Stop::environment)?;
    let live = Live::start(&command, model_dir, Dtype::F32).map_err(Stop::environment)?;
    let said = live.hello().name.clone();
    let unnamed = member.name == lineup::UNNAMED && lineup::is_name(&said);
    Ok((if unnamed { said } else { member.name.clone() }, live))
}

struct Folder {
    dir: PathBuf,
    globs: llorch_trace::PointSet,
    files: usize,
}

impl Folder {
    fn new(dir: &Path, globs: &[String]) -> Result<Folder, Stop> {
        let failed =
            |e: std::io::Error| Stop::usage(format!("failed to create {}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(failed)?;
        if std::fs::read_dir(dir).map_err(failed)?.next().is_some() {
            // What is there would be read as part of this run.
            let what = format!("failed to export to {}: the folder is not empty", dir.display());
            return Err(Stop::usage(what));
        }
        let globs = match globs {
            [] => llorch_trace::PointSet::all(),
            globs => llorch_trace::PointSet::new(globs),
        };
        Ok(Folder { dir: dir.into(), globs, files: 0 })
    }

    fn write_bundle(&mut self, bundle: &Bundle) -> Result<(), Stop> {
        let name = bundle.manifest.implementation.clone();
        let bar = Progress::new(false).steps(&name, "tensor", bundle.manifest.tensors.len());
        for (n, entry) in bundle.manifest.tensors.iter().enumerate() {
            bar.set(n as u64);
            let point: Point = entry.point.parse().map_err(|e| {
                Stop::usage(format!("failed to read {}: {e}", bundle.dir.display()))
            })?;
            if self.globs.contains_point(point) {
                let tensor =
                    bundle.get(&entry.case, entry.step, &entry.point).map_err(Stop::usage)?;
                self.write(&entry.case, entry.step, point, &name, &tensor)?;
            }
        }
        for (case, record) in &bundle.manifest.cases {
            self.write_generated(case, &name, record.generated.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }

    fn write_generated(
        &mut self,
        case: &str,
        implementation: &str,
        ids: &[u32],
    ) -> Result<(), Stop> {
        let point = Point::new(Stage::Generated);
        if ids.is_empty() || !self.globs.contains_point(point) {
            return Ok(());
        }
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        self.write(case, 0, point, implementation, &Tensor::i64(vec![ids.len()], ids))
    }

    fn write(
        &mut self,
        case: &str,
        step: usize,
        point: Point,
        implementation: &str,
        tensor: &Tensor,
    ) -> Result<(), Stop> {
        // Names come from a manifest, which anyone may have written.
        for word in [case, implementation] {
            if word.is_empty() || word.contains(['/', '\\', '\0']) || word.starts_with('.') {
                let what = format!("failed to export: {word:?} can't be part of a file's name");
                return Err(Stop::usage(what));
            }
        }
        let folder = self.dir.join(case);
        let failed = |e: std::io::Error| {
            Stop::environment(format!("failed to create {}: {e}", folder.display()))
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let path = folder.join(format!("{}.npy", file_stem(point, step, implementation)));
        write_npy(&path, &widen(tensor)).map_err(Stop::environment)?;
        self.files += 1;
        Ok(())
    }
}

/// `.npy` has no bf16, and NumPy's f16 is one of its slowest types: both go out as f32, exactly.
fn widen(tensor: &Tensor) -> Tensor {
    match tensor.dtype() {
        Dtype::F16 | Dtype::BF16 => {
            let values = tensor.to_f64().into_iter().map(|x| x as f32).collect();
            Tensor::f32(tensor.shape.clone(), values)
        }
        _ => tensor.clone(),
    }
}
