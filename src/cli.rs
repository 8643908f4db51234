//! The command line.

use std::io::{BufReader, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use llorch_models::progress::{self, Progress};
use llorch_models::{ResolveOptions, ResolvedModel};

use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::generate::{Options, generate};
use crate::inspect;
use crate::model::Model;
use crate::packed::Format;
use crate::probe::NoProbe;
use crate::sampler::Sampling;
use crate::server;
use crate::tokenizer::{TextStream, Tokenizer};
use crate::trace;

const EXIT_CODES: &str = "Exit codes:
  0    done
  2    bad usage or bad input: options, prompt, config, weights, tokenizer
  3    environment: no such model, no network, no disk space, a file that can't be read
  5    an error of the engine itself
  130  interrupted";

/// GPT-2 on the CPU.
#[derive(Debug, Parser)]
#[command(name = "llorch-cpud", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say nothing on standard error but errors
    #[arg(long, short, global = true, env = "LLORCH_QUIET",
          value_parser = clap::builder::FalseyValueParser::new())]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt; the text streams to standard output
    Generate(GenerateArgs),
    /// Answer completions over HTTP, in the form of OpenAI's API
    Serve(server::ServeArgs),
    /// Show a model's configuration, parameters, tensors and hashes
    Inspect(InspectArgs),
    /// Speak the adapter protocol on standard input and output
    ///
    /// This is how llorch-diff runs the engine; adapters/PROTOCOL.md describes the messages.
    Trace,
}

/// Which model, and on how many threads.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, a hub id, a folder, or synth:NAME
    #[arg(long, short, env = "LLORCH_MODEL", default_value = "nano")]
    pub model: String,

    /// Branch, tag or commit of a hub model
    #[arg(long, env = "LLORCH_REVISION")]
    pub revision: Option<String>,

    /// Never use the network
    #[arg(long, env = "LLORCH_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,

    /// Threads to compute with; 0 takes all cores
    #[arg(long, env = "LLORCH_THREADS", default_value_t = 0)]
    pub threads: usize,

    /// What weights are kept in, and what they are multiplied by is rounded to; sums are in f32
    #[arg(long, env = "LLORCH_DTYPE", value_enum, default_value_t = Format::F32)]
    pub dtype: Format,
}

impl ModelArgs {
    pub fn resolve(&self) -> Result<ResolvedModel> {
        let options = ResolveOptions {
            offline: self.offline,
            revision: self.revision.clone(),
            ..ResolveOptions::default()
        };
        Ok(llorch_models::resolve(&self.model, &options)?)
    }
}

#[derive(Debug, Args)]
struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The text to continue
    #[arg(required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,

    /// Token ids to continue, instead of text: 15496,13
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    ids: Option<Vec<u32>>,

    /// Tokens to add, at most
    #[arg(long, short = 'n', default_value_t = 32)]
    max_new_tokens: usize,

    /// 0 takes the most likely token each time; higher is more random
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,

    /// Draw from the K most likely tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,

    /// Draw from the fewest tokens that together have probability P
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,

    /// Make tokens that occurred less likely; 1 leaves them
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f64,

    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Go on after the end-of-text token
    #[arg(long)]
    ignore_eos: bool,

    /// Print token ids instead of text
    #[arg(long)]
    print_ids: bool,

    /// Tell the time taken on standard error
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// nano, gpt2, …, a hub id, a folder, or synth:NAME
    #[arg(default_value = "nano")]
    name: String,

    /// Branch, tag or commit of a hub model
    #[arg(long)]
    revision: Option<String>,

    /// Never use the network
    #[arg(long)]
    offline: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the program and says how it ended.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    progress::set_quiet(cli.quiet);
    let outcome = match cli.command {
        Command::Generate(args) => run_generate(args).map(|()| 0),
        Command::Serve(args) => server::run(args, cli.quiet),
        Command::Inspect(args) => run_inspect(args).map(|()| 0),
        Command::Trace => run_trace().map(|()| 0),
    };
    // A daemon that is stopped while it loads leaves its work undone.
    progress::close();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            llorch_models::errln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_trace() -> Result<()> {
    let mut answers = std::io::stdout();
    // A closed standard output is the harness's way to end this.
    let _ = trace::serve(BufReader::new(std::io::stdin()), &mut answers);
    Ok(())
}

fn run_inspect(args: InspectArgs) -> Result<()> {
    on_interrupt();
    let options = ResolveOptions {
        offline: args.offline,
        revision: args.revision,
        ..ResolveOptions::default()
    };
    let model = llorch_models::resolve(&args.name, &options)?;
    let report = inspect::inspect(&model)?;
    let text = if args.json { report.to_json() } else { report.to_text() };
    print(&text).map(|_| ())
}

fn run_generate(args: GenerateArgs) -> Result<()> {
    on_interrupt();
    let resolved = args.model.resolve()?;
    let model = load(&resolved, &args.model)?;
    let needs_text = args.prompt.is_some() || !args.print_ids;
    let tokenizer = if needs_text { Some(Tokenizer::load(&resolved.dir)?) } else { None };
    let prompt = match (&args.prompt, args.ids, &tokenizer) {
        (Some(text), _, Some(tokenizer)) => tokenizer.encode(text)?,
        (_, ids, _) => ids.unwrap_or_default(),
    };
    let options = Options {
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
            ..Sampling::default()
        },
        stop_ids: if args.ignore_eos {
            vec![]
        } else {
            model.config().eos_token_id.into_iter().collect()
        },
        forced_ids: None,
    };
    let mut cache = model.new_cache();
    let mut stream = TextStream::new();
    let mut failed = None;
    let done = generate(&model, &mut cache, &prompt, &options, &mut NoProbe, |step| {
        let piece = match &tokenizer {
            Some(tokenizer) if !args.print_ids => stream.push(tokenizer, step.id),
            _ => Ok(format!("{}{}", if step.step > 0 { "," } else { "" }, step.id)),
        };
        match piece.and_then(|text| print(&text)) {
            Ok(true) => ControlFlow::Continue(()),
            // Nobody reads any more: enough.
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if let (Some(tokenizer), false) = (&tokenizer, args.print_ids) {
        print(&stream.finish(tokenizer)?)?;
    }
    print("\n")?;
    if args.verbose {
        let rate = |n: usize, d: std::time::Duration| n as f64 / d.as_secs_f64().max(1e-9);
        let decoded = done.ids.len().saturating_sub(1);
        llorch_models::errln!(
            "prompt: {} tokens, {:.1} tokens/s; then: {decoded} tokens, {:.1} tokens/s",
            prompt.len(),
            rate(prompt.len(), done.prefill),
            rate(decoded, done.decode),
        );
    }
    Ok(())
}

/// Loads a model, and tells that it does where that takes long.
pub fn load(resolved: &ResolvedModel, args: &ModelArgs) -> Result<Model> {
    let _bar = Progress::new(false).open(&resolved.name, "loading the model");
    Model::load(&resolved.dir, args.dtype, args.threads)
}

/// Ctrl-C ends the program as ever, but no half a progress bar stays behind.
fn on_interrupt() {
    // Without the handler the system ends the program, which is nearly as good.
    if let Ok(mut signals) = Signals::new([SIGINT]) {
        let wait = move || {
            if signals.forever().next().is_some() {
                progress::leave("\ninterrupted", 128 + SIGINT);
            }
        };
        let _ = std::thread::Builder::new().name("interrupt".into()).spawn(wait);
    }
}

/// Writes to standard output at once; false if whoever read it is gone (`| head`).
fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Error::Service { action: "write to standard output".into(), source }),
    }
}
