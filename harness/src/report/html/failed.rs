//! A section for each failed point: what is wrong in words and figures, a heat map, the worst elements.

use llorch_trace::tensor::unravel;
use llorch_trace::{Stage, Tensor};

use super::super::failures::{Failure, axes};
use super::super::heat::{Heat, differences};
use super::super::numbers::{error, tolerance, value_at};
use super::super::sentences::hint;
use super::super::tensors::Tensors;
use super::super::vocabulary::Vocabulary;
use super::anchor;
use crate::result::{CaseRecord, RunResult};

#[derive(Debug)]
pub struct Failed {
    pub anchor: String,
    pub point: String,
    pub checkpoint: u8,
    pub who: String,
    pub is_first: bool,
    pub by_itself: bool,
    pub place: String,
    pub reason: String,
    pub facts: Vec<(&'static str, String)>,
    pub hint: Option<&'static str>,
    /// With whom the tensors are compared.
    pub other: String,
    pub picture: Option<Picture>,
    /// Why there is no picture.
    pub no_picture: String,
    pub worst: Vec<Element>,
}

#[derive(Debug)]
pub struct Picture {
    pub png: String,
    pub heat: Heat,
    /// The cells' figures for the page's script, and the ends of their scale.
    pub codes: String,
    pub low: String,
    pub high: String,
    pub high_text: String,
    pub pale_text: String,
    pub shape: String,
    pub axes: String,
    /// Of the picture, in cells.
    pub size: (usize, usize),
    pub style: String,
    /// Whether a cell stands for more than one element.
    pub folded: bool,
    /// What tokens down the picture read as, a JSON list.
    pub tokens: String,
}

#[derive(Debug)]
pub struct Element {
    pub at: String,
    pub a: String,
    pub b: String,
    pub difference: String,
}

/// Cells of all pictures together: the page stays small however many points fail.
const CELLS: usize = 240_000;
const MOST: usize = 4096;
const LEAST: usize = 256;
/// Elements shown of the first cause, and of the rest.
const WORST: usize = 10;
const WORST_OF_REST: usize = 3;

pub fn sections(
    result: &RunResult,
    failures: &[Failure<'_>],
    tensors: &mut Tensors<'_>,
    vocabulary: &Vocabulary,
) -> Vec<Failed> {
    let shared = (CELLS / failures.len().max(1)).clamp(LEAST, MOST);
    let one = |f: &Failure<'_>| {
        let budget = if f.is_first { MOST } else { shared };
        section(result, f, tensors, vocabulary, budget)
    };
    failures.iter().map(one).collect()
}

fn section(
    result: &RunResult,
    f: &Failure<'_>,
    tensors: &mut Tensors<'_>,
    vocabulary: &Vocabulary,
    budget: usize,
) -> Failed {
    let subject = result.subject_name();
    let point = f.point.to_string();
    let other = f.pair.map(|r| if r.a == f.who { r.b.as_str() } else { r.a.as_str() });
    let mut failed = Failed {
        anchor: anchor(f.who, f.point, subject),
        point: point.clone(),
        checkpoint: f.point.checkpoint().number,
        who: f.who.into(),
        is_first: f.is_first,
        by_itself: f.by_itself,
        place: place(f),
        reason: f.reason.into(),
        facts: facts(f, other),
        hint: f.pair.or(f.oracle).and_then(hint).filter(|_| f.by_itself || f.is_first),
        other: other.unwrap_or_default().into(),
        picture: None,
        no_picture: String::new(),
        worst: Vec::new(),
    };
    let Some(other) = other else {
        failed.no_picture = "no other implementation gave this tensor".into();
        return failed;
    };
    let mut get = |who: &str| tensors.get(who, f.case, f.step, &point);
    let (a, b) = match (get(f.who), get(other)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(why), _) | (_, Err(why)) => {
            failed.no_picture = why;
            return failed;
        }
    };
    let Some(found) = differences(f.point, &a, &b) else {
        failed.no_picture = format!("the shapes differ: {:?} and {:?}", a.shape, b.shape);
        return failed;
    };
    let case = result.cases.iter().find(|c| c.name == f.case);
    let names = Names { f, case, vocabulary };
    let most = if f.is_first { WORST } else { WORST_OF_REST };
    failed.worst = worst(&names, &a, &b, &found, most);
    match Heat::new(&a.shape, &found, budget) {
        Some(heat) => failed.picture = Some(picture(&names, heat, &a)),
        None => failed.no_picture = "a single element".into(),
    }
    failed
}

fn place(f: &Failure<'_>) -> String {
    let c = f.point.checkpoint();
    let layer = f.point.layer.map(|l| format!("layer {l}, ")).unwrap_or_default();
    let step = if f.step == 0 { "prefill".into() } else { format!("step {}", f.step) };
    format!("{layer}checkpoint {} ({}), case {}, {step}", c.number, c.name, f.case)
}

