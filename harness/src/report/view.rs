//! The rows of a result, grouped for the eye: by checkpoint, then by kind of point, layers, steps and
//! cases folded onto the worst of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::text::pattern;
use llorch_trace::{Point, Stage};

use crate::references::without_release;
use crate::result::{Implementation, Row, RowKind, RunResult, Status, Verdict};
use llorch_trace::points::CHECKPOINTS;
use llorch_trace::protocol::Worth;

/// One checkpoint that the run looked at.
pub struct CheckpointView<'a> {
    pub number: u8,
    pub name: &'static str,
    pub verdict: Verdict,
    pub lines: Vec<PointLine<'a>>,
    /// References of each worth whose every row against the subject passed, at least one compared. The
    /// releases of one reference count once: they are no independent witnesses.
    pub semantics: usize,
    pub kernels: usize,
}

/// One kind of point: `h.*.attn.q` in all layers, steps and cases.
pub struct PointLine<'a> {
    pub label: String,
    /// How many rows a pair has here.
    pub folded: usize,
    pub verdict: Verdict,
    pub rows: Vec<&'a Row>,
    /// The row that stands for all: the worst verdict, then the largest error.
    pub worst: &'a Row,
}

/// Two implementations, by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub a: String,
    pub b: String,
}

pub fn checkpoints(result: &RunResult) -> Vec<CheckpointView<'_>> {
    CHECKPOINTS.iter().filter_map(|c| checkpoint(result, c.number)).collect()
}

fn checkpoint(result: &RunResult, number: u8) -> Option<CheckpointView<'_>> {
    let rows: Vec<&Row> = result.rows.iter().filter(|r| r.checkpoint == number).collect();
    let subject = result.subject_name();
    let mut stages: Vec<Stage> = rows.iter().map(|r| r.point.stage).collect();
    stages.sort();
    stages.dedup();
    let lines: Vec<PointLine<'_>> = stages
        .into_iter()
        .filter_map(|stage| {
            line(subject, rows.iter().copied().filter(|r| r.point.stage == stage).collect())
        })
        .collect();
    if lines.is_empty() {
        return None;
    }
    let confirming = |worth: Worth| {
        let confirms =
            |i: &&Implementation| i.worth == Some(worth) && confirms(result, &rows, &i.name);
        let names = result.references().filter(confirms).map(|i| without_release(&i.name));
        names.collect::<BTreeSet<_>>().len()
    };
    Some(CheckpointView {
        number,
        name: CHECKPOINTS[number as usize].name,
        verdict: overall(subject, &rows),
        semantics: confirming(Worth::Semantics),
        kernels: confirming(Worth::Kernels),
        lines,
    })
}

/// Whether a reference checked the subject there, and found nothing wrong.
fn confirms(result: &RunResult, rows: &[&Row], reference: &str) -> bool {
    let subject = result.subject_name();
    let pairs =
        || rows.iter().filter(|r| r.kind == RowKind::Pair && r.a == subject && r.b == reference);
    let bad = |r: &&&Row| matches!(r.verdict, Verdict::Fail | Verdict::Error);
    pairs().any(|r| r.verdict != Verdict::Unchecked) && pairs().find(bad).is_none()
}

/// The worst of what was checked. UNCHECKED where no reference checked the subject: that others
/// agree, or that the subject agrees with itself, is no PASS of it.
fn overall(subject: &str, rows: &[&Row]) -> Verdict {
    let checked = rows.iter().filter(|r| r.verdict_of(subject) != Verdict::Unchecked);
    let worst = checked.clone().map(|r| r.verdict).max().unwrap_or(Verdict::Unchecked);
    // A pair whose other side is wrong by the oracle was a check all the same: the oracle decided it.
    let by_a_reference = rows
        .iter()
        .any(|r| r.kind == RowKind::Pair && r.a == subject && r.verdict != Verdict::Unchecked);
    match worst {
        Verdict::Pass | Verdict::Warn if !by_a_reference => Verdict::Unchecked,
        worst => worst,
    }
}

fn line<'a>(subject: &str, rows: Vec<&'a Row>) -> Option<PointLine<'a>> {
    let worst = rows.iter().copied().max_by(|x, y| {
        let key = |r: &Row| match r.verdict {
            Verdict::Unchecked => (Verdict::Pass, -1.0),
            v => (v, size(r)),
        };
        let ((v, s), (w, t)) = (key(x), key(y));
        // The first of equals stands in front: data flows from there.
        v.cmp(&w).then(s.total_cmp(&t)).then(std::cmp::Ordering::Greater)
    })?;
    let mut places: Vec<_> = rows.iter().map(|r| (&r.case, r.step, r.layer)).collect();
    places.sort();
    places.dedup();
    let mut layers: Vec<_> = rows.iter().filter_map(|r| r.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let label = match layers[..] {
        [_, _, ..] => pattern(rows[0].point),
        _ => rows[0].point.to_string(),
    };
    Some(PointLine { label, folded: places.len(), verdict: overall(subject, &rows), worst, rows })
}

/// The lines of a checkpoint with each layer's point by itself, in data-flow order.
pub fn points<'a>(subject: &str, view: &CheckpointView<'a>) -> Vec<PointLine<'a>> {
    let mut points: BTreeMap<Point, Vec<&'a Row>> = BTreeMap::new();
    for row in view.lines.iter().flat_map(|l| l.rows.iter().copied()) {
        points.entry(row.point).or_default().push(row);
    }
    points.into_values().filter_map(|rows| line(subject, rows)).collect()
}

