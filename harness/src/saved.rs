//! What a run leaves behind, and its way back: `result.json`, a bundle for each implementation, and
//! `evidence.json` with all that bundles don't hold, so that a saved run can be judged again without
//! running anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use llorch_models::ResolveOptions;
use llorch_models::progress::Progress;
use llorch_trace::bundle::Manifest;
use llorch_trace::protocol::HelloResponse;
use llorch_trace::{Bundle, BundleWriter, Dims, Dtype, Point, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::evidence::{Case, Evidence, Fault, Plan, Served};
use crate::isolate::Isolation;
use crate::lineup::file_name;
use crate::oracle::{Continuation, Oracle, Truth};
use crate::result::{Generation, ModelRecord, Role, RunResult, Unchecked, UncheckedKind};

const SCHEMA: &str = "llorch.evidence/1";
pub const RESULT: &str = "result.json";
pub const EVIDENCE: &str = "evidence.json";
const ORACLE: &str = "oracle";
const LOGITS: &str = "logits.last";

#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("failed to {action} {}: {message}", path.display())]
    File { action: &'static str, path: PathBuf, message: String },
    #[error(transparent)]
    Trace(#[from] llorch_trace::Error),
}

/// Everything that judging needs, in the order of the run.
#[derive(Debug)]
pub struct Collected {
    pub plan: Plan,
    /// The subject first.
    pub evidence: Vec<Evidence>,
    pub truth: Truth,
    /// What was not checked for reasons that the evidence doesn't show: cases left out, weights that
    /// aren't real.
    pub unchecked: Vec<Unchecked>,
    /// Where stages were isolated: what they were given.
    pub isolation: Option<Isolation>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEvidence {
    schema: String,
    model_dir: PathBuf,
    points: Vec<Point>,
    /// Cases of the oracle.
    oracle: Vec<String>,
    unchecked: Vec<Unchecked>,
    implementations: Vec<SavedImplementation>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedImplementation {
    name: String,
    role: Role,
    hello: Option<HelloResponse>,
    #[serde(default)]
    lock_sha256: Option<String>,
    #[serde(default)]
    computes: Option<Dtype>,
    /// The folder of its bundle.
    bundle: Option<String>,
    generated: BTreeMap<String, Generation>,
    tokenized: BTreeMap<String, Vec<u32>>,
    #[serde(default)]
    served: Option<Served>,
    faults: Vec<Fault>,
    missing: Option<(String, Option<String>)>,
    seconds: f64,
}

/// Writes `evidence.json` and the oracle's bundle; the bundles of implementations are there already.
pub fn write_evidence(out: &Path, collected: &Collected) -> Result<(), SavedError> {
    write_oracle(&out.join(ORACLE), &collected.truth.continuations)?;
    let one = |e: &Evidence| SavedImplementation {
        name: e.name.clone(),
        role: e.role,
        hello: e.hello.clone(),
        lock_sha256: e.lock_sha256.clone(),
        computes: e.computes,
        bundle: e.bundle.as_ref().map(|_| file_name(&e.name)),
        generated: e.generated.clone(),
        tokenized: e.tokenized.clone(),
        served: e.served.clone(),
        faults: e.faults.clone(),
        missing: e.missing.clone(),
        seconds: e.seconds,
    };
    let saved = SavedEvidence {
        schema: SCHEMA.into(),
        model_dir: collected.plan.model_dir.clone(),
        points: collected.plan.points.clone(),
        oracle: collected.truth.continuations.keys().cloned().collect(),
        unchecked: collected.unchecked.clone(),
        implementations: collected.evidence.iter().map(one).collect(),
    };
    write_json(&out.join(EVIDENCE), &saved)
}

/// Written last: a folder with a result is whole.
pub fn write_result(out: &Path, result: &RunResult) -> Result<(), SavedError> {
    write_json(&out.join(RESULT), result)
}

/// The result in a folder that `run --out` wrote.
pub fn result(dir: &Path) -> Result<RunResult, SavedError> {
    read_json(&dir.join(RESULT), crate::result::SCHEMA)
}

/// The folder of the model that a run was made with.
pub fn model_dir(dir: &Path) -> Result<PathBuf, SavedError> {
    Ok(read_json::<SavedEvidence>(&dir.join(EVIDENCE), SCHEMA)?.model_dir)
}

/// Reads a folder that `run --out` wrote.
pub fn open(dir: &Path) -> Result<(RunResult, Collected), SavedError> {
    let result = result(dir)?;
    let saved: SavedEvidence = read_json(&dir.join(EVIDENCE), SCHEMA)?;
    let dims = Dims::from_config(&result.model.config)
        .map_err(|what| malformed(&dir.join(RESULT), what))?;
    let cases = result.cases.iter().map(|c| Case {
        name: c.name.clone(),
        prompt: c.prompt.clone(),
        ids: c.ids.clone(),
        max_new_tokens: c.max_new_tokens,
        sampling: c.sampling,
        forced_ids: c.forced_ids.clone(),
    });
    let plan =
        Plan { model_dir: saved.model_dir, dims, cases: cases.collect(), points: saved.points };
    let bar = Progress::new(false).steps("reading", "implementation", saved.implementations.len());
    let mut evidence = Vec::new();
    for (n, one) in saved.implementations.into_iter().enumerate() {
        bar.set(n as u64);
        bar.detail(&one.name);
        let bundle =
            one.bundle.as_ref().map(|name| whole(&dir.join(file_name(name)))).transpose()?;
        evidence.push(Evidence {
            name: one.name,
            role: one.role,
            hello: one.hello,
            lock_sha256: one.lock_sha256,
            computes: one.computes,
            bundle,
            generated: one.generated,
            tokenized: one.tokenized,
            served: one.served,
            faults: one.faults,
            missing: one.missing,
            seconds: one.seconds,
        });
    }
    let continuations = read_oracle(&dir.join(ORACLE), &saved.oracle, &plan)?;
    let mut unchecked = saved.unchecked;
    let mut oracle = None;
    let mut plan = plan;
    if !continuations.is_empty() {
        match weights(&plan.model_dir, &result.model) {
            Ok(found) => {
                plan.model_dir = found.0;
                oracle = Some(found.1);
            }
            Err(reason) => unchecked.push(Unchecked {
                what: "local errors, and the oracle's stages".into(),
                kind: UncheckedKind::Missing,
                reason,
            }),
        }
    }
    let truth = Truth { continuations, oracle };
    let reopened = |record| Isolation::reopen(dir, record, &plan.dims);
    let isolation = result.isolate.as_ref().map(reopened).transpose();
    let isolation = isolation.map_err(|what| malformed(&dir.join(RESULT), what))?;
    Ok((result, Collected { plan, evidence, truth, unchecked, isolation }))
}

/// The weights that a saved run was made with, which stages are recomputed from: where they were, or
/// where the model's name leads without a download. No others will do.
fn weights(saved: &Path, model: &ModelRecord) -> Result<(PathBuf, Oracle), String> {
    let same = |dir: &Path| {
        let found = llorch_trace::hash::sha256_file(&dir.join("model.safetensors"));
        found.is_ok_and(|sha256| sha256 == model.sha256)
    };
    let options = ResolveOptions { offline: true, quiet: true, ..ResolveOptions::default() };
    let dir = match same(saved) {
        true => saved.to_path_buf(),
        false => {
            let found = llorch_models::resolve(&model.name, &options);
            let found = found.map_err(|e| format!("the model is not here: {e}"))?;
            if !same(&found.dir) {
                return Err(format!(
                    "the weights of {} in {} are not those of the run, whose sha256 is {}",
                    model.name,
                    found.dir.display(),
                    model.sha256
                ));
            }
            found.dir
        }
    };
    let oracle = Oracle::open(&dir).map_err(|e| e.to_string())?;
    Ok((dir, oracle))
}

/// A bundle whose tensors are those that were saved: a damaged disk must not accuse an engine.
fn whole(dir: &Path) -> Result<Bundle, SavedError> {
    let bundle = Bundle::open(dir)?;
    bundle.verify()?;
    Ok(bundle)
}

fn write_oracle(dir: &Path, oracle: &BTreeMap<String, Continuation>) -> Result<(), SavedError> {
    let mut writer = BundleWriter::create(dir)?;
    for (case, continuation) in oracle {
        for (step, logits) in continuation.logits.iter().enumerate() {
            writer.add(case, step, LOGITS, &Tensor::f64(vec![logits.len()], logits.clone()))?;
        }
    }
    writer.finish(Manifest { implementation: ORACLE.into(), ..Manifest::default() })?;
    Ok(())
}

fn read_oracle(
    dir: &Path,
    cases: &[String],
    plan: &Plan,
) -> Result<BTreeMap<String, Continuation>, SavedError> {
    if cases.is_empty() {
        return Ok(BTreeMap::new());
    }
    let bundle = whole(dir)?;
    let mut oracle = BTreeMap::new();
    for case in plan.cases.iter().filter(|c| cases.contains(&c.name)) {
        let mut logits = Vec::new();
        for step in 0..case.steps() {
            match bundle.get(&case.name, step, LOGITS)?.data {
                TensorData::F64(values) => logits.push(values),
                other => logits.push(Tensor::new(vec![other.len()], other).to_f64()),
            }
        }
        oracle.insert(case.name.clone(), Continuation { ids: case.forced_ids.clone(), logits });
    }
    Ok(oracle)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SavedError> {
    let fail = |message: String| SavedError::File { action: "write", path: path.into(), message };
    let mut text = serde_json::to_string_pretty(value).map_err(|e| fail(e.to_string()))?;
    text.push('\n');
    let part = path.with_extension("part");
    fs::write(&part, text).and_then(|()| fs::rename(&part, path)).map_err(|e| fail(e.to_string()))
}

/// Reads JSON that says of itself that it has this schema.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path, schema: &str) -> Result<T, SavedError> {
    #[derive(Deserialize)]
    struct Named {
        schema: Option<String>,
    }
    let fail = |message: String| malformed(path, message);
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        // The result is written last.
        std::io::ErrorKind::NotFound => {
            fail("it is not there; expected the folder of a run --out that ended".into())
        }
        _ => fail(e.to_string()),
    })?;
    match serde_json::from_str::<Named>(&text) {
        Ok(Named { schema: Some(found) }) if found == schema => {}
        Ok(Named { schema: Some(found) }) => {
            let kind = |schema: &str| schema.split('/').next().map(String::from);
            let other = match kind(&found) == kind(schema) {
                true => ": another version of llorch-diff wrote it; run again with this one",
                false => "",
            };
            return Err(fail(format!("schema {found:?}; expected {schema:?}{other}")));
        }
        _ => return Err(fail(format!("found no JSON with a schema; expected {schema:?}"))),
    }
    serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
}

fn malformed(path: &Path, message: String) -> SavedError {
    SavedError::File { action: "read", path: path.into(), message }
}
