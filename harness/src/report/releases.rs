//! What another release of a reference changes: each `hf@latest` against the `hf` beside it.

use crate::references::without_release;
use crate::result::{Implementation, Row, RowKind, RunResult, Status, Verdict};

use super::numbers;
use super::sentences::place;

/// A sentence for each release whose pinned sibling took part:
/// `hf@latest (torch 2.15.0, …) against hf (torch 2.13.0, …): first differs at h.0.ln_1 (…)`.
pub fn sentences(result: &RunResult) -> Vec<String> {
    let one = |newer: &Implementation| {
        let name = without_release(&newer.name);
        let pinned = result.references().find(|i| i.name == name && i.name != newer.name)?;
        let ran = [pinned, newer].iter().all(|i| i.status != Status::Missing);
        ran.then(|| sentence(result, pinned, newer))
    };
    result.references().filter_map(one).collect()
}

fn sentence(result: &RunResult, pinned: &Implementation, newer: &Implementation) -> String {
    let between = |r: &&Row| {
        r.kind == RowKind::Pair
            && [[&r.a, &r.b], [&r.b, &r.a]].contains(&[&pinned.name, &newer.name])
            && !matches!(r.verdict, Verdict::Unchecked | Verdict::Error)
    };
    let compared: Vec<&Row> = result.rows.iter().filter(between).collect();
    // What has no figures (generated text) differs where it FAILs.
    let differs = |r: &&&Row| match &r.metrics {
        Some(metrics) => metrics.max_abs != Some(0.0),
        None => r.verdict == Verdict::Fail,
    };
    let size = |r: &Row| {
        r.metrics.as_ref().map_or(0.0, |metrics| metrics.max_abs.unwrap_or(f64::INFINITY))
    };
    let at = |r: &Row| match &r.metrics {
        Some(metrics) => format!("{}, by {}", place(r), numbers::error(metrics.max_abs)),
        None => place(r),
    };
    let different: Vec<&Row> = compared.iter().filter(differs).copied().collect();
    let first = different.iter().min_by_key(|r| (r.step, r.point));
    let largest = different.iter().max_by(|x, y| size(x).total_cmp(&size(y)));
    let failed = different.iter().filter(|r| r.verdict == Verdict::Fail);
    let what = match (first, largest, failed.min_by_key(|r| (r.step, r.point))) {
        _ if compared.is_empty() => "nothing was compared".to_string(),
        (None, ..) | (_, None, _) => "equal in every bit that was compared".to_string(),
        (Some(first), Some(largest), failed) => {
            let beyond = match failed {
                None => "all within tolerance".to_string(),
                Some(row) => format!("beyond tolerance first at {}", at(row)),
            };
            format!("first differs at {}; largest at {}; {beyond}", at(first), at(largest))
        }
    };
    format!(
        "{} ({}) against {} ({}): {what}",
        newer.name, newer.version, pinned.name, pinned.version
    )
}
