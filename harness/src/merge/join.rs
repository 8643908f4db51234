//! One run's evidence out of that of its parts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use llorch_trace::bundle::Manifest;
use llorch_trace::{Bundle, BundleWriter};

use super::parts::Part;
use crate::evidence::{Case, Evidence, Fault, FaultKind, Plan, Served};
use crate::lineup::file_name;
use crate::oracle::Truth;
use crate::partition::By;
use crate::result::{Role, Unchecked, UncheckedKind};
use crate::run::RunError;
use crate::saved::Collected;

/// Writes the joined bundles to `out`. The parts belong together.
pub fn join(parts: Vec<Part>, out: &Path) -> Result<Collected, RunError> {
    let by = parts[0].record.by;
    let mut unchecked: Vec<Unchecked> = Vec::new();
    for one in parts.iter().flat_map(|p| &p.collected.unchecked) {
        if !unchecked.contains(one) {
            unchecked.push(one.clone());
        }
    }
    unchecked.extend(missing(&parts));
    let evidence = match by {
        By::Case => by_case(&parts, out)?,
        By::Reference => by_reference(&parts, out)?,
    };
    let plan = plan(&parts);
    let mut truth = Truth::default();
    for part in parts {
        truth.continuations.extend(part.collected.truth.continuations);
        truth.oracle = truth.oracle.or(part.collected.truth.oracle);
    }
    Ok(Collected { plan, evidence, truth, unchecked, isolation: None })
}

/// The parts that were not given, by name.
fn missing(parts: &[Part]) -> Vec<Unchecked> {
    let record = &parts[0].record;
    let given = |part: &usize| parts.iter().any(|p| p.record.partition.part == *part);
    let what = if record.by == By::Case { "cases" } else { "references" };
    (1..=record.partition.of)
        .filter(|part| !given(part))
        .map(|part| Unchecked {
            what: format!("part {part} of {}", record.partition.of),
            kind: UncheckedKind::Missing,
            reason: format!("it was not merged; its {what} are {}", record.names(part).join(", ")),
        })
        .collect()
}

fn plan(parts: &[Part]) -> Plan {
    let first = &parts[0].collected.plan;
    let all = |name: &String| {
        let of = |p: &Part| p.collected.plan.cases.iter().find(|c| c.name == *name).cloned();
        parts.iter().find_map(of)
    };
    Plan {
        cases: parts[0].record.cases.iter().filter_map(all).collect::<Vec<Case>>(),
        ..first.clone()
    }
}

/// Everybody took part in every part, in some of the cases.
fn by_case(parts: &[Part], out: &Path) -> Result<Vec<Evidence>, RunError> {
    let cases: Vec<String> = plan(parts).cases.into_iter().map(|c| c.name).collect();
    let mut all = Vec::new();
    for place in 0..parts[0].collected.evidence.len() {
        let shares: Vec<(&Part, &Evidence)> =
            parts.iter().filter_map(|p| Some((p, p.collected.evidence.get(place)?))).collect();
        all.push(share(&shares, &cases, out)?);
    }
    Ok(all)
}

/// One implementation.
fn share(
    shares: &[(&Part, &Evidence)],
    cases: &[String],
    out: &Path,
) -> Result<Evidence, RunError> {
    let first = shares[0].1;
    let ran: Vec<&Evidence> =
        shares.iter().map(|(_, e)| *e).filter(|e| e.missing.is_none()).collect();
    let whole = ran.is_empty();
    let mut faults = Vec::new();
    for (part, e) in shares {
        let own: Vec<String> = part.collected.plan.cases.iter().map(|c| c.name.clone()).collect();
        match &e.missing {
            Some(_) if whole => {}
            Some((reason, _)) => faults.extend(own.iter().map(|case| Fault {
                case: Some(case.clone()),
                step: None,
                point: None,
                kind: FaultKind::Process,
                message: format!("missing in {}: {reason}", part.record.partition),
            })),
            None => faults.extend(e.faults.iter().flat_map(|fault| narrowed(fault, &own))),
        }
    }
    let union = |of: fn(&Evidence) -> &BTreeMap<String, _>| {
        ran.iter().flat_map(|e| of(e).clone()).collect::<BTreeMap<_, _>>()
    };
    let tokenized = ran.iter().flat_map(|e| e.tokenized.clone()).collect();
    Ok(Evidence {
        name: first.name.clone(),
        role: first.role,
        hello: ran.iter().find_map(|e| e.hello.clone()),
        computes: ran.iter().find_map(|e| e.computes),
        lock_sha256: ran.iter().find_map(|e| e.lock_sha256.clone()),
        bundle: bundle(&ran, cases, &out.join(file_name(&first.name)))
            .map_err(|e| RunError::Environment(e.to_string()))?,
        generated: union(|e| &e.generated),
        tokenized,
        served: served(&ran),
        faults,
        missing: if whole { first.missing.clone() } else { None },
        seconds: shares.iter().map(|(_, e)| e.seconds).sum(),
    })
}

