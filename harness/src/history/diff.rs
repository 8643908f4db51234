//! What changed between two runs.

use llorch_trace::Point;
use serde::Serialize;

use super::read::History;
use super::record::{Figures, Record};
use super::usual::{RUNS, Usual, usual};
use crate::result::{Odd, RunVerdict, Status, Unchecked, UncheckedKind, Verdict};

const SCHEMA: &str = "llorch.history-diff/1";

/// Programs that give the same bits every time have no spread; then an error counts as changed from a
/// quarter of its median on (five times this part). Honest implementations that only sum in another
/// order lie about that far from one another at the same point (docs/HISTORY.md).
const LEAST_ERROR: f64 = 0.05;

/// Of times: half as much again, five times this part. The same run on a machine with neighbours.
const LEAST_TIME: f64 = 0.1;

/// Where too few runs say what is usual: twice, or half.
const TIMES: f64 = 2.0;

/// Shorter parts of a run are all noise.
const WORTH_TELLING: f64 = 1.0;

/// `history diff --format json`: docs/schemas/history-diff.schema.json.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Changes {
    pub schema: &'static str,
    pub old: String,
    pub new: String,
    /// Nothing but times differs.
    pub nothing_changed: bool,
    pub verdict: Option<[RunVerdict; 2]>,
    /// Weights, cases, precision, machine: what makes figures another series.
    pub circumstances: Vec<Circumstance>,
    pub implementations: Vec<Implementation>,
    pub checkpoints: Vec<Checkpoint>,
    pub verdicts: Vec<PointVerdicts>,
    pub causes: Vec<Odd>,
    pub causes_gone: Vec<Odd>,
    /// Published answers that are wrong.
    pub failures: Vec<String>,
    pub failures_gone: Vec<String>,
    pub unchecked: Vec<Unchecked>,
    pub unchecked_gone: Vec<Unchecked>,
    pub bits: Vec<Bits>,
    pub errors: Vec<Errors>,
    /// How many earlier runs are of the same series, at most 14 of which say what is usual.
    pub series: usize,
    pub times: Vec<Time>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Circumstance {
    pub what: &'static str,
    pub old: String,
    pub new: String,
}

/// Another version or status, or somebody who was not there before; `None` where it was not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Implementation {
    pub name: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    pub number: u8,
    pub old: Option<Verdict>,
    pub new: Option<Verdict>,
}

/// Points with another verdict, of an implementation or of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointVerdicts {
    pub who: String,
    pub points: Vec<Point>,
    /// At the first of them, as letters.
    pub old: char,
    pub new: char,
}

/// Points at which an implementation gives other bits from the same weights and tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bits {
    pub name: String,
    pub points: Vec<Point>,
    /// How many were looked at.
    pub of: usize,
}

/// Errors that are not what they usually are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Errors {
    pub name: String,
    /// `total` or `local`.
    pub error: &'static str,
    pub of: usize,
    pub points: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    pub point: Point,
    /// Null where not finite.
    pub old: Option<f64>,
    pub new: Option<f64>,
    /// Null where too few runs tell.
    pub usual: Option<Usual>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Time {
    pub part: String,
    pub old: f64,
    pub new: f64,
    pub usual: Usual,
}

/// The history says what is usual for the new run's series.
pub fn diff(history: &History, old: &Record, new: &Record) -> Changes {
    let series: Vec<&Record> = history.before(new).collect();
    let past = &series[series.len().saturating_sub(RUNS)..];
    let mut changes = Changes {
        schema: SCHEMA,
        old: old.id.clone(),
        new: new.id.clone(),
        verdict: (old.verdict != new.verdict).then_some([old.verdict, new.verdict]),
        causes: missing_from(&new.odd, &old.odd, same_cause),
        causes_gone: missing_from(&old.odd, &new.odd, same_cause),
        failures: missing_from(&new.failures, &old.failures, String::eq),
        failures_gone: missing_from(&old.failures, &new.failures, String::eq),
        unchecked: missing_from(&lacking(new), &lacking(old), |a, b| a.what == b.what),
        unchecked_gone: missing_from(&lacking(old), &lacking(new), |a, b| a.what == b.what),
        series: series.len(),
        ..Changes::default()
    };
    if old.has_figures() && new.has_figures() {
        changes.circumstances = circumstances(old, new);
        changes.implementations = implementations(old, new);
        changes.checkpoints = checkpoints(old, new);
    } else if old.model.name != new.model.name {
        let (old, new) = (old.model.name.clone(), new.model.name.clone());
        changes.circumstances = vec![Circumstance { what: "model", old, new }];
    }
    if old.is_comparable(new) {
        changes.verdicts = verdicts(old, new);
        changes.bits = bits(past, old, new);
        changes.errors = errors(past, old, new);
        changes.times = times(past, old, new);
    }
    changes.nothing_changed = changes.is_nothing();
    changes
}

