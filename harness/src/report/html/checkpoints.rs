//! The matrix of checkpoints and pairs, and each checkpoint's points.

use llorch_trace::Point;

use super::super::flow::{Errors, Figure, Flow};
use super::super::numbers::{error, index, tolerance, value_at};
use super::super::sentences::{checkpoint_sentence, place};
use super::super::svg::figure;
use super::super::view::{CheckpointView, Pair, PointLine, pairs, points};
use super::{FAIL, Mark, OTHER, PASS, anchor};
use crate::result::{Row, RowKind, RunResult, Verdict};

#[derive(Debug)]
pub struct Matrix {
    /// Pairs, two names each.
    pub pairs: Vec<[String; 2]>,
    /// Whether there is a column for what the subject did by itself.
    pub alone: bool,
    pub rows: Vec<MatrixRow>,
}

#[derive(Debug)]
pub struct MatrixRow {
    pub number: u8,
    pub name: &'static str,
    pub mark: Mark,
    /// Every stage here is right by itself.
    pub inherited: bool,
    pub confirmed: String,
    pub alone: Option<Cell>,
    pub cells: Vec<Cell>,
}

/// A verdict and the largest error that it is about.
#[derive(Debug)]
pub struct Cell {
    pub mark: Mark,
    pub figure: String,
    pub title: String,
}

#[derive(Debug)]
pub struct Section {
    pub number: u8,
    pub name: &'static str,
    pub mark: Mark,
    pub sentence: String,
    pub pairs: Vec<[String; 2]>,
    pub lines: Vec<Line>,
    /// Implementations, and their errors against float64 at each point.
    pub names: Vec<String>,
    pub stages: Vec<StageLine>,
}

#[derive(Debug)]
pub struct Line {
    pub point: String,
    /// The section of a point that failed.
    pub link: Option<String>,
    pub folded: usize,
    pub cells: Vec<Cell>,
    pub tolerance: String,
    pub at: String,
    pub mark: Mark,
}

#[derive(Debug)]
pub struct StageLine {
    pub point: String,
    /// Of each implementation.
    pub errors: Vec<StageCell>,
}

#[derive(Debug)]
pub struct StageCell {
    pub total: String,
    pub local: String,
    pub inherited: String,
    /// Whether the stage is wrong by itself.
    pub failed: bool,
}

pub fn matrix(result: &RunResult, views: &[CheckpointView<'_>]) -> Matrix {
    let subject = result.subject_name();
    let all = every_pair(result);
    let row = |view: &CheckpointView<'_>| MatrixRow {
        number: view.number,
        name: view.name,
        mark: view.verdict.into(),
        inherited: view.is_inherited(subject),
        confirmed: format!("{} semantics, {} kernels", view.semantics, view.kernels),
        alone: alone(subject, view),
        cells: all.iter().map(|pair| checkpoint_cell(view, pair)).collect(),
    };
    let rows: Vec<MatrixRow> = views.iter().map(row).collect();
    Matrix { pairs: names(&all), alone: rows.iter().any(|r| r.alone.is_some()), rows }
}

fn every_pair(result: &RunResult) -> Vec<Pair> {
    let (mut all, among) = pairs(result);
    all.extend(among);
    all
}

fn names(pairs: &[Pair]) -> Vec<[String; 2]> {
    pairs.iter().map(|p| [p.a.clone(), p.b.clone()]).collect()
}

/// What the subject's stages did by themselves, whatever came in.
fn alone(subject: &str, view: &CheckpointView<'_>) -> Option<Cell> {
    let rows = view.lines.iter().flat_map(|l| l.rows.iter());
    let locals = rows
        .filter(|r| r.kind == RowKind::Oracle && r.a == subject)
        .filter_map(|r| Some((*r, r.local.as_ref()?)));
    let size = |f: Figure| f.unwrap_or(f64::INFINITY);
    let worst = locals.max_by(|x, y| {
        let (v, w) = (x.1.verdict, y.1.verdict);
        v.cmp(&w).then(size(x.1.max_abs).total_cmp(&size(y.1.max_abs)))
    })?;
    let mark = if worst.1.verdict == Verdict::Fail { FAIL } else { PASS };
    Some(Cell { mark, figure: error(worst.1.max_abs), title: place(worst.0) })
}

