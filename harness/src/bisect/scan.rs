//! Every place at which the subject is wrong by itself, in the order in which data flows: by step,
//! then by point. Errors that came in don't count, and it is not assumed that errors grow.

use std::collections::{BTreeMap, HashSet};

use llorch_trace::{Point, Stage};

use super::{intervals, outside};
use crate::evidence::{Evidence, Plan};
use crate::oracle::Truth;
use crate::result::{Row, RowKind, Verdict};

/// One place at which the subject is wrong.
#[derive(Debug, Clone)]
pub struct Finding {
    pub step: usize,
    pub point: Point,
    /// The case's place in the run.
    pub case: usize,
    /// The row that says so.
    pub row: Row,
    /// Where what a stage reads was not captured: the last points before it that were, and from which
    /// the oracle continued. The fault lies at any point after those.
    pub after: Option<Vec<Point>>,
}

impl Finding {
    pub fn place(&self) -> (usize, Point, usize) {
        (self.step, self.point, self.case)
    }
}

/// What was run, for whom the subject is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    pub plan: &'a Plan,
    pub truth: &'a Truth,
    pub subject: &'a Evidence,
    pub rows: &'a [Row],
    /// There are no references.
    pub alone: bool,
}

/// Everything that is wrong, in order.
pub fn findings(run: &Judged<'_>) -> Vec<Finding> {
    let Judged { plan, subject, rows, .. } = *run;
    let cases: BTreeMap<&str, usize> =
        plan.cases.iter().enumerate().map(|(i, c)| (c.name.as_str(), i)).collect();
    let finding = |row: &Row| {
        let case = *cases.get(row.case.as_str())?;
        Some(Finding { step: row.step, point: row.point, case, row: row.clone(), after: None })
    };
    let ours = || rows.iter().filter(|r| r.a == subject.name && r.verdict == Verdict::Fail);
    // The selected logits are a row of all of them: where they are that, the head was wrong before.
    let selected: HashSet<(&str, usize)> = rows
        .iter()
        .filter(|r| r.a == subject.name && r.kind == RowKind::Own && r.verdict == Verdict::Pass)
        .filter(|r| r.point.stage == Stage::LogitsLast)
        .map(|r| (r.case.as_str(), r.step))
        .collect();
    let local = |r: &&Row| {
        let inherited =
            r.point.stage == Stage::LogitsLast && selected.contains(&(r.case.as_str(), r.step));
        !inherited && r.local.as_ref().is_some_and(|l| l.verdict == Verdict::Fail)
    };
    let mut all: Vec<Finding> = ours().filter(local).filter_map(finding).collect();
    let mut known: HashSet<_> = all.iter().map(Finding::place).collect();
    // Two rows may say the same of a place.
    let mut add = |all: &mut Vec<Finding>, found: Vec<Finding>| {
        all.extend(found.into_iter().filter(|f| known.insert(f.place())));
    };
    // What came in not finite comes out so, and equals nothing.
    let spread = |r: &Row| r.metrics.as_ref().is_some_and(|m| m.worst_values == [None, None]);
    let own = ours()
        .filter(|r| r.kind == RowKind::Own && r.point.stage != Stage::Generated && !spread(r));
    add(&mut all, own.filter_map(finding).collect());
    add(&mut all, intervals::findings(run));
    all.sort_by_key(Finding::place);
    // What is generated is made of everything else: it is a cause where nothing else is.
    let wrong: HashSet<usize> = all.iter().map(|f| f.case).collect();
    let generated = rows.iter().filter(|r| {
        r.point.stage == Stage::Generated
            && r.verdict_of(&subject.name) == Verdict::Fail
            && (r.a == subject.name || r.b == subject.name)
    });
    let mut texts: Vec<Finding> = generated.filter_map(finding).collect();
    texts.retain(|f| !wrong.contains(&f.case) && !is_the_oracles(run, f));
    if texts.is_empty() && wrong.is_empty() {
        texts.extend(unlike_the_oracle(run));
    }
    add(&mut all, texts);
    if all.is_empty() {
        add(&mut all, outside::findings(run));
    }
    all.sort_by_key(Finding::place);
    all
}

/// The reference may be the one that is off.
fn is_the_oracles(run: &Judged<'_>, finding: &Finding) -> bool {
    let case = &finding.row.case;
    let told = run.truth.continuations.get(case).zip(run.subject.generated.get(case));
    told.is_some_and(|(oracle, ours)| oracle.ids == ours.ids)
        && !finding.row.reason.contains("texts")
        && finding.row.kind == RowKind::Pair
}

/// Without references: a token that the oracle finds worse by more than rounding moves a logit.
fn unlike_the_oracle(run: &Judged<'_>) -> Vec<Finding> {
    let Judged { plan, truth, subject, rows, alone } = *run;
    let point = Point::new(Stage::Generated);
    if !alone || !plan.points.contains(&point) {
        return Vec::new();
    }
    let one = |(case, of): (usize, &crate::evidence::Case)| {
        let ours = &subject.generated.get(&of.name)?.ids;
        let oracle = truth.continuations.get(&of.name)?;
        let step = ours.iter().zip(&oracle.ids).position(|(a, b)| a != b)?;
        let logits = oracle.logits.get(step)?;
        let logit = |id: u32| logits.get(id as usize).copied().unwrap_or(f64::NEG_INFINITY);
        let (chosen, best) = (ours[step], oracle.ids[step]);
        let margin = logit(best) - logit(chosen);
        let last = |r: &&Row| {
            r.point.stage == Stage::LogitsLast && r.a == subject.name && r.kind == RowKind::Oracle
        };
        let bound = rows.iter().filter(last).filter_map(|r| Some(r.local.as_ref()?.band));
        let bound = 2.0 * bound.fold(0.0, f64::max);
        if margin <= bound {
            return None;
        }
        let mut row = Row::new(&of.name, step, point, RowKind::Oracle, &subject.name, "oracle");
        row.verdict = Verdict::Fail;
        row.reason = format!(
            "token {step}: {chosen} where the oracle has {best}, with a margin of {margin:.2e}"
        );
        Some(Finding { step, point, case, row, after: None })
    };
    plan.cases.iter().enumerate().filter_map(one).collect()
}