impl Changes {
    /// Times are no change.
    fn is_nothing(&self) -> bool {
        let found = [
            self.circumstances.len(),
            self.implementations.len(),
            self.checkpoints.len(),
            self.verdicts.len(),
            self.causes.len(),
            self.causes_gone.len(),
            self.failures.len(),
            self.failures_gone.len(),
            self.unchecked.len(),
            self.unchecked_gone.len(),
            self.bits.len(),
            self.errors.len(),
        ];
        self.verdict.is_none() && found.iter().all(|n| *n == 0)
    }

    /// What another comparison of the same new run found in its figures: this one's old run has none.
    pub fn take_figures_of(&mut self, other: Changes) {
        self.circumstances = other.circumstances;
        self.implementations = other.implementations;
        self.checkpoints = other.checkpoints;
        self.verdicts = other.verdicts;
        self.bits = other.bits;
        self.errors = other.errors;
        self.times = other.times;
    }
}

fn circumstances(old: &Record, new: &Record) -> Vec<Circumstance> {
    let machine = |r: &Record| {
        r.machine.as_ref().map_or("several kinds of machine".into(), |machine| machine.kind())
    };
    let weights = |r: &Record| format!("{} {}", r.model.name, short(&r.model.sha256));
    let cases = |r: &Record| {
        format!("{} {}", crate::text::count(r.cases.count, "case"), short(&r.cases.sha256))
    };
    let means = |r: &Record| {
        format!("{}, {}", r.means.dtype, crate::text::count(r.means.threads, "thread"))
    };
    let all: [(&str, String, String); 5] = [
        ("weights", weights(old), weights(new)),
        ("cases", cases(old), cases(new)),
        ("means", means(old), means(new)),
        ("machine", machine(old), machine(new)),
        ("llorch-diff", old.version.clone(), new.version.clone()),
    ];
    let differ = all.into_iter().filter(|(_, old, new)| old != new);
    differ.map(|(what, old, new)| Circumstance { what, old, new }).collect()
}

fn short(sha256: &Option<String>) -> &str {
    sha256.as_ref().and_then(|hash| hash.get(..12)).unwrap_or_default()
}

fn implementations(old: &Record, new: &Record) -> Vec<Implementation> {
    let mut names: Vec<&str> = Vec::new();
    for record in [new, old] {
        names.extend(record.implementations.iter().map(|i| i.name.as_str()));
    }
    let told = |record: &Record, name: &str| {
        let of = record.implementation(name)?;
        Some(match of.status {
            Status::Ok => of.version.clone(),
            Status::Partial => format!("{}, partial", of.version),
            Status::Missing => "missing".to_string(),
            Status::Error => "broken".to_string(),
        })
    };
    let mut seen = Vec::new();
    for name in names {
        let (old, new) = (told(old, name), told(new, name));
        if old != new && !seen.iter().any(|i: &Implementation| i.name == name) {
            seen.push(Implementation { name: name.into(), old, new });
        }
    }
    seen
}

fn checkpoints(old: &Record, new: &Record) -> Vec<Checkpoint> {
    let of = |record: &Record, number: u8| record.checkpoints.get(&number).copied();
    let all = (0..=12).map(|n| Checkpoint { number: n, old: of(old, n), new: of(new, n) });
    all.filter(|c| c.old != c.new).collect()
}

fn missing_from<T: Clone>(all: &[T], from: &[T], same: fn(&T, &T) -> bool) -> Vec<T> {
    all.iter().filter(|x| !from.iter().any(|y| same(x, y))).cloned().collect()
}

fn same_cause(a: &Odd, b: &Odd) -> bool {
    (&a.name, a.point, &a.case, a.step) == (&b.name, b.point, &b.case, b.step)
}

fn lacking(record: &Record) -> Vec<Unchecked> {
    record.unchecked.iter().filter(|u| u.kind == UncheckedKind::Missing).cloned().collect()
}

/// Points of which both runs have figures: (point, place in the old one, place in the new one).
fn common<'a>(old: &'a Record, new: &'a Record) -> impl Iterator<Item = (Point, usize, usize)> {
    new.points.iter().enumerate().filter_map(|(n, p)| Some((*p, old.place(*p)?, n)))
}

fn took_part(record: &Record, name: &str) -> bool {
    let status = record.implementation(name).map(|i| i.status);
    matches!(status, Some(Status::Ok | Status::Partial))
}

fn verdicts(old: &Record, new: &Record) -> Vec<PointVerdicts> {
    let mut all: Vec<(String, &str, &str)> = Vec::new();
    for (name, figures) in
        new.figures.iter().filter(|(n, _)| took_part(old, n) && took_part(new, n))
    {
        let before = old.figures.get(name);
        all.extend(before.map(|b| (name.clone(), b.verdicts.as_str(), figures.verdicts.as_str())));
    }
    for pair in &new.pairs {
        let broke = |name: &String| !(took_part(old, name) && took_part(new, name));
        if broke(&pair.a) || broke(&pair.b) {
            continue;
        }
        let before = old.pairs.iter().find(|p| p.a == pair.a && p.b == pair.b);
        let who = format!("{}–{}", pair.a, pair.b);
        all.extend(before.map(|b| (who, b.verdicts.as_str(), pair.verdicts.as_str())));
    }
    let letter = |letters: &str, place: usize| letters.chars().nth(place).unwrap_or('-');
    let mut found = Vec::new();
    for (who, before, after) in all {
        let places = common(old, new).filter(|(_, o, n)| letter(before, *o) != letter(after, *n));
        let places: Vec<_> = places.collect();
        if let Some((_, o, n)) = places.first() {
            let (old, new) = (letter(before, *o), letter(after, *n));
            let points = places.iter().map(|(point, ..)| *point).collect();
            found.push(PointVerdicts { who, points, old, new });
        }
    }
    found
}