fn checkpoint_cell(view: &CheckpointView<'_>, pair: &Pair) -> Cell {
    let cells: Vec<_> = view.lines.iter().filter_map(|l| l.cell(pair)).collect();
    let verdict = cells.iter().map(|c| c.0).filter(|v| *v != Verdict::Unchecked).max();
    let size = |r: &Row| r.metrics.as_ref().map_or(0.0, |m| m.max_abs.unwrap_or(f64::INFINITY));
    let largest = cells.iter().filter_map(|c| c.1).max_by(|x, y| size(x).total_cmp(&size(y)));
    let others = view.lines.iter().flat_map(|l| l.of_pair(pair)).find(|r| is_anothers(r));
    shown(verdict.unwrap_or(Verdict::Unchecked), largest, others)
}

/// A difference that the oracle lays on the other one of the two.
fn is_anothers(row: &Row) -> bool {
    row.verdict == Verdict::Fail && !row.blame.is_empty() && !row.blame.contains(&row.a)
}

fn shown(verdict: Verdict, largest: Option<&Row>, anothers: Option<&Row>) -> Cell {
    let mark = match (verdict, anothers) {
        (Verdict::Unchecked | Verdict::Pass, Some(_)) => OTHER,
        (verdict, _) => verdict.into(),
    };
    let metrics = largest.and_then(|r| Some((r, r.metrics.as_ref()?)));
    let mut title = largest.map(place).unwrap_or_default();
    if let Some((row, m)) = metrics {
        let [a, b] = m.worst_values.map(|v| value_at(row.point, v));
        title = format!("{title} {}: {a} against {b}", index(&m.worst));
    }
    if let Some(row) = anothers {
        title = format!("{}; {title}", row.reason);
    }
    let figure = match metrics {
        // The word says more than what little was compared.
        _ if verdict == Verdict::Error => String::new(),
        Some((_, m)) => error(m.max_abs),
        None if verdict == Verdict::Unchecked => String::new(),
        None if verdict == Verdict::Fail => "differs".into(),
        None => "equal".into(),
    };
    Cell { mark, figure, title }
}

pub fn sections(
    result: &RunResult,
    views: &[CheckpointView<'_>],
    flow: &Flow,
    failed: &[Point],
) -> Vec<Section> {
    let subject = result.subject_name();
    let all = every_pair(result);
    let section = |view: &CheckpointView<'_>| {
        let points = points(subject, view);
        Section {
            number: view.number,
            name: view.name,
            mark: view.verdict.into(),
            sentence: checkpoint_sentence(result, view),
            pairs: names(&all),
            stages: points.iter().filter_map(|line| stage_line(flow, line)).collect(),
            lines: points.iter().map(|line| point_line(subject, line, &all, failed)).collect(),
            names: flow.series.iter().map(|s| s.name.clone()).collect(),
        }
    };
    views.iter().map(section).collect()
}

fn point_line(subject: &str, line: &PointLine<'_>, all: &[Pair], failed: &[Point]) -> Line {
    let cell = |pair: &Pair| match line.cell(pair) {
        None => shown(Verdict::Unchecked, None, None),
        Some((verdict, largest)) => {
            shown(verdict, largest, line.of_pair(pair).find(|r| is_anothers(r)))
        }
    };
    let point = line.worst.point;
    let at = line.worst.metrics.as_ref().map(|m| index(&m.worst)).unwrap_or_default();
    let tolerances: Vec<String> = line.tolerances().iter().map(|t| tolerance(*t)).collect();
    Line {
        point: point.to_string(),
        link: failed.contains(&point).then(|| anchor(subject, point, subject)),
        folded: line.folded,
        cells: all.iter().map(cell).collect(),
        tolerance: tolerances.join(", "),
        at: format!("{} step {} {at}", line.worst.case, line.worst.step).trim_end().into(),
        mark: line.verdict.into(),
    }
}

fn stage_line(flow: &Flow, line: &PointLine<'_>) -> Option<StageLine> {
    let point = line.worst.point;
    let i = flow.points.iter().position(|p| p.point == point).filter(|_| flow.by_oracle)?;
    let wrong = |name: &str| {
        let mut rows = line.rows.iter().filter(|r| r.kind == RowKind::Oracle && r.a == name);
        rows.any(|r| r.local.as_ref().is_some_and(|l| l.verdict == Verdict::Fail))
    };
    let cell = |name: &str, e: &Errors| StageCell {
        total: figure(e.total),
        local: figure(e.local),
        inherited: figure(e.inherited),
        failed: wrong(name),
    };
    let errors = flow.series.iter().map(|s| cell(&s.name, &s.errors[i])).collect();
    Some(StageLine { point: point.to_string(), errors })
}
