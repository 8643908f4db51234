//! Token ids: exact, but for a choice between near equals.
//!
//! Two honest implementations may choose different tokens where the two best logits lie closer
//! together than rounding moves them. A difference is *ambiguous*, and passes with its margin
//! printed, if the oracle's top logit minus its logit of the chosen token is at most 2B, B being the
//! largest error of the admitted references at that step. Never the subject's own error: a subject
//! that is far off would excuse itself.

use llorch_trace::{Point, Stage};

use super::Place;
use super::oracle_rows::OracleRows;
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::evidence::{Case, Evidence};
use crate::oracle::{Continuation, Truth};
use crate::result::{Generation, Row, RowKind, Verdict};

/// The margin of a choice and what excuses it.
struct Margin {
    margin: f64,
    bound: f64,
}

impl Margin {
    fn of(admitted: f64, truth: &[f64], chosen: &[f64]) -> Margin {
        let top = truth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let logit = |id: &f64| truth.get(*id as usize).copied().unwrap_or(f64::NEG_INFINITY);
        let margin = chosen.iter().map(logit).map(|l| top - l).fold(0.0, f64::max);
        Margin { margin, bound: 2.0 * admitted }
    }

    fn is_ambiguous(&self) -> bool {
        self.margin <= self.bound
    }

    fn describe(&self) -> String {
        let (word, sign) = if self.is_ambiguous() { ("ambiguous", "≤") } else { ("wrong", ">") };
        format!(
            "{word}: the oracle's margin is {:.2e} {sign} {:.2e}, twice the references' error",
            self.margin, self.bound
        )
    }
}

/// A pair of unequal argmaxes: PASS if the oracle finds the choice ambiguous.
pub fn excuse_argmax(place: &Place<'_>, rows: &OracleRows, mut row: Row) -> Row {
    let Some(truth) = place.oracle.and_then(|o| o.logits.get(place.step)) else { return row };
    let Some([Some(a), Some(b)]) = row.metrics.as_ref().map(|m| m.worst_values) else { return row };
    let names = [row.a.as_str(), row.b.as_str()];
    let admitted = rows.logits_error(place.evidence, &place.case.name, place.step, names);
    let margin = Margin::of(admitted, truth, &[a, b]);
    row.reason = format!("tokens {a} and {b}; {}", margin.describe());
    if margin.is_ambiguous() {
        row.verdict = Verdict::Pass;
    }
    row
}

/// The tokens that were fed are equal by construction; where both implementations have a tokenizer,
/// what those made of the prompt must be equal too.
pub fn compare_tokenizers(place: &Place<'_>, a: usize, b: usize, row: Row) -> Row {
    let of = |who: usize| Some(ids(place.evidence[who].tokenized.get(&place.case.name)?));
    let (0, Some(x), Some(y)) = (place.step, of(a), of(b)) else { return row };
    let name = &place.evidence[b].name;
    let compared = compare(&x, &y, Tolerance::Exact, &Cells::All);
    let mut judged = place.judged(RowKind::Pair, a, name, (&x, &y), compared);
    if judged.verdict != Verdict::Pass {
        judged.verdict = Verdict::Fail;
        judged.reason = format!("the tokenizers differ: {:?} against {:?}", head(&x), head(&y));
        return judged;
    }
    row
}

/// What it says that it was fed, where that is something else.
pub fn fed(place: &Place<'_>, who: usize, shown: &Numbers) -> Option<Row> {
    let expected = ids(&place.case.fed(place.step));
    let name = place.evidence[who].name.clone();
    let compared = compare(shown, &expected, Tolerance::Exact, &Cells::All);
    let mut row = place.judged(RowKind::Own, who, &name, (shown, &expected), compared);
    row.reason =
        format!("{name} shows tokens {:?} where {:?} were fed", head(shown), head(&expected));
    (row.verdict != Verdict::Pass).then_some(row)
}

/// An implementation's own tokenizer against the ids that it was fed.
pub fn own_tokenizer(place: &Place<'_>, who: usize, fed: &Numbers) -> Option<Row> {
    let tokenized = place.evidence[who].tokenized.get(&place.case.name)?;
    if place.step > 0 {
        return None;
    }
    let x = ids(tokenized);
    let name = place.evidence[who].name.clone();
    let compared = compare(&x, fed, Tolerance::Exact, &Cells::All);
    let mut row = place.judged(RowKind::Own, who, &name, (&x, fed), compared);
    if row.verdict != Verdict::Pass {
        row.verdict = Verdict::Fail;
        row.reason = format!("its tokenizer gives {:?}; {:?} was fed", head(&x), head(fed));
    }
    Some(row)
}

