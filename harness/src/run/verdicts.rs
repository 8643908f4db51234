//! The verdicts of each reference, told on stderr as soon as it has been heard. The tables come once,
//! at the end, on stdout.

use llorch_models::progress::Progress;
use llorch_trace::points::CHECKPOINTS;

use crate::result::{Row, RowKind, Verdict};

/// One line for each checkpoint of a pair: its worst verdict and where.
pub(super) fn tell_pair(progress: &Progress, a: &str, b: &str, rows: &[Row]) {
    let lines: Vec<String> = CHECKPOINTS
        .iter()
        .filter_map(|checkpoint| {
            let of_pair = |r: &&Row| {
                r.checkpoint == checkpoint.number && r.kind == RowKind::Pair && r.a == a && r.b == b
            };
            // Of equals `max_by` takes the last.
            let worst = rows.iter().rev().filter(of_pair).max_by(|x, y| order(x, y))?;
            Some(format!(
                "  {:>2} {:<10} {a}–{b}: {}",
                checkpoint.number,
                checkpoint.slug,
                told(worst)
            ))
        })
        .collect();
    if !lines.is_empty() {
        progress.say(&lines.join("\n"));
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

fn told(row: &Row) -> String {
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
            format!("{}, largest difference {difference:.1e} {at}{reason}", verdict.name())
        }
        (Verdict::Pass, None) => format!("PASS{reason}"),
        (verdict, None) => format!("{} {at}{reason}", verdict.name()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
