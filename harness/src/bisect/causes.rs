//! From places that are wrong to causes: the same stage with the same signature, in whatever layers,
//! steps and cases, is one.

use std::collections::{BTreeMap, HashMap};

use llorch_trace::{Point, Stage};

use super::memory::Memory;
use super::scan::{Finding, Judged};
use super::signatures::{Explanation, Site, explanations, is_carried_over};
use super::zoom::Zoom;
use crate::compare::Numbers;
use crate::oracle::bounds::Pair;
use crate::oracle::{BoundKind, Inputs, Oracle, Replayed};
use crate::result::Excerpt;

/// Places of a stage and layer at which signatures are tested; the others are taken to be alike.
const TESTED: usize = 6;

#[derive(Debug, Clone)]
pub struct Cause {
    /// In order; the first says where.
    pub findings: Vec<Finding>,
    pub layers: Vec<usize>,
    pub explanation: Option<Explanation>,
    /// Others that explain the same places just as well; of two layers, those of both.
    pub rivals: Vec<Explanation>,
    /// Its words are those of the first layer; another layer's figures are others.
    pub varies: bool,
    /// Of the places tested, those that the explanation explains, and all.
    pub explained: (usize, usize),
    /// At the first place, with the heads of all.
    pub zoom: Option<Zoom>,
    /// Some values at the first place, given and recomputed, around the worst.
    pub excerpt: Option<Excerpt>,
    /// Other points with the same signature in the same layers: k and v beside q.
    pub also: Vec<Stage>,
    pub heals: Option<bool>,
    pub explains: Option<bool>,
}

impl Cause {
    pub fn first(&self) -> &Finding {
        &self.findings[0]
    }

    /// All that explains it, the likeliest first.
    fn candidates(&self) -> impl Iterator<Item = &Explanation> {
        self.explanation.iter().chain(&self.rivals)
    }

    pub fn point(&self) -> Point {
        self.first().point
    }

    /// The point of another stage that is wrong in the same way.
    pub fn beside(&self, stage: Stage) -> Point {
        Point::of_layer(stage, self.point().layer.unwrap_or(0))
    }

    /// Whether a place is one of its own stages in one of its layers.
    pub fn covers(&self, point: Point) -> bool {
        let stage = point.stage == self.point().stage || self.also.contains(&point.stage);
        stage && point.layer.is_none_or(|layer| self.layers.contains(&layer))
    }
}

/// The causes, in order of their first places.
pub fn causes(run: &Judged<'_>, findings: Vec<Finding>) -> Vec<Cause> {
    let Judged { plan, subject, .. } = *run;
    let memories: Vec<Memory<'_>> =
        plan.cases.iter().map(|case| Memory::new(subject, case)).collect();
    let mut groups: BTreeMap<(Stage, Option<usize>), Vec<Finding>> = BTreeMap::new();
    for finding in findings {
        groups.entry((finding.point.stage, finding.point.layer)).or_default().push(finding);
    }
    let mut all: Vec<Cause> = Vec::new();
    let mut known: HashMap<Stage, Explanation> = HashMap::new();
    for ((stage, _), group) in groups {
        let parts = match &run.truth.oracle {
            Some(oracle) => partition(oracle, &memories, group, known.get(&stage)),
            None => vec![plain(group)],
        };
        for part in parts {
            if let Some(explanation) = &part.explanation {
                known.entry(stage).or_insert(explanation.clone());
            }
            match all.iter_mut().find(|c| c.point().stage == stage && alike(c, &part)) {
                Some(same) => join(same, part),
                None => all.push(part),
            }
        }
    }
    all.iter_mut().for_each(|cause| cause.findings.sort_by_key(Finding::place));
    all.sort_by_key(|cause| cause.first().place());
    merge_kin(all)
}

/// A signature that fits both, or both without one; an interval is no other stage's signature.
fn alike(a: &Cause, b: &Cause) -> bool {
    let same = match (&a.explanation, &b.explanation) {
        (Some(_), Some(_)) => common(a, b).next().is_some(),
        (None, None) => true,
        _ => false,
    };
    same && a.first().after.is_some() == b.first().after.is_some()
}

/// What explains both, the likeliest of the first in front.
fn common<'a>(a: &'a Cause, b: &'a Cause) -> impl Iterator<Item = &'a Explanation> {
    a.candidates().filter(move |x| b.candidates().any(|y| alike_words(x, y)))
}

fn join(cause: &mut Cause, other: Cause) {
    let mut both = common(cause, &other).cloned().collect::<Vec<_>>().into_iter();
    let shared = both.next();
    cause.varies |= shared.as_ref().is_some_and(|e| other.candidates().all(|theirs| theirs != e));
    cause.explanation = shared;
    cause.rivals = both.collect();
    // Its heads are another layer's.
    cause.layers.extend(other.layers);
    cause.layers.sort_unstable();
    cause.layers.dedup();
    cause.findings.extend(other.findings);
    cause.explained.0 += other.explained.0;
    cause.explained.1 += other.explained.1;
}