impl<'a> CheckpointView<'a> {
    /// Whether the subject fails here by nothing but what came in: every stage of this checkpoint was
    /// recomputed from its own inputs and none is wrong by itself.
    pub fn is_inherited(&self, subject: &str) -> bool {
        let own = || self.lines.iter().flat_map(|l| &l.rows).filter(|r| r.a == subject);
        let mut stages = own().filter(|r| r.kind == RowKind::Oracle).peekable();
        self.verdict == Verdict::Fail
            && stages.peek().is_some()
            && stages.all(|r| r.local.as_ref().is_some_and(|l| l.verdict != Verdict::Fail))
            && own().all(|r| r.kind != RowKind::Own || r.verdict != Verdict::Fail)
    }

    /// The first row that failed, in data-flow order.
    pub fn first_failure(&self, subject: &str) -> Option<&'a Row> {
        let rows = self.lines.iter().flat_map(|l| l.rows.iter().copied());
        let failed = rows.filter(|r| r.verdict_of(subject) == Verdict::Fail);
        failed.min_by(|x, y| x.step.cmp(&y.step).then(x.point.cmp(&y.point)))
    }
}

impl<'a> PointLine<'a> {
    /// The rows of one pair, in the order of the result.
    pub fn of_pair(&self, pair: &Pair) -> impl Iterator<Item = &'a Row> {
        let pair = pair.clone();
        let is = move |r: &&Row| r.kind == RowKind::Pair && r.a == pair.a && r.b == pair.b;
        self.rows.clone().into_iter().filter(is)
    }

    /// The largest error of a pair and its verdict: what its cell shows. None where the pair has no
    /// rows here.
    pub fn cell(&self, pair: &Pair) -> Option<(Verdict, Option<&'a Row>)> {
        let rows: Vec<&Row> = self.of_pair(pair).collect();
        if rows.is_empty() {
            return None;
        }
        let with_figures = rows.iter().copied().filter(|r| r.metrics.is_some());
        let largest = with_figures.max_by(|x, y| size(x).total_cmp(&size(y)));
        Some((overall(&pair.a, &rows), largest))
    }

    /// The tolerance of block 0 and, where it is another, that of deeper blocks.
    pub fn tolerances(&self) -> Vec<f64> {
        let of = |deep: bool| {
            let pairs = self.rows.iter().filter(|r| r.kind == RowKind::Pair);
            pairs.clone().find(|r| r.layer.is_some_and(|l| (l > 0) == deep)).map(|r| r.tolerance)
        };
        let mut found: Vec<f64> = [of(false), of(true)].into_iter().flatten().collect();
        found.dedup();
        if found.is_empty() { vec![self.worst.tolerance] } else { found }
    }

    /// The worst row of each implementation against itself.
    pub fn own(&self) -> impl Iterator<Item = &&'a Row> {
        self.rows.iter().filter(|r| r.kind != RowKind::Pair)
    }
}

fn size(row: &Row) -> f64 {
    row.metrics.as_ref().map_or(0.0, |m| m.max_abs.unwrap_or(f64::INFINITY))
}

/// At how many checkpoints each reference that ran confirms the subject, most first.
pub fn confirmed(result: &RunResult) -> Vec<(&str, usize)> {
    let present = result.references().filter(|i| i.status != Status::Missing);
    let count = |name: &str| {
        let at = |number: u8| {
            let rows: Vec<&Row> = result.rows.iter().filter(|r| r.checkpoint == number).collect();
            confirms(result, &rows, name)
        };
        CHECKPOINTS.iter().filter(|c| at(c.number)).count()
    };
    let mut counts: Vec<_> = present.map(|i| (i.name.as_str(), count(&i.name))).collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    counts
}

/// The pairs in the order of the columns: ours against each reference, then references among
/// themselves.
pub fn pairs(result: &RunResult) -> (Vec<Pair>, Vec<Pair>) {
    let present = |i: &&Implementation| i.status != Status::Missing;
    let names: Vec<&str> = result.references().filter(present).map(|i| i.name.as_str()).collect();
    let ours = result.subject_name();
    let with_ours = names.iter().map(|b| Pair { a: ours.into(), b: b.to_string() }).collect();
    let mut among = Vec::new();
    for (i, a) in names.iter().enumerate() {
        among.extend(names[i + 1..].iter().map(|b| Pair { a: a.to_string(), b: b.to_string() }));
    }
    (with_ours, among)
}

/// The widest of some pairs.
#[derive(Clone, Copy)]
pub struct Widest<'a> {
    /// The largest difference of two that should agree, and where.
    pub row: Option<&'a Row>,
    /// A larger one that somebody declares: a figure of its own, lest it hide the one above.
    pub declared: Option<&'a Row>,
}

impl<'a> Widest<'a> {
    /// Whose deviation the declared one is, and how large it is.
    pub fn declared(&self) -> Option<(&'a [String], f64)> {
        let row = self.declared?;
        Some((&row.deviates, size(row)))
    }
}

/// The widest pair among `pairs` at these lines.
pub fn widest<'a>(lines: &[PointLine<'a>], pairs: &[Pair]) -> Widest<'a> {
    let (mut row, mut declared) = (None, None);
    let rows = lines.iter().flat_map(|l| pairs.iter().flat_map(|p| l.of_pair(p)));
    for r in rows.filter(|r| r.metrics.is_some()) {
        // What is wrong isn't excused by a deviation beside it.
        let excused = !r.deviates.is_empty() && r.verdict == Verdict::Pass;
        let largest: &mut Option<&Row> = if excused { &mut declared } else { &mut row };
        if largest.is_none_or(|l| size(l) <= size(r)) {
            *largest = Some(r);
        }
    }
    let larger = |d: &&Row| row.is_none_or(|r| size(d) > size(r));
    Widest { row, declared: declared.filter(larger) }
}
