//! The daemon's part of checkpoints 0 and 12: it comes up, is healthy, and gives the same tokens and the
//! same greedy text over HTTP as the engine does over the adapter protocol. (A daemon that runs already can be the
//! subject itself: [`crate::remote`].)

use std::path::Path;
use std::time::Instant;

use llorch_models::progress::{Bar, Progress};
use llorch_trace::Stage;
use serde_json::json;

use crate::collect::Settings;
use crate::evidence::{Case, Served};
use crate::lineup::file_name;
use crate::remote::client::{Ask, Client, Health, Refused};
use crate::supervise::{AdapterCommand, Forced, Service, await_exit, interrupted};
use crate::text::{count, shorten};

/// The first line on its stdout.
const LISTENING: &str = "listening on ";

/// Starts the daemon, asks it what is wanted, and stops it. None where nothing is wanted of it.
pub fn ask(
    command: &AdapterCommand,
    name: &str,
    settings: &Settings<'_>,
    progress: &Progress,
) -> Option<Served> {
    let wanted = Wanted::of(settings);
    if !wanted.tokens && !wanted.generation {
        return None;
    }
    let began = Instant::now();
    let mut served = Served::default();
    let bar = bar(progress, name, settings);
    let stderr_file = settings.out.join(format!("{}.serve.stderr.txt", file_name(name)));
    if let Err(fault) = talk(command, settings, &stderr_file, wanted, &mut served, &bar) {
        await_exit();
        progress.say(&format!("{name}: daemon: {fault}"));
        served.fault = Some(fault);
    } else {
        let (n, took) = (settings.plan.cases.len(), began.elapsed().as_secs_f64());
        progress.say(&format!("{name}: daemon: {} over HTTP in {took:.1} s", count(n, "case")));
    }
    Some(served)
}

/// What is told while a daemon is asked.
fn bar(progress: &Progress, name: &str, settings: &Settings<'_>) -> Bar {
    let what = format!("{name}: daemon");
    let bar = progress.steps(&what, "case", settings.plan.cases.len());
    bar.doing("loading the model");
    bar
}

/// The points of the plan that a daemon can answer for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    tokens: bool,
    generation: bool,
}

impl Wanted {
    fn of(settings: &Settings<'_>) -> Wanted {
        let wanted = |stage| settings.plan.points.iter().any(|p| p.stage == stage);
        Wanted { tokens: wanted(Stage::Tokens), generation: wanted(Stage::Generated) }
    }
}

fn talk(
    command: &AdapterCommand,
    settings: &Settings<'_>,
    stderr_file: &Path,
    wanted: Wanted,
    served: &mut Served,
    bar: &Bar,
) -> Result<(), String> {
    let command = command
        .clone()
        .args(["--model", &settings.plan.model_dir.to_string_lossy()])
        .args(["--threads", &settings.threads.to_string()]);
    let limits = &settings.limits;
    let mut service = Service::start(&command, limits, stderr_file).map_err(|f| f.to_string())?;
    let line = service.line(limits.hello).unwrap_or_default();
    let Some(base) = line.trim().strip_prefix(LISTENING) else {
        let exit = service.exit().map(|exit| format!(", {exit}")).unwrap_or_default();
        let said = shorten(line.trim(), 80);
        return Err(format!("the daemon did not say where it listens: {said:?}{exit}"));
    };
    let client = Client::new(base, Some(limits.case)).map_err(|e| e.to_string())?;
    service
        .wait_until(limits.load, || match client.health() {
            Health::Ready => Some(Ok(())),
            Health::Failed(reason) => Some(Err(reason)),
            Health::Loading | Health::Unreachable(_) => None,
        })
        .map_err(|failure| format!("the daemon: {failure}"))??;
    ask_all(&client, &settings.plan.cases, wanted, served, bar).map_err(|e| e.to_string())?;
    let finished = service.stop();
    match finished.exit {
        Some(exit) if exit.success() && finished.forced != Forced::Kill => Ok(()),
        exit => {
            let how = exit.map_or("it had to be killed".to_string(), |exit| exit.to_string());
            Err(format!("the daemon did not end well when it was told to: {how}"))
        }
    }
}

fn ask_all(
    client: &Client,
    cases: &[Case],
    wanted: Wanted,
    served: &mut Served,
    bar: &Bar,
) -> Result<(), Refused> {
    for (n, case) in cases.iter().enumerate() {
        bar.set(n as u64);
        bar.detail(&case.name);
        if let (true, Some(prompt)) = (wanted.tokens, &case.prompt) {
            served.tokens.insert(case.name.clone(), client.tokenize(prompt, &interrupted)?);
        }
        if wanted.generation && case.sampling.temperature == 0.0 && case.max_new_tokens > 0 {
            // The prompt goes as text where there is text.
            let text = case.prompt.as_ref();
            let ask = Ask {
                prompt: text.map_or_else(|| json!(case.ids), |text| json!(text)),
                max_tokens: case.max_new_tokens,
                sampling: &case.sampling,
            };
            let first = client.complete(&ask, &interrupted)?.into_iter().next();
            served.generated.extend(first.map(|generation| (case.name.clone(), generation)));
        }
    }
    Ok(())
}
