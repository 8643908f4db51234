//! The verdicts of each reference, told on stderr as soon as it has been heard. The tables come once,
//! at the end, on stdout.

use llorch_models::progress::Progress;
use llorch_trace::Checkpoint;
use llorch_trace::points::CHECKPOINTS;

use crate::result::{Row, RowKind, Verdict};

/// One line for each checkpoint of a pair: its worst verdict and where.
///
/// `deviating` declares deviations: whether a FAIL only follows from one is known when its stages have
/// been recomputed, so that here it is none yet.
pub(super) fn tell_pair(
    progress: &Progress,
    (a, b): (&str, &str),
    deviating: Option<&str>,
    rows: &[Row],
) {
    let worst = |number: u8| {
        let of_pair =
            |r: &&Row| r.checkpoint == number && r.kind == RowKind::Pair && r.a == a && r.b == b;
        // Of equals `max_by` takes the last.
        rows.iter().rev().filter(of_pair).max_by(|x, y| order(x, y))
    };
    let worst: Vec<_> = CHECKPOINTS.iter().filter_map(|c| Some((c, worst(c.number)?))).collect();
    match worst.as_slice() {
        [] => {}
        // Who shows nothing at all has one reason for it.
        [(_, first), ..] if worst.iter().all(|(_, r)| r.verdict == Verdict::Unchecked) => {
            progress.say(&format!("  all           {a}–{b}: {}", told(first, deviating)));
        }
        all => {
            let line = |(c, row): &(&Checkpoint, &Row)| {
                format!("  {:>2} {:<10} {a}–{b}: {}", c.number, c.slug, told(row, deviating))
            };
            progress.say(&all.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Worse verdicts first, then larger differences; of equals, the first in data flow.
fn weight(row: &Row) -> (u8, f64) {
    let verdict = match row.verdict {
        Verdict::Unchecked => 0,
        Verdict::Pass => 1,
        Verdict::Warn => 2,
        Verdict::Fail => 3,
        Verdict::Error => 4,
    };
    (verdict, row.metrics.as_ref().map_or(0.0, |m| m.max_abs.unwrap_or(f64::INFINITY)))
}

fn order(x: &Row, y: &Row) -> std::cmp::Ordering {
    let ((v, d), (w, e)) = (weight(x), weight(y));
    v.cmp(&w).then(d.total_cmp(&e))
}

fn told(row: &Row, deviating: Option<&str>) -> String {
    let at = format!("at {}, step {} of {}", row.point, row.step, row.case);
    let reason = if row.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", first_line(&row.reason))
    };
    match (row.verdict, row.metrics.as_ref().and_then(|m| m.max_abs)) {
        // By nature, as a rule: where is no matter.
        (Verdict::Unchecked, _) => format!("UNCHECKED{reason}"),
        (Verdict::Pass, Some(0.0)) => format!("PASS, equal{reason}"),
        (verdict, Some(difference)) => {
            let largest = format!("largest difference {difference:.1e} {at}");
            match deviating.filter(|_| verdict == Verdict::Fail) {
                Some(who) => {
                    format!("{largest}; judged at the end, because {who} declares a deviation")
                }
                None => format!("{}, {largest}{reason}", verdict.name()),
            }
        }
        (Verdict::Pass, None) => format!("PASS{reason}"),
        (verdict, None) => format!("{} {at}{reason}", verdict.name()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