/// q, k and v come from one product, both caches are written alike, and all norms are computed alike: the
/// same signature in the same layers is one mistake.
fn merge_kin(all: Vec<Cause>) -> Vec<Cause> {
    let mut merged: Vec<Cause> = Vec::new();
    for cause in all {
        let stage = cause.point().stage;
        match merged.iter_mut().find(|c| are_kin(c, &cause)) {
            Some(first) => {
                first.also.push(stage);
                first.findings.extend(cause.findings);
                first.explained.0 += cause.explained.0;
                first.explained.1 += cause.explained.1;
            }
            None => merged.push(cause),
        }
    }
    merged
}

fn are_kin(first: &Cause, other: &Cause) -> bool {
    let named = first.explanation.as_ref().is_some_and(|e| e.slug.is_some());
    let (x, y) = (first.point().stage, other.point().stage);
    let both = |family: &[Stage]| family.contains(&x) && family.contains(&y);
    let same_place = first.layers == other.layers && first.first().step == other.first().step;
    match () {
        _ if first.explanation.is_none() || !alike(first, other) => false,
        _ if both(&[Stage::Q, Stage::K, Stage::V]) => named && same_place,
        _ if both(&[Stage::CacheK, Stage::CacheV]) => named && same_place,
        // Norms have parameters of their own; what they share is how they are computed. The last one
        // is in no layer.
        _ if both(&[Stage::Ln1, Stage::Ln2, Stage::LnF]) => {
            let everywhere = y == Stage::LnF && first.layers.len() > 1;
            first.explanation == other.explanation && (same_place || everywhere)
        }
        _ => false,
    }
}

/// A cause without signature.
fn plain(findings: Vec<Finding>) -> Cause {
    let mut layers: Vec<usize> = findings.iter().filter_map(|f| f.point.layer).collect();
    layers.dedup();
    Cause {
        findings,
        layers,
        explanation: None,
        rivals: Vec::new(),
        varies: false,
        explained: (0, 0),
        zoom: None,
        excerpt: None,
        also: Vec::new(),
        heals: None,
        explains: None,
    }
}

/// What is known of one place.
struct Tested {
    finding: Finding,
    zoom: Option<Zoom>,
    excerpt: Option<Excerpt>,
    explanations: Vec<Explanation>,
    /// Nothing new is wrong here: it is what an earlier step left.
    carried: bool,
}

