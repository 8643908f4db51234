//! Whether a cause is the cause, for a subject that can inject: the oracle's tensors are put at its
//! point, and everything that follows must heal, up to the next cause.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llorch_models::progress::Progress;
use llorch_trace::files::write_npy;
use llorch_trace::protocol::Inject;
use llorch_trace::{Dtype, Point, Stage, Tensor};

use super::causes::{Cause, causes as find_causes};
use super::scan::{Finding, Judged, findings};
use crate::collect::{Settings, collect};
use crate::evidence::{Evidence, Fault, FaultKind, Plan};
use crate::judge::{JudgeOptions, judge};
use crate::oracle::Trace;
use crate::result::{Role, RowKind, Verdict};
use crate::supervise::{AdapterCommand, Limits};

/// Causes that are healed one after another; more are only listed.
const MOST: usize = 6;

/// How the subject is run once more.
#[derive(Debug)]
pub struct Surgery<'a> {
    pub command: &'a AdapterCommand,
    pub limits: Limits,
    pub dtype: Dtype,
    pub threads: usize,
}

/// Heals the causes one after another, each with those before it, and adds those that show only then.
/// The error says why nothing could be told.
pub fn heal(
    run: &Judged<'_>,
    causes: &mut Vec<Cause>,
    surgery: &Surgery<'_>,
) -> Result<(), String> {
    let progress = Progress::new(false);
    let mut at = 0;
    while at < causes.len().min(MOST) {
        if can_be_healed(&causes[at]) {
            let bar = progress.steps("healing", "cause", causes.len().min(MOST));
            bar.set(at as u64);
            bar.detail(&causes[at].point().to_string());
            let new = heal_one(run, causes, at, surgery)?;
            let rest = causes.split_off(at + 1);
            let mut behind = [rest, new].concat();
            behind.sort_by_key(|cause| cause.first().place());
            causes.extend(behind);
        }
        at += 1;
    }
    Ok(())
}

/// Heals the first causes up to `at`, says whether that one's healing heals what follows, and returns
/// the causes that show only now.
fn heal_one(
    run: &Judged<'_>,
    causes: &mut [Cause],
    at: usize,
    surgery: &Surgery<'_>,
) -> Result<Vec<Cause>, String> {
    let Some(oracle) = &run.truth.oracle else { return Ok(Vec::new()) };
    let scratch = tempfile::Builder::new().prefix("llorch-heal-").tempdir();
    let scratch = scratch.map_err(|e| format!("no temporary folder: {e}"))?;
    let _cleanup = crate::supervise::remove_on_interrupt(scratch.path());
    let healed = &causes[..=at];
    let plan = plan_of(run.plan, healed);
    let mut traces = BTreeMap::new();
    for case in &plan.cases {
        let fed = &case.forced_ids[..case.forced_ids.len().min(case.steps() - 1)];
        traces.insert(case.name.clone(), oracle.trace(&case.ids, fed).map_err(|e| e.to_string())?);
    }
    let inject = injections(&plan, healed, &traces, scratch.path(), surgery.dtype)?;
    let evidence = again(&plan, surgery, scratch.path(), inject)?;
    // A whole case that failed, or was refused, says nothing; what a point does not show is known.
    let failed =
        |f: &&Fault| f.point.is_none() && (f.case.is_some() || f.kind == FaultKind::Process);
    if let Some(fault) = evidence.faults.iter().find(failed) {
        return Err(fault.message.clone());
    }
    let all = [evidence];
    let rows = judge(&plan, &all, run.truth, &JudgeOptions::default()).rows;
    let after =
        Judged { plan: &plan, truth: run.truth, subject: &all[0], rows: &rows, alone: true };
    let left = left(&after, healed);
    let well = heals(&after, &causes[..=at], &left);
    causes[at].heals = Some(well);
    // What is wrong at a stage at which nothing was known to be.
    let new = left.into_iter().filter(|f| !causes.iter().any(|c| c.covers(f.point))).collect();
    let mut new = find_causes(&after, new);
    for finding in new.iter_mut().flat_map(|cause| &mut cause.findings) {
        let same = run.plan.cases.iter().position(|c| c.name == finding.row.case);
        finding.case = same.unwrap_or(finding.case);
    }
    Ok(new)
}