/// What befell a whole implementation befell the cases of its part.
fn narrowed(fault: &Fault, cases: &[String]) -> Vec<Fault> {
    match fault.case {
        Some(_) => vec![fault.clone()],
        None => {
            let of = |case: &String| Fault { case: Some(case.clone()), ..fault.clone() };
            cases.iter().map(of).collect()
        }
    }
}

fn served(ran: &[&Evidence]) -> Option<Served> {
    let mut joined: Option<Served> = None;
    for one in ran.iter().filter_map(|e| e.served.as_ref()) {
        let all = joined.get_or_insert_default();
        all.tokens.extend(one.tokens.clone());
        all.generated.extend(one.generated.clone());
        all.fault = all.fault.take().or_else(|| one.fault.clone());
    }
    joined
}

/// All tensors in one bundle, case by case as the whole run has them.
fn bundle(ran: &[&Evidence], cases: &[String], dir: &Path) -> llorch_trace::Result<Option<Bundle>> {
    let bundles: Vec<&Bundle> = ran.iter().filter_map(|e| e.bundle.as_ref()).collect();
    let Some(first) = bundles.first() else { return Ok(None) };
    let mut writer = BundleWriter::create(dir)?;
    for case in cases {
        for bundle in &bundles {
            for entry in bundle.manifest.tensors.iter().filter(|entry| entry.case == *case) {
                let tensor = bundle.get(case, entry.step, &entry.point)?;
                writer.add(case, entry.step, &entry.point, &tensor)?;
            }
        }
    }
    let records = bundles.iter().flat_map(|b| b.manifest.cases.clone()).collect();
    let manifest = Manifest { cases: records, ..first.manifest.clone() };
    Ok(Some(writer.finish(manifest)?))
}

/// The subject is the same in all parts; each part has references of its own.
fn by_reference(parts: &[Part], out: &Path) -> Result<Vec<Evidence>, RunError> {
    let cases: Vec<String> = plan(parts).cases.into_iter().map(|c| c.name).collect();
    let one = |part: &Part, e: &Evidence| share(&[(part, e)], &cases, out);
    let first = &parts[0];
    let mut all = vec![one(first, &first.collected.evidence[0])?];
    all[0].seconds = parts.iter().map(|p| p.collected.evidence[0].seconds).sum();
    for name in &first.record.references {
        let has = |p: &&Part| p.record.names(p.record.partition.part).contains(name);
        let Some(part) = parts.iter().find(has) else {
            let mut absent = crate::collect::empty(name, Role::Reference);
            absent.missing = Some(("its part was not merged".into(), None));
            all.push(absent);
            continue;
        };
        if let Some(e) = part.collected.evidence.iter().skip(1).find(|e| e.name == *name) {
            all.push(one(part, e)?);
        }
    }
    Ok(all)
}

/// What adapters said on stderr, by part.
pub fn copy_stderr(parts: &[Part], out: &Path) -> Result<(), RunError> {
    let fail = |path: &Path, e: std::io::Error| {
        RunError::Environment(format!("failed to copy {}: {e}", path.display()))
    };
    for part in parts {
        let entries = fs::read_dir(&part.dir).map_err(|e| fail(&part.dir, e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".stderr.txt") {
                let to = format!("{name}.part-{}.stderr.txt", part.record.partition.part);
                fs::copy(&path, out.join(to)).map_err(|e| fail(&path, e))?;
            }
        }
    }
    Ok(())
}
