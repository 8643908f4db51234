//! The first place at which the subject differs, where there is no oracle to say by how much it is wrong
//! by itself. Pure.

use std::collections::BTreeMap;

use llorch_trace::Point;

use crate::result::{Row, RowKind, RunResult, Verdict};

/// What the rows say.
#[derive(Debug, PartialEq)]
pub enum Found {
    Differs(Box<Differs>),
    /// No FAIL, and the points that the subject showed and nobody checked.
    Nothing {
        unchecked: Vec<Point>,
    },
}

/// The first FAIL in data-flow order.
#[derive(Debug, PartialEq)]
pub struct Differs {
    pub row: Row,
    /// Points before it, at the same step of the same case, that nobody checked: the cause may lie at
    /// any of them. With the last one that was checked and passed, if any was.
    after: Option<Option<Point>>,
}

impl Differs {
    pub fn is_interval(&self) -> bool {
        self.after.is_some()
    }

    pub fn between(&self) -> Option<(Option<Point>, Point)> {
        self.after.map(|after| (after, self.row.point))
    }
}

/// Head, token and element of an index: [H, T, ·] tensors have all three, [T, ·] no head.
pub fn axes(index: &[usize]) -> (Option<usize>, Option<usize>, Option<usize>) {
    let head = (index.len() == 3).then(|| index[0]);
    let token = index.len().checked_sub(2).map(|axis| index[axis]);
    (head, token, index.last().copied())
}

/// A place: step, point, and the case as the place in the run's list. Ordered as data flows; of cases
/// that diverge at the same point the first is named.
type Place = (usize, Point, usize);

/// What is known of the subject at one place.
#[derive(Debug, Default)]
struct Known<'a> {
    passed: bool,
    /// The subject says that it can't show this.
    by_nature: bool,
    fail: Option<&'a Row>,
}

pub fn search(result: &RunResult) -> Found {
    let places = places(result);
    let first = places.iter().find_map(|(place, known)| Some((*place, known.fail?)));
    let Some((place, row)) = first else {
        let unchecked =
            places.iter().filter(|(_, k)| !k.passed && !k.by_nature).map(|((_, p, _), _)| *p);
        let mut unchecked: Vec<Point> = unchecked.collect();
        unchecked.sort();
        unchecked.dedup();
        return Found::Nothing { unchecked };
    };
    let before =
        places.range(..place).filter(|((step, _, case), _)| *step == place.0 && *case == place.2);
    let before: Vec<(Point, bool)> =
        before.map(|((_, point, _), known)| (*point, known.passed)).collect();
    match before.last() {
        Some((_, false)) => {
            let last_passed =
                before.iter().rev().find(|(_, passed)| *passed).map(|(point, _)| *point);
            Found::Differs(Box::new(Differs { row: row.clone(), after: Some(last_passed) }))
        }
        _ => Found::Differs(Box::new(Differs { row: row.clone(), after: None })),
    }
}

fn places(result: &RunResult) -> BTreeMap<Place, Known<'_>> {
    let subject = result.subject_name();
    let case_of =
        |name: &str| result.cases.iter().position(|c| c.name == name).unwrap_or(usize::MAX);
    let mut places: BTreeMap<Place, Known<'_>> = BTreeMap::new();
    for row in result.rows.iter().filter(|r| r.a == subject) {
        let known = places.entry((row.step, row.point, case_of(&row.case))).or_default();
        match row.verdict {
            Verdict::Pass | Verdict::Warn => known.passed = true,
            Verdict::Fail if is_the_references_fault(result, row) => known.passed = true,
            Verdict::Fail => {
                known.fail.get_or_insert(row);
            }
            Verdict::Unchecked => {
                known.by_nature |= row.reason.starts_with(&format!("{subject}: "));
            }
            Verdict::Error => {}
        }
    }
    places
}