fn ids(ids: &[u32]) -> Numbers {
    let values = ids.iter().map(|id| *id as f64).collect();
    Numbers { shape: vec![ids.len()], dtype: llorch_trace::Dtype::I64, values }
}

fn head(ids: &Numbers) -> Vec<i64> {
    ids.values.iter().take(12).map(|id| *id as i64).collect()
}

/// Free generation: every pair.
pub fn generation_rows(
    evidence: &[Evidence],
    truth: &Truth,
    oracle_rows: &OracleRows,
    case: &Case,
    rows: &mut Vec<Row>,
) {
    // Above temperature 0 each draws from a generator of its own; `next.probs` is what compares.
    if case.sampling.temperature > 0.0 || case.max_new_tokens == 0 {
        return;
    }
    let oracle = truth.continuations.get(&case.name);
    for (i, a) in evidence.iter().enumerate() {
        for b in &evidence[i + 1..] {
            if a.missing.is_none() || b.missing.is_none() {
                rows.push(generation_pair(evidence, oracle, oracle_rows, case, a, b));
            }
        }
    }
}

fn generation_pair(
    evidence: &[Evidence],
    oracle: Option<&Continuation>,
    rows: &OracleRows,
    case: &Case,
    a: &Evidence,
    b: &Evidence,
) -> Row {
    let row = |step, verdict, reason| {
        generation_row(case, step, RowKind::Pair, a, &b.name, verdict, reason)
    };
    let (x, y) = match (generated(a, case), generated(b, case)) {
        (Ok(x), Ok(y)) => (x, y),
        (Err((verdict, reason)), Ok(_)) | (Ok(_), Err((verdict, reason))) => {
            return row(0, verdict, reason);
        }
        (Err(x), Err(y)) => {
            let (verdict, reason) = if x.0 >= y.0 { x } else { y };
            return row(0, verdict, reason);
        }
    };
    let Some(n) = first_difference(&x.ids, &y.ids) else {
        // Equal ids must not read differently: a detokenizer's fault.
        let (Some(s), Some(t)) = (&x.text, &y.text) else {
            return row(0, Verdict::Pass, String::new());
        };
        if s != t {
            return row(0, Verdict::Fail, format!("equal ids, but the texts are {s:?} and {t:?}"));
        }
        return row(0, Verdict::Pass, String::new());
    };
    let (p, q) = (x.ids.get(n), y.ids.get(n));
    let (Some(p), Some(q)) = (p, q) else {
        let reason = format!("lengths differ: {} and {} tokens", x.ids.len(), y.ids.len());
        return row(n, Verdict::Fail, reason);
    };
    // The oracle knows this step only if both came to it by the oracle's own tokens.
    let truth =
        oracle.filter(|o| o.ids.get(..n) == Some(&x.ids[..n])).and_then(|o| o.logits.get(n));
    let Some(truth) = truth else {
        let reason = "after an earlier token that was not the oracle's: the margin is not known";
        return row(n, Verdict::Unchecked, reason.to_string());
    };
    let admitted = rows.logits_error(evidence, &case.name, n, [&a.name, &b.name]);
    let margin = Margin::of(admitted, truth, &[*p as f64, *q as f64]);
    let reason = format!("token {n}: {p} and {q}; {}", margin.describe());
    match margin.is_ambiguous() {
        true => row(n, Verdict::Pass, format!("{reason}; later tokens UNCHECKED")),
        false => row(n, Verdict::Fail, reason),
    }
}

fn generated<'a>(e: &'a Evidence, case: &Case) -> Result<&'a Generation, (Verdict, String)> {
    if let Some((reason, _)) = &e.missing {
        return Err((Verdict::Unchecked, format!("{}: {reason}", e.name)));
    }
    if let Some(generation) = e.generated.get(&case.name) {
        return Ok(generation);
    }
    if e.hello.as_ref().is_some_and(|h| !h.can("generate")) {
        return Err((Verdict::Unchecked, format!("{}: does not generate", e.name)));
    }
    let fault = e.fault(&case.name, 0, Point::new(Stage::Generated));
    let reason = fault.map_or("nothing was generated", |f| f.message.as_str());
    Err((Verdict::Error, format!("{}: {reason}", e.name)))
}

pub fn generation_row(
    case: &Case,
    step: usize,
    kind: RowKind,
    a: &Evidence,
    b: &str,
    verdict: Verdict,
    reason: String,
) -> Row {
    let point = Point::new(Stage::Generated);
    Row { verdict, reason, ..Row::new(&case.name, step, point, kind, &a.name, b) }
}

/// The index of the first token that differs, the shorter's length if one continues the other.
pub fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    let differs = a.iter().zip(b).position(|(x, y)| x != y);
    differs.or((a.len() != b.len()).then(|| a.len().min(b.len())))
}
