//! The daemon's part of checkpoints 0 and 12: it comes up, is healthy, and gives the same tokens and the
//! same greedy text over HTTP as the engine does over the adapter protocol. Also a daemon that runs
//! already, as the subject itself.

use std::path::Path;
use std::time::{Duration, Instant};

use llorch_models::progress::{Bar, Progress};
use llorch_trace::Stage;
use serde_json::{Value, json};

use crate::collect::{Settings, empty};
use crate::evidence::{Case, Evidence, Fault, FaultKind, Served};
use crate::lineup::file_name;
use crate::result::{Generation, Role};
use crate::supervise::{AdapterCommand, Forced, Service};
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
        progress.say(&format!("{name}: daemon: {fault}"));
        served.fault = Some(fault);
    } else {
        let (n, took) = (settings.plan.cases.len(), began.elapsed().as_secs_f64());
        progress.say(&format!("{name}: daemon: {} over HTTP in {took:.1} s", count(n, "case")));
    }
    Some(served)
}

/// A running daemon as the subject: tokens and generation, the rest it can't show by its nature.
pub fn collect(url: &str, name: &str, settings: &Settings<'_>, progress: &Progress) -> Evidence {
    let began = Instant::now();
    let mut evidence = empty(name, Role::Subject);
    let client = Client::new(url, settings.limits.case);
    let reason = match client.health() {
        Health::Ready => None,
        Health::Failed(reason) => Some(reason),
        Health::Loading => Some(format!("the daemon at {url} is still loading its model")),
        Health::Unreachable(why) => Some(format!("failed to reach a daemon at {url}: {why}")),
    };
    if let Some(reason) = reason {
        evidence.missing = Some((reason, None));
        return evidence;
    }
    let mut served = Served::default();
    let fault = |kind, message| Fault { case: None, step: None, point: None, kind, message };
    evidence.faults.push(fault(FaultKind::Unsupported, "a daemon shows no tensors".into()));
    let bar = bar(progress, name, settings);
    match client.ask(&settings.plan.cases, Wanted::of(settings), &mut served, &bar) {
        Ok(()) => {
            progress.say(&format!("{name}: {} over HTTP", count(settings.plan.cases.len(), "case")))
        }
        Err(reason) => {
            progress.say(&format!("{name}: {reason}"));
            evidence.faults.push(fault(FaultKind::Process, reason.clone()));
            served.fault = Some(reason);
        }
    }
    evidence.generated = std::mem::take(&mut served.generated);
    evidence.served = Some(served);
    evidence.seconds = began.elapsed().as_secs_f64();
    evidence
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
    let client = Client::new(base, limits.case);
    service
        .wait_until(limits.load, || match client.health() {
            Health::Ready => Some(Ok(())),
            Health::Failed(reason) => Some(Err(reason)),
            Health::Loading | Health::Unreachable(_) => None,
        })
        .map_err(|failure| format!("the daemon: {failure}"))??;
    client.ask(&settings.plan.cases, wanted, served, bar)?;
    let finished = service.stop();
    match finished.exit {
        Some(exit) if exit.success() && finished.forced != Forced::Kill => Ok(()),
        exit => {
            let how = exit.map_or("it had to be killed".to_string(), |exit| exit.to_string());
            Err(format!("the daemon did not end well when it was told to: {how}"))
        }
    }
}

/// What `GET /health` tells.
enum Health {
    Ready,
    Loading,
    /// It says itself that it can't.
    Failed(String),
    Unreachable(String),
}

struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    fn new(base: &str, limit: Duration) -> Client {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(limit))
            // The body of an error says what is wrong.
            .http_status_as_error(false)
            // The daemon is on this machine, whatever proxy the environment names.
            .proxy(None);
        Client { agent: config.build().into(), base: base.to_string() }
    }

    fn ask(
        &self,
        cases: &[Case],
        wanted: Wanted,
        served: &mut Served,
        bar: &Bar,
    ) -> Result<(), String> {
        for (n, case) in cases.iter().enumerate() {
            bar.set(n as u64);
            bar.detail(&case.name);
            if let (true, Some(prompt)) = (wanted.tokens, &case.prompt) {
                served.tokens.insert(case.name.clone(), self.tokenize(prompt)?);
            }
            if wanted.generation && case.sampling.temperature == 0.0 && case.max_new_tokens > 0 {
                served.generated.insert(case.name.clone(), self.complete(case)?);
            }
        }
        Ok(())
    }

    fn health(&self) -> Health {
        let mut response = match self.agent.get(format!("{}/health", self.base)).call() {
            Ok(response) => response,
            Err(ureq::Error::Io(error)) => return Health::Unreachable(error.to_string()),
            Err(error) => return Health::Unreachable(error.to_string()),
        };
        let status = response.status();
        if status == 200 {
            return Health::Ready;
        }
        let body: Value = response.body_mut().read_json().unwrap_or_default();
        match body["status"].as_str() {
            Some("failed") => {
                Health::Failed(format!("the daemon is not healthy: {}", body["message"]))
            }
            Some("loading") => Health::Loading,
            _ => Health::Unreachable(format!("/health answered {status}; expected llorch-cpud's")),
        }
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        let answer = self.post("/tokenize", &json!({"text": text}))?;
        ids(&answer["ids"]).ok_or_else(|| unexpected("/tokenize", &answer))
    }

    /// The prompt goes as text where there is text.
    fn complete(&self, case: &Case) -> Result<Generation, String> {
        let prompt = case.prompt.as_ref().map_or_else(|| json!(case.ids), |text| json!(text));
        let answer = self.post(
            "/v1/completions",
            &json!({
                "prompt": prompt,
                "max_tokens": case.max_new_tokens,
                "temperature": 0,
                "ignore_eos": true,
                "return_token_ids": true,
            }),
        )?;
        let choice = &answer["choices"][0];
        let (ids, text) = (ids(&choice["token_ids"]), choice["text"].as_str());
        match (ids, text) {
            (Some(ids), Some(text)) => Ok(Generation { ids, text: Some(text.to_string()) }),
            _ => Err(unexpected("/v1/completions", &answer)),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let failed = |error: ureq::Error| format!("the daemon failed to answer {path}: {error}");
        let mut response =
            self.agent.post(format!("{}{path}", self.base)).send_json(body).map_err(failed)?;
        let status = response.status();
        let answer: Value = response.body_mut().read_json().map_err(failed)?;
        match status.is_success() {
            true => Ok(answer),
            false => Err(format!(
                "the daemon answered {path} with {status}: {}",
                shorten(&answer.to_string(), 200)
            )),
        }
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    value.as_array()?.iter().map(id).collect()
}

fn unexpected(path: &str, answer: &Value) -> String {
    format!(
        "the daemon's answer to {path} is not understood: {}",
        shorten(&answer.to_string(), 200)
    )
}