/// In the order of the new run's implementations.
fn both<'a>(old: &'a Record, new: &'a Record) -> Vec<(&'a str, &'a Figures, &'a Figures)> {
    // One that broke or was not there has no figures that say anything.
    let one = |i: &'a super::record::Implementation| {
        if !(took_part(old, &i.name) && took_part(new, &i.name)) {
            return None;
        }
        let (a, b) = (old.figures.get(&i.name)?, new.figures.get(&i.name)?);
        Some((i.name.as_str(), a, b))
    };
    new.implementations.iter().filter_map(one).collect()
}

fn bits(past: &[&Record], old: &Record, new: &Record) -> Vec<Bits> {
    let mut found = Vec::new();
    for (name, a, b) in both(old, new) {
        let given = |figures: &Figures, place: usize| figures.bits.get(place).cloned().flatten();
        let pairs = common(old, new).filter_map(|(p, o, n)| Some((p, given(a, o)?, given(b, n)?)));
        let pairs: Vec<_> = pairs.collect();
        let version = |r: &Record| r.implementation(name).map(|i| i.version.clone());
        // Where the same version gave other bits from run to run, they say nothing.
        let varies = |point: Point| {
            let same = past.iter().filter(|r| version(r) == version(new));
            let bits = same.filter_map(|r| given(r.figures.get(name)?, r.place(point)?));
            let mut bits: Vec<String> = bits.collect();
            bits.sort();
            bits.dedup();
            bits.len() > 1
        };
        let differ = pairs.iter().filter(|(p, x, y)| x != y && !varies(*p));
        let points: Vec<Point> = differ.map(|(p, ..)| *p).collect();
        if !points.is_empty() {
            found.push(Bits { name: name.into(), points, of: pairs.len() });
        }
    }
    found
}

fn errors(past: &[&Record], old: &Record, new: &Record) -> Vec<Errors> {
    type Of = fn(&Figures) -> &Vec<Option<f64>>;
    let kinds: [(&'static str, Of); 2] = [("total", |f| &f.total), ("local", |f| &f.local)];
    let mut found = Vec::new();
    for (name, a, b) in both(old, new) {
        for (error, of) in kinds {
            let mut points = Vec::new();
            let mut looked_at = 0;
            for (point, o, n) in common(old, new) {
                let at =
                    |figures: &Figures, place: usize| of(figures).get(place).copied().flatten();
                let (was, is) = (at(a, o), at(b, n));
                if was.is_none() && is.is_none() {
                    continue;
                }
                looked_at += 1;
                let earlier = past.iter().filter_map(|r| at(r.figures.get(name)?, r.place(point)?));
                let usual = usual(&earlier.collect::<Vec<_>>());
                if error == "local" && within_rounding(was) && within_rounding(is) {
                    continue;
                }
                if changed(was, is, usual) {
                    points.push(Change { point, old: was, new: is, usual });
                }
            }
            if !points.is_empty() {
                found.push(Errors { name: name.into(), error, of: looked_at, points });
            }
        }
    }
    found
}

/// Whether an error is beyond the usual spread.
pub fn is_unusual(figure: f64, usual: Usual) -> bool {
    usual.is_beyond(figure, LEAST_ERROR)
}

/// Whatever a stage's own error is below what rounding is expected to do, it says nothing.
fn within_rounding(of_band: Option<f64>) -> bool {
    of_band.is_some_and(|ratio| ratio <= 1.0)
}

fn changed(old: Option<f64>, new: Option<f64>, usual: Option<Usual>) -> bool {
    match (old, new, usual) {
        (Some(_), Some(new), Some(usual)) => is_unusual(new, usual),
        (Some(old), Some(new), None) => old.max(new) > TIMES * old.min(new),
        // One of them is not finite.
        _ => true,
    }
}

/// Times say something only where it is known what is usual.
fn times(past: &[&Record], old: &Record, new: &Record) -> Vec<Time> {
    let one = |(part, now): (&String, &f64)| {
        let before = *old.seconds.get(part)?;
        let earlier: Vec<f64> = past.iter().filter_map(|r| r.seconds.get(part).copied()).collect();
        let usual = usual(&earlier)?;
        let told = now.max(usual.median) >= WORTH_TELLING && usual.is_beyond(*now, LEAST_TIME);
        told.then(|| Time { part: part.clone(), old: before, new: *now, usual })
    };
    new.seconds.iter().filter_map(one).collect()
}