/// The places of one stage in one layer, by what explains them. `expected` is what explained another
/// layer.
fn partition(
    oracle: &Oracle,
    memories: &[Memory<'_>],
    group: Vec<Finding>,
    expected: Option<&Explanation>,
) -> Vec<Cause> {
    let mut group = group.into_iter();
    let test = |finding: Finding| tested(oracle, memories, finding, expected);
    let mut rest: Vec<Tested> = group.by_ref().take(TESTED).map(test).collect();
    let untested: Vec<Finding> = group.collect();
    let mut causes = Vec::new();
    while !rest.is_empty() {
        let mut candidates: Vec<&Explanation> = rest.iter().flat_map(|t| &t.explanations).collect();
        // The one that explains most; of equals the first, which is the likeliest of its place.
        let count = |e: &Explanation| rest.iter().filter(|t| explains(t, e)).count();
        candidates.reverse();
        let best = candidates.into_iter().max_by_key(|e| count(e)).cloned();
        let joins = |t: &Tested| match &best {
            Some(best) => t.carried || t.explanations.is_empty() || explains(t, best),
            None => true,
        };
        let explained = best.as_ref().map_or(0, |e| rest.iter().filter(|t| explains(t, e)).count());
        let unexplained = rest.iter().filter(|t| !t.carried && t.explanations.is_empty()).count();
        // What explains fewer places than it leaves open is an explanation of those alone.
        let of_its_own = best.is_some() && explained < unexplained;
        let (mine, others): (Vec<Tested>, Vec<Tested>) = rest.into_iter().partition(|t| {
            if of_its_own { best.as_ref().is_some_and(|e| explains(t, e)) } else { joins(t) }
        });
        let asked = mine.iter().filter(|t| !t.carried).count();
        let rivals = best.as_ref().map(|best| rivals(best, &mine)).unwrap_or_default();
        let mut zoom = mine.first().and_then(|t| t.zoom.clone());
        for other in mine.iter().skip(1).filter_map(|t| t.zoom.as_ref()) {
            zoom.iter_mut().for_each(|z| z.join_heads(other));
        }
        let excerpt = mine.first().and_then(|t| t.excerpt.clone());
        let text = best.as_ref().map(|best| {
            let own =
                mine.first().and_then(|t| t.explanations.iter().find(|e| alike_words(e, best)));
            own.unwrap_or(best).clone()
        });
        let cause = plain(mine.into_iter().map(|t| t.finding).collect());
        causes.push(Cause {
            explanation: text,
            rivals,
            explained: (explained, asked),
            zoom,
            excerpt,
            ..cause
        });
        rest = others;
    }
    match causes.first_mut() {
        Some(first) => first.findings.extend(untested),
        None => causes.push(plain(untested)),
    }
    causes
}

/// What explains every place that the best does. A factor is what many a mistake comes to, and says no
/// more than the best.
fn rivals(best: &Explanation, places: &[Tested]) -> Vec<Explanation> {
    let mut found: Vec<Explanation> = Vec::new();
    for other in places.iter().flat_map(|t| &t.explanations) {
        let everywhere = || places.iter().all(|t| explains(t, other) || !explains(t, best));
        if other.slug != Some("scaled")
            && !alike_words(other, best)
            && !found.iter().any(|e| alike_words(e, other))
            && everywhere()
        {
            found.push(other.clone());
        }
    }
    found
}

fn alike_words(a: &Explanation, b: &Explanation) -> bool {
    a.slug == b.slug && (a.slug.is_some() || a.text == b.text)
}

fn explains(tested: &Tested, explanation: &Explanation) -> bool {
    tested.explanations.iter().any(|e| alike_words(e, explanation))
}

fn tested(
    oracle: &Oracle,
    memories: &[Memory<'_>],
    finding: Finding,
    expected: Option<&Explanation>,
) -> Tested {
    let nothing = |finding| Tested {
        finding,
        zoom: None,
        excerpt: None,
        explanations: Vec::new(),
        carried: false,
    };
    let memory = &memories[finding.case];
    if finding.after.is_some() {
        return nothing(finding);
    }
    let Some(site) = site(oracle, memory, &finding) else {
        let text = super::choice::explain(memory, &finding);
        let explanations = text.into_iter().map(|text| Explanation { slug: None, text }).collect();
        return Tested { explanations, ..nothing(finding) };
    };
    let mut known = super::choice::distribution(memory, &finding);
    let quickly = expected.map(|e| explanations(&site, Some(e))).filter(|found| !found.is_empty());
    known.extend(quickly.unwrap_or_else(|| explanations(&site, None)));
    Tested {
        zoom: Some(Zoom::of(&site)),
        excerpt: Some(excerpt(&site, &finding)),
        explanations: known,
        carried: is_carried_over(&site),
        finding,
    }
}

/// Values that are shown around the worst.
const SHOWN: usize = 8;

/// Around the element that the row names.
fn excerpt(site: &Site<'_>, finding: &Finding) -> Excerpt {
    let shape = &site.given.shape;
    let named = finding.row.local.as_ref().map(|l| &l.worst).filter(|at| at.len() == shape.len());
    let worst = match named {
        Some(at) => at.iter().zip(shape).fold(0, |i, (at, size)| i * size + at),
        None => {
            let larger = |a: &usize, b: &usize| site.excess[*a].total_cmp(&site.excess[*b]);
            site.beyond().max_by(larger).unwrap_or(0)
        }
    };
    crate::compare::excerpt(&site.given, &site.honest.value, worst, SHOWN / 2, SHOWN)
}

/// The stage of a finding, recomputed; none where nothing is recomputed there.
fn site<'a>(oracle: &'a Oracle, memory: &'a Memory<'a>, finding: &Finding) -> Option<Site<'a>> {
    let (step, point) = (finding.step, finding.point);
    let given = memory.tensor(step, point)?;
    let honest = match point.stage {
        Stage::NextProbs => distribution(memory, step, &given)?,
        _ => {
            let job = crate::oracle::Job { step, inputs: memory, u: given.dtype.unit_roundoff() };
            oracle.replay(point, job).ok()??
        }
    };
    Site::new(oracle, memory, (step, point), memory.case().sizes(step), given, honest)
}

/// What its own logits make of the next token's probabilities.
fn distribution(memory: &Memory<'_>, step: usize, given: &Numbers) -> Option<Replayed> {
    let logits = memory.tensor(step, Point::new(Stage::LogitsLast))?;
    let probs = crate::sampling::replay(&logits.values, &memory.case().sampling);
    let bound = Pair { band: 1e-6, bound: 1e-6 };
    let value = Numbers::f64(given.shape.clone(), probs);
    (value.values.len() == given.values.len()).then(|| Replayed {
        bounds: vec![bound; value.values.len()],
        value,
        kind: BoundKind::Derived,
    })
}
