//! Makes the one saved result out of evidence and verdicts.

use std::collections::BTreeMap;

use llorch_models::{ResolvedModel, published};

use super::RunError;
use crate::evidence::Evidence;
use crate::judge::{Overrides, Verdicts};
use crate::machine::Machine;
use crate::partition::PartRecord;
use crate::result::{
    CaseRecord, Implementation, Means, ModelKind, ModelRecord, RunResult, RunVerdict, SCHEMA,
    Status, Unchecked, UncheckedKind,
};
use crate::saved::Collected;

/// What a run knows beside its evidence.
#[derive(Debug)]
pub struct Facts {
    pub model: ModelRecord,
    /// RFC 3339.
    pub started: String,
    pub seconds: BTreeMap<String, f64>,
    pub command: Vec<String>,
    pub means: Means,
    /// None where the parts of a run were made on several kinds.
    pub machine: Option<Machine>,
    /// Of a part of a run.
    pub partition: Option<PartRecord>,
}

pub fn model_record(model: &ResolvedModel) -> Result<ModelRecord, RunError> {
    let path = model.dir.join("config.json");
    let fail = |what: String| RunError::Usage(format!("failed to read {}: {what}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let config = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let kind = match model.kind {
        llorch_models::ModelKind::Trained => ModelKind::Trained,
        llorch_models::ModelKind::Synthetic => ModelKind::Synthetic,
        llorch_models::ModelKind::Real => ModelKind::Real,
    };
    Ok(ModelRecord {
        name: model.name.clone(),
        kind,
        source: model.source.clone(),
        revision: model.revision.clone(),
        sha256: model.weights_sha256().to_string(),
        config,
    })
}

/// The line that every result on other weights carries.
pub fn real_weights(model: &ResolvedModel) -> Option<Unchecked> {
    let kind = match model.kind {
        llorch_models::ModelKind::Real => return None,
        kind => kind,
    };
    // Who asked for them by name needs to hear what came instead.
    let expected = published::by_name(&model.name).and_then(|p| Some((p, p.weights_sha256?)));
    let reason = match expected {
        Some((published, sha256)) => format!(
            "{} came with weights of sha256 {}; those of {} have {sha256}. Another file took their place: \
             see to it that HF_ENDPOINT is the hub or a true mirror, remove {}, and run again",
            model.name,
            model.weights_sha256(),
            published.repo,
            model.dir.display(),
        ),
        None => format!(
            "{} is {kind}; check the real ones with `llorch-diff run --model gpt2`",
            model.name
        ),
    };
    let what = "real GPT-2 weights".into();
    Some(Unchecked { what, kind: UncheckedKind::Unsupported, reason })
}

/// What the judge doesn't see lowers the verdict too: weights that are gone, a part that was not given.
fn verdict(collected: &Collected, judged: RunVerdict) -> RunVerdict {
    let missing = collected.unchecked.iter().any(|u| u.kind == UncheckedKind::Missing);
    judged.max(if missing { RunVerdict::Incomplete } else { RunVerdict::Pass })
}

pub fn result(collected: &Collected, verdicts: Verdicts, facts: Facts) -> RunResult {
    let verdict = verdict(collected, verdicts.verdict);
    let mut unchecked = verdicts.unchecked;
    unchecked.extend(collected.unchecked.iter().cloned());
    RunResult {
        schema: SCHEMA.into(),
        verdict,
        started: facts.started,
        seconds: facts.seconds,
        command: facts.command,
        means: facts.means,
        machine: facts.machine,
        model: facts.model,
        implementations: implementations(&collected.evidence, &verdicts.statuses),
        cases: cases(collected),
        rows: verdicts.rows,
        odd: verdicts.odd,
        tolerances: Overrides::default(),
        unchecked,
        assessment: None,
        strategy: None,
        isolate: collected.isolation.as_ref().map(|i| i.record.clone()),
        partition: facts.partition,
    }
}

/// Puts another judgement of the same evidence in the place of a result's own.
pub fn judged_again(result: &mut RunResult, collected: &Collected, verdicts: Verdicts) {
    for implementation in &mut result.implementations {
        if let Some((status, reason)) = verdicts.statuses.get(&implementation.name) {
            (implementation.status, implementation.reason) = (*status, reason.clone());
        }
    }
    result.verdict = verdict(collected, verdicts.verdict);
    (result.rows, result.odd) = (verdicts.rows, verdicts.odd);
    result.unchecked = [verdicts.unchecked, collected.unchecked.clone()].concat();
}

fn implementations(
    evidence: &[Evidence],
    statuses: &BTreeMap<String, (Status, String)>,
) -> Vec<Implementation> {
    let one = |e: &Evidence| {
        let (status, reason) =
            statuses.get(&e.name).cloned().unwrap_or((Status::Ok, String::new()));
        let hello = e.hello.as_ref();
        Implementation {
            name: e.name.clone(),
            role: e.role,
            version: hello.map_or_else(String::new, |h| h.version.clone()),
            lock_sha256: e.lock_sha256.clone(),
            worth: hello.map(|h| h.worth),
            status,
            reason,
            mend: e.missing.as_ref().and_then(|(_, mend)| mend.clone()),
            recipes: hello.map_or_else(BTreeMap::new, |h| h.recipes.clone()),
        }
    };
    evidence.iter().map(one).collect()
}

fn cases(collected: &Collected) -> Vec<CaseRecord> {
    let generated = |case: &str| {
        let of = |e: &Evidence| Some((e.name.clone(), e.generated.get(case)?.clone()));
        collected.evidence.iter().filter_map(of).collect()
    };
    let record = |c: &crate::evidence::Case| CaseRecord {
        name: c.name.clone(),
        prompt: c.prompt.clone(),
        ids: c.ids.clone(),
        max_new_tokens: c.max_new_tokens,
        sampling: c.sampling,
        forced_ids: c.forced_ids.clone(),
        generated: generated(&c.name),
    };
    collected.plan.cases.iter().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_not_those_that_were_asked_for_get_no_circular_advice() {
        let mut model = ResolvedModel {
            name: "gpt2".into(),
            kind: llorch_models::ModelKind::Trained,
            source: "hub openai-community/gpt2".into(),
            revision: None,
            dir: "/cache/snapshot".into(),
            files: vec![llorch_models::FileHash {
                name: "model.safetensors".into(),
                bytes: 1,
                sha256: "abc123".into(),
            }],
        };
        let reason = real_weights(&model).unwrap().reason;
        assert!(!reason.contains("--model gpt2"), "{reason}");
        for part in ["abc123", "248dfc3911", "HF_ENDPOINT", "remove /cache/snapshot"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        model.name = "./mine".into();
        assert!(real_weights(&model).unwrap().reason.contains("run --model gpt2"));
        model.kind = llorch_models::ModelKind::Real;
        assert_eq!(real_weights(&model), None);
    }
}
