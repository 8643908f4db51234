//! Rows of kind `self`: what an implementation gave, against what it gave elsewhere. These need no
//! reference, and catch a harness or an adapter that mixes its tensors up.

use llorch_trace::{Point, Stage};

use super::{Found, Place, probabilities, tokens};
use crate::compare::{Cells, Numbers, Tolerance, compare};
use crate::oracle::argmax;
use crate::result::{Row, RowKind, Verdict};

pub fn rows(place: &Place<'_>, rows: &mut Vec<Row>) {
    for (who, found) in place.found.iter().enumerate() {
        if let Found::Tensor(x) = found {
            rows.extend(row(place, who, x));
        }
    }
}

/// None where the point has nothing to be held to, or that was not captured.
fn row(place: &Place<'_>, who: usize, x: &Numbers) -> Option<Row> {
    let expected = match place.point.stage {
        Stage::Tokens => {
            return tokens::fed(place, who, x).or_else(|| tokens::own_tokenizer(place, who, x));
        }
        Stage::NextProbs => return probabilities::own(place, who, x),
        Stage::CacheK => cached(place, who, Stage::K)?,
        Stage::CacheV => cached(place, who, Stage::V)?,
        Stage::LogitsLast => place.tensor(who, Point::new(Stage::Logits))?.last_row()?,
        Stage::Argmax => {
            let logits = place.tensor(who, Point::new(Stage::LogitsLast))?;
            if logits.values.is_empty() {
                return None;
            }
            Numbers { shape: vec![], dtype: x.dtype, values: vec![argmax(&logits.values) as f64] }
        }
        _ => return None,
    };
    let name = place.evidence[who].name.clone();
    let compared = compare(x, &expected, Tolerance::Exact, &Cells::All);
    let mut row = place.judged(RowKind::Own, who, &name, (x, &expected), compared);
    if row.verdict == Verdict::Fail {
        let what = match place.point.stage {
            Stage::CacheK => "its own attn.k of this and earlier steps",
            Stage::CacheV => "its own attn.v of this and earlier steps",
            Stage::LogitsLast => "the last row of its own logits",
            _ => "the lowest index of its own largest logit",
        };
        row.reason = format!("{name} differs from {what}: {}", row.reason);
    }
    Some(row)
}

/// The `[H, S, D]` that a cache must hold: the k or v of all steps so far, one after another.
fn cached(place: &Place<'_>, who: usize, stage: Stage) -> Option<Numbers> {
    let layer = place.point.layer?;
    let (h, d) = (place.dims.n_head, place.dims.head_dim());
    let (_, s) = place.case.sizes(place.step);
    let parts: Vec<Numbers> = (0..=place.step)
        .map(|step| place.tensor_at(who, step, Point::of_layer(stage, layer)))
        .collect::<Option<_>>()?;
    let mut values = Vec::with_capacity(h * s * d);
    for head in 0..h {
        for part in &parts {
            let n = part.values.len() / h;
            values.extend_from_slice(part.values.get(head * n..(head + 1) * n)?);
        }
    }
    (values.len() == h * s * d).then(|| Numbers {
        shape: vec![h, s, d],
        dtype: parts[0].dtype,
        values,
    })
}
