//! One verdict of all rows, the status of each implementation, and the list of what was not checked.
//!
//! ERROR: the subject crashed, hung or gave wrong shapes, or nothing was compared at all. FAIL: a row
//! says so, and it is no reference's fault. INCOMPLETE: a reference is missing or broke, or a point that the subject gave was checked
//! by nobody. What an implementation declares that it can't do by nature is shown and lowers nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdicts, odd};
use crate::evidence::{Evidence, Fault, FaultKind, Plan};
use crate::result::{
    NO_REFERENCE, Role, Row, RowKind, RunVerdict, Status, Unchecked, UncheckedKind, Verdict,
};

pub fn conclude(plan: &Plan, evidence: &[Evidence], rows: Vec<Row>) -> Verdicts {
    let unchecked = unchecked(plan, evidence, &rows);
    let statuses: BTreeMap<_, _> =
        evidence.iter().map(|e| (e.name.clone(), status(e, &rows))).collect();
    let odd = odd::find(evidence, &rows);
    let verdict = verdict(evidence, &rows, &unchecked, &statuses);
    Verdicts { rows, odd, unchecked, verdict, statuses }
}

fn verdict(
    evidence: &[Evidence],
    rows: &[Row],
    unchecked: &[Unchecked],
    statuses: &BTreeMap<String, (Status, String)>,
) -> RunVerdict {
    let compared = rows.iter().any(|r| r.kind == RowKind::Pair && r.verdict != Verdict::Unchecked);
    let broken = |role: Role| {
        let of_role = evidence.iter().filter(|e| e.role == role);
        of_role.filter_map(|e| statuses.get(&e.name)).any(|(s, _)| *s != Status::Ok)
    };
    // A FAIL counts where it is the subject's, or where nobody knows whose it is; a reference that is
    // wrong is named, and confirms nothing, but the subject does not answer for it.
    let subject = evidence.iter().find(|e| e.role == Role::Subject).map_or("", |e| &e.name);
    let any = |v: Verdict| rows.iter().any(|r| r.verdict_of(subject) == v);
    // Two references differ and neither is wrong by the oracle: to be looked at.
    let open = |r: &Row| {
        r.kind == RowKind::Pair
            && r.verdict == Verdict::Fail
            && r.blame.is_empty()
            && r.verdict_of(subject) == Verdict::Unchecked
    };
    let missing = unchecked.iter().any(|u| u.kind == UncheckedKind::Missing);
    match () {
        _ if broken(Role::Subject) || !compared => RunVerdict::Error,
        _ if any(Verdict::Fail) => RunVerdict::Fail,
        _ if broken(Role::Reference) || missing || any(Verdict::Error) => RunVerdict::Incomplete,
        _ if any(Verdict::Warn) || rows.iter().any(open) => RunVerdict::Warn,
        _ => RunVerdict::Pass,
    }
}

fn status(e: &Evidence, rows: &[Row]) -> (Status, String) {
    if let Some((reason, _)) = &e.missing {
        return (Status::Missing, reason.clone());
    }
    let mut faults = e.faults.iter().filter(|f| f.kind != FaultKind::Unsupported);
    // A whole implementation or a whole case failed.
    if let Some(fault) = faults.clone().find(|f| f.point.is_none()) {
        let whole =
            fault.case.is_none() || e.bundle.as_ref().is_none_or(|b| b.manifest.tensors.is_empty());
        let status = if whole { Status::Error } else { Status::Partial };
        return (status, fault.message.clone());
    }
    // Values that are not finite are judged as values, in their rows.
    let fault = faults.find(|f| f.kind != FaultKind::NonFinite);
    if let Some(fault) = fault {
        let at = fault.point.map(|p| format!("{p}: ")).unwrap_or_default();
        return (Status::Partial, format!("{at}{}", fault.message));
    }
    let own =
        |r: &&Row| r.verdict == Verdict::Error && r.reason.starts_with(&format!("{}: ", e.name));
    match rows.iter().find(own) {
        Some(row) => (Status::Partial, format!("{}: {}", row.point, row.reason)),
        // What it can't do as a whole lowers nothing by itself, but is said.
        None => (Status::Ok, cannot(e).unwrap_or_default()),
    }
}

/// Why it gave no tensors at all, where that is its nature: a dtype, no capture.
fn cannot(e: &Evidence) -> Option<String> {
    let whole = |f: &&Fault| {
        f.kind == FaultKind::Unsupported
            && f.case.is_none()
            && f.step.is_none()
            && f.point.is_none()
    };
    e.faults.iter().find(whole).map(|f| f.message.clone())
}

fn unchecked(plan: &Plan, evidence: &[Evidence], rows: &[Row]) -> Vec<Unchecked> {
    let mut list = BTreeSet::new();
    for e in evidence {
        if let Some((reason, mend)) = &e.missing {
            let mend = mend.as_ref().map(|m| format!("; mend it with `{m}`")).unwrap_or_default();
            list.insert(Unchecked {
                what: format!("{}: every point", e.name),
                kind: UncheckedKind::Missing,
                reason: format!("{reason}{mend}"),
            });
        }
        list.extend(broke(e));
        let declared = e.hello.iter().flat_map(|h| &h.unsupported);
        for u in declared {
            let asked = plan
                .points
                .iter()
                .any(|p| llorch_trace::points::glob_matches(&u.point, &p.to_string()));
            if asked {
                list.insert(Unchecked {
                    what: format!("{}: {}", e.name, u.point),
                    kind: UncheckedKind::Unsupported,
                    reason: u.reason.clone(),
                });
            }
        }
    }
    list.extend(nobody_checked(evidence, rows));
    list.into_iter().collect()
}

/// What a reference left unchecked because it crashed, hung or talked nonsense. (A subject that does is
/// the ERROR of the whole run.)
fn broke(e: &Evidence) -> Vec<Unchecked> {
    let whole = |f: &&Fault| f.kind != FaultKind::Unsupported && f.point.is_none();
    let one = |f: &Fault| Unchecked {
        what: match &f.case {
            Some(case) => format!("{}: case {case}", e.name),
            None => format!("{}: every point", e.name),
        },
        kind: UncheckedKind::Missing,
        reason: f.message.lines().next().unwrap_or_default().to_string(),
    };
    let is_reference = e.role == Role::Reference;
    e.faults.iter().filter(|_| is_reference).filter(whole).map(one).collect()
}

/// Points that the subject gave and that no pair checked.
fn nobody_checked(evidence: &[Evidence], rows: &[Row]) -> Vec<Unchecked> {
    let Some(subject) = evidence.iter().find(|e| e.role == Role::Subject) else {
        return Vec::new();
    };
    let subject_can = |row: &Row| {
        let reason =
            subject.hello.as_ref().and_then(|h| h.unsupported_reason(&row.point.to_string()));
        reason.is_none() && !row.reason.starts_with(&format!("{}: ", subject.name))
    };
    let mut checked: BTreeMap<_, bool> = BTreeMap::new();
    let pairs = rows.iter().filter(|r| r.kind == RowKind::Pair && r.a == subject.name);
    for row in pairs.filter(|r| subject_can(r)) {
        *checked.entry(row.point).or_default() |= row.verdict != Verdict::Unchecked;
    }
    let nobody: Vec<_> =
        checked.into_iter().filter(|(_, c)| !c).map(|(p, _)| p.to_string()).collect();
    if nobody.is_empty() {
        return Vec::new();
    }
    vec![Unchecked {
        what: nobody.join(", "),
        kind: UncheckedKind::Missing,
        reason: NO_REFERENCE.into(),
    }]
}