fn facts(f: &Failure<'_>, other: Option<&str>) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(row) = f.oracle {
        if let Some(local) = &row.local {
            facts.push(("this stage alone", error(local.max_abs)));
            if let Some(bound) = local.bound {
                facts.push(("rounding can do", error(Some(bound))));
            }
            if f.by_itself {
                let [given, right] = local.worst_values.map(|v| value_at(f.point, v));
                facts.push(("worst value given", given));
                facts.push(("in float64 it is", right));
            }
        }
        if let Some(inherited) = row.inherited {
            facts.push(("inherited", error(Some(inherited))));
        }
    }
    let pair = f.pair.and_then(|row| Some((row, row.metrics.as_ref()?, other?)));
    if let Some((row, m, other)) = pair {
        facts.push(("largest difference", format!("{} from {other}", error(m.max_abs))));
        let of = format!("{} of {}", m.exceeding, m.total);
        facts.push(("beyond the tolerance", format!("{of} ({})", tolerance(row.tolerance))));
    }
    if let Some(row) = f.own {
        facts.push(("against itself", row.reason.clone()));
    }
    facts
}

/// How elements are called.
struct Names<'a> {
    f: &'a Failure<'a>,
    case: Option<&'a CaseRecord>,
    vocabulary: &'a Vocabulary,
}

impl Names<'_> {
    /// The text of a token: of this step's, or of all so far.
    fn token(&self, i: usize, of_all: bool) -> Option<String> {
        let case = self.case?;
        let before = match self.f.step {
            0 => 0,
            step => case.ids.len() + step - 1,
        };
        let at = if of_all { i } else { before + i };
        let id = match at.checked_sub(case.ids.len()) {
            None => case.ids.get(at),
            Some(after) => case.forced_ids.get(after),
        };
        self.vocabulary.text(*id?).map(|text| format!("{text:?}"))
    }

    fn element(&self, index: &[usize]) -> String {
        let part = |(axis, i): (&&str, &usize)| {
            let text = match *axis {
                "token" => self.token(*i, self.is_cache()),
                "key" => self.token(*i, true),
                "id" => self.vocabulary.text(*i as u32).map(|t| format!("{t:?}")),
                _ => None,
            };
            format!("{axis} {i}{}", text.map(|t| format!(" {t}")).unwrap_or_default())
        };
        let parts: Vec<String> = axes(self.f.point.stage).iter().zip(index).map(part).collect();
        parts.join(", ")
    }

    /// A cache has a row for every token so far.
    fn is_cache(&self) -> bool {
        matches!(self.f.point.stage, Stage::CacheK | Stage::CacheV)
    }
}

fn worst(
    names: &Names<'_>,
    a: &Tensor,
    b: &Tensor,
    found: &[Option<f64>],
    most: usize,
) -> Vec<Element> {
    let mut best: Vec<(usize, f64)> = Vec::with_capacity(most + 1);
    for (i, d) in found.iter().enumerate().filter_map(|(i, d)| Some((i, (*d)?))) {
        let at = best.partition_point(|(_, kept)| *kept >= d);
        if d > 0.0 && at < most {
            best.insert(at, (i, d));
            best.truncate(most);
        }
    }
    let finite = |v: f64| v.is_finite().then_some(v);
    let one = |(i, d): (usize, f64)| Element {
        at: names.element(&unravel(&a.shape, i)),
        a: value_at(names.f.point, finite(a.get(i))),
        b: value_at(names.f.point, finite(b.get(i))),
        difference: error(finite(d)),
    };
    best.into_iter().map(one).collect()
}

fn picture(names: &Names<'_>, heat: Heat, a: &Tensor) -> Picture {
    let (codes, low, high) = heat.codes();
    let (width, height) = heat.size();
    // Cells as large as reading them needs, higher than wide where there are few lines of many.
    let (w, h) = (width as f64, height as f64);
    let across = (760.0 / w).min(420.0 / h).clamp(1.0, 16.0);
    let down = (420.0 / h).clamp(across, 16.0);
    let axes = axes(names.f.point.stage);
    let tokens: Vec<String> = match axes {
        ["token", ..] | [_, "token", _] => {
            let text = |i| names.token(i, names.is_cache()).unwrap_or_default();
            (0..heat.height).map(text).collect()
        }
        _ => Vec::new(),
    };
    Picture {
        png: heat.png(),
        codes,
        low: format!("{low:e}"),
        high: format!("{high:e}"),
        high_text: error(Some(high)),
        pale_text: error(Some(high * 1e-4)),
        shape: format!("{:?}", a.shape),
        axes: axes.join(" "),
        size: (width, height),
        style: format!("width:{:.0}px;aspect-ratio:{:.3}", across * w, across * w / (down * h)),
        folded: heat.rows * heat.columns < heat.height * heat.width,
        tokens: serde_json::to_string(&tokens).unwrap_or_default(),
        heat,
    }
}