/// A reference that the subject fails against, while both it and another reference say otherwise: the
/// subject agrees with the other, the first doesn't.
fn is_the_references_fault(result: &RunResult, fail: &Row) -> bool {
    if fail.kind != RowKind::Pair {
        return false;
    }
    let here: Vec<&Row> = result
        .rows
        .iter()
        .filter(|r| {
            r.kind == RowKind::Pair
                && r.case == fail.case
                && r.step == fail.step
                && r.point == fail.point
        })
        .collect();
    let agree = |x: &str, y: &str, verdict: Verdict| {
        here.iter()
            .any(|r| ((r.a == x && r.b == y) || (r.a == y && r.b == x)) && r.verdict == verdict)
    };
    result.references().any(|other| {
        other.name != fail.b
            && agree(&fail.a, &other.name, Verdict::Pass)
            && agree(&fail.b, &other.name, Verdict::Fail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Implementation, ModelKind, ModelRecord, Role, RunVerdict, SCHEMA, Status};

    fn row(a: &str, b: &str, point: &str, step: usize, verdict: Verdict) -> Row {
        let point: Point = point.parse().unwrap();
        let kind = if a == b { RowKind::Own } else { RowKind::Pair };
        Row { tolerance: 1e-4, verdict, ..Row::new("c", step, point, kind, a, b) }
    }

    fn result(rows: Vec<Row>) -> RunResult {
        let who = |name: &str, role| Implementation {
            name: name.into(),
            role,
            lock_sha256: None,
            version: String::new(),
            worth: None,
            status: Status::Ok,
            reason: String::new(),
            mend: None,
            recipes: BTreeMap::new(),
        };
        RunResult {
            means: Default::default(),
            machine: None,
            schema: SCHEMA.into(),
            verdict: RunVerdict::Fail,
            started: String::new(),
            seconds: BTreeMap::new(),
            command: vec![],
            model: ModelRecord {
                name: "nano".into(),
                kind: ModelKind::Trained,
                source: String::new(),
                revision: None,
                sha256: String::new(),
                config: serde_json::Value::Null,
            },
            implementations: vec![
                who("s", Role::Subject),
                who("x", Role::Reference),
                who("y", Role::Reference),
            ],
            cases: vec![],
            rows,
            odd: vec![],
            tolerances: Default::default(),
            unchecked: vec![],
            assessment: None,
            strategy: None,
            isolate: None,
            partition: None,
        }
    }

    use Verdict::{Fail, Pass, Unchecked};

    #[test]
    fn axes_are_named_by_rank() {
        assert_eq!(axes(&[7, 1, 12]), (Some(7), Some(1), Some(12)));
        assert_eq!(axes(&[1, 12]), (None, Some(1), Some(12)));
        assert_eq!((axes(&[5]), axes(&[])), ((None, None, Some(5)), (None, None, None)));
    }

    #[test]
    fn the_first_in_data_flow_is_found_whatever_the_order_of_rows() {
        let r = result(vec![
            row("s", "x", "logits", 0, Fail),
            row("s", "x", "h.0.attn.q", 1, Fail),
            row("s", "x", "h.1.ln_1", 0, Fail),
            row("s", "x", "h.0", 0, Pass),
        ]);
        let Found::Differs(found) = search(&r) else { panic!() };
        let Differs { row, after: None } = *found else { panic!() };
        assert_eq!((row.point.to_string().as_str(), row.step), ("h.1.ln_1", 0));
    }

    #[test]
    fn what_nobody_checked_before_it_makes_an_interval() {
        let r = result(vec![
            row("s", "x", "h.0.attn.v", 0, Pass),
            row("s", "x", "h.0.attn.scores", 0, Unchecked),
            row("s", "x", "h.0.attn.context", 0, Fail),
        ]);
        let Found::Differs(found) = search(&r) else { panic!() };
        let Differs { row, after: Some(Some(after)) } = *found else { panic!() };
        assert_eq!(
            (after.to_string(), row.point.to_string()),
            ("h.0.attn.v".into(), "h.0.attn.context".into())
        );
    }

    #[test]
    fn a_reference_that_stands_alone_is_no_cause() {
        let r = result(vec![
            row("s", "x", "h.0", 0, Fail),
            row("s", "y", "h.0", 0, Pass),
            row("x", "y", "h.0", 0, Fail),
        ]);
        assert_eq!(search(&r), Found::Nothing { unchecked: vec![] });
    }

    #[test]
    fn no_divergence_lists_what_nobody_checked() {
        let r = result(vec![row("s", "x", "h.0", 0, Pass), row("s", "x", "ln_f", 0, Unchecked)]);
        assert_eq!(search(&r), Found::Nothing { unchecked: vec!["ln_f".parse().unwrap()] });

        let mut cannot = row("s", "x", "ln_f", 0, Unchecked);
        cannot.reason = "s: not written yet".into();
        let r = result(vec![row("s", "x", "h.0", 0, Pass), cannot]);
        assert_eq!(
            search(&r),
            Found::Nothing { unchecked: vec![] },
            "an unfinished engine is no fault"
        );
    }
}