/// There must be something behind it that can heal.
fn can_be_healed(cause: &Cause) -> bool {
    let point = cause.point();
    cause.first().after.is_none()
        && !point.is_integer()
        && !matches!(
            point.stage,
            Stage::Logits | Stage::LogitsLast | Stage::NextProbs | Stage::Generated
        )
}

/// The cases in which the causes are, and nothing that is generated freely.
fn plan_of(whole: &Plan, causes: &[Cause]) -> Plan {
    let wrong: BTreeSet<usize> =
        causes.iter().flat_map(|c| c.findings.iter().map(|f| f.case)).collect();
    let mut plan = whole.clone();
    plan.cases = wrong.into_iter().map(|i| whole.cases[i].clone()).collect();
    plan.points.retain(|p| p.stage != Stage::Generated);
    plan
}

/// The oracle's tensors at every point, layer and step of the causes.
fn injections(
    plan: &Plan,
    causes: &[Cause],
    traces: &BTreeMap<String, Trace>,
    dir: &Path,
    dtype: Dtype,
) -> Result<BTreeMap<String, Vec<Inject>>, String> {
    let points: Vec<Point> = llorch_trace::all_points(plan.dims.n_layer)
        .into_iter()
        .filter(|p| causes.iter().any(|c| can_be_healed(c) && c.covers(*p)))
        .collect();
    let mut all = BTreeMap::new();
    for case in &plan.cases {
        let mut list = Vec::new();
        for step in 0..case.steps() {
            for &point in &points {
                let Some(numbers) = traces[&case.name].get(step, point) else { continue };
                let tensor = match dtype {
                    Dtype::F64 => Tensor::f64(numbers.shape, numbers.values),
                    _ => {
                        let narrow = numbers.values.iter().map(|v| *v as f32).collect();
                        Tensor::f32(numbers.shape, narrow)
                    }
                };
                let file = dir.join(format!("{}-{step}-{point}.npy", case.name));
                write_npy(&file, &tensor).map_err(|e| e.to_string())?;
                list.push(Inject { point: point.to_string(), step, file, key: None });
            }
        }
        all.insert(case.name.clone(), list);
    }
    Ok(all)
}

fn again(
    plan: &Plan,
    surgery: &Surgery<'_>,
    dir: &Path,
    inject: BTreeMap<String, Vec<Inject>>,
) -> Result<Evidence, String> {
    let settings = Settings {
        plan,
        limits: surgery.limits.clone(),
        dtype: surgery.dtype,
        threads: surgery.threads,
        out: dir,
        model: serde_json::Value::Null,
        taken: Vec::new(),
        isolation: None,
        inject,
    };
    let evidence = collect(surgery.command, Role::Subject, &settings, &Progress::silent());
    let evidence = evidence.map_err(|e| e.to_string())?;
    match &evidence.missing {
        Some((reason, _)) => Err(reason.clone()),
        None => Ok(evidence),
    }
}

/// What is still wrong. What was injected is not judged: it fits the oracle's inputs, not the subject's.
fn left(after: &Judged<'_>, healed: &[Cause]) -> Vec<Finding> {
    let injected = |point: Point| healed.iter().any(|c| can_be_healed(c) && c.covers(point));
    // A cache of injected keys holds them, not those that are shown.
    let filled = |point: Point| match point.stage {
        Stage::CacheK => injected(Point { stage: Stage::K, ..point }),
        Stage::CacheV => injected(Point { stage: Stage::V, ..point }),
        _ => false,
    };
    let mut left = findings(after);
    left.retain(|f| !injected(f.point) && !filled(f.point));
    left
}

/// Everything behind the last of the healed causes, and before what is still wrong by itself, is as the
/// oracle has it.
fn heals(after: &Judged<'_>, healed: &[Cause], left: &[Finding]) -> bool {
    let Some(cause) = healed.last() else { return true };
    let begin = |case: &str| {
        let of_case = cause.findings.iter().filter(|f| f.row.case == case);
        of_case.map(|f| (f.step, f.point)).min()
    };
    let end = |case: &str| {
        let of_case = left.iter().filter(|f| f.row.case == case);
        of_case.map(|f| (f.step, f.point)).min()
    };
    !after.rows.iter().any(|r| {
        let place = (r.step, r.point);
        r.a == after.subject.name
            && r.kind == RowKind::Oracle
            && r.verdict == Verdict::Fail
            && !healed.iter().any(|c| c.covers(r.point))
            && begin(&r.case).is_some_and(|begin| place > begin)
            && end(&r.case).is_none_or(|end| place < end)
    })
}
