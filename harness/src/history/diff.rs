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
        circumstances: circumstances(old, new),
        implementations: implementations(old, new),
        checkpoints: checkpoints(old, new),
        causes: missing_from(&new.odd, &old.odd, same_cause),
        causes_gone: missing_from(&old.odd, &new.odd, same_cause),
        failures: missing_from(&new.failures, &old.failures, String::eq),
        failures_gone: missing_from(&old.failures, &new.failures, String::eq),
        unchecked: missing_from(&lacking(new), &lacking(old), |a, b| a.what == b.what),
        unchecked_gone: missing_from(&lacking(old), &lacking(new), |a, b| a.what == b.what),
        series: series.len(),
        ..Changes::default()
    };
    if old.is_comparable(new) {
        changes.verdicts = verdicts(old, new);
        changes.bits = bits(past, old, new);
        changes.errors = errors(past, old, new);
        changes.times = times(past, old, new);
    }
    let Changes { verdict, circumstances, implementations, checkpoints, verdicts, .. } = &changes;
    let Changes {
        causes,
        causes_gone,
        failures,
        failures_gone,
        unchecked,
        unchecked_gone,
        bits,
        errors,
        ..
    } = &changes;
    changes.nothing_changed = verdict.is_none()
        && circumstances.is_empty()
        && implementations.is_empty()
        && checkpoints.is_empty()
        && verdicts.is_empty()
        && (causes.len(), causes_gone.len()) == (0, 0)
        && (failures.len(), failures_gone.len()) == (0, 0)
        && (unchecked.len(), unchecked_gone.len()) == (0, 0)
        && (bits.len(), errors.len()) == (0, 0);
    changes
}

fn circumstances(old: &Record, new: &Record) -> Vec<Circumstance> {
    if !(old.has_figures() && new.has_figures()) {
        return Vec::new();
    }
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
    if !(old.has_figures() && new.has_figures()) {
        return Vec::new();
    }
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
            Status::Error => format!("{}, broken", of.version).trim_start_matches(", ").to_string(),
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
    if !(old.has_figures() && new.has_figures()) {
        return Vec::new();
    }
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

fn verdicts(old: &Record, new: &Record) -> Vec<PointVerdicts> {
    let mut all: Vec<(String, &str, &str)> = Vec::new();
    for (name, figures) in &new.figures {
        let before = old.figures.get(name);
        all.extend(before.map(|b| (name.clone(), b.verdicts.as_str(), figures.verdicts.as_str())));
    }
    for pair in &new.pairs {
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
    let one = |i: &'a super::record::Implementation| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::Past;

    fn history(records: Vec<Record>) -> History {
        History { place: "x".into(), records, skipped: Vec::new() }
    }

    /// Equal nights, then another; what changed against the one before.
    fn after(nights: u32, last: &Past) -> Changes {
        let mut records: Vec<Record> = (0..nights).map(|n| Past::default().record(n)).collect();
        records.push(last.record(nights));
        let history = history(records);
        diff(&history, &history.records[nights as usize - 1], &history.records[nights as usize])
    }

    #[test]
    fn equal_runs_changed_nothing() {
        for nights in [1, 14, 20] {
            let changes = after(nights, &Past { seconds: 10.3, ..Past::default() });
            assert!(changes.nothing_changed, "{changes:?}");
            assert_eq!(changes, Changes { times: vec![], ..changes.clone() });
        }
    }

    #[test]
    fn another_version_is_told_with_the_first_point_whose_bits_it_changes() {
        let last = Past { hf: "transformers 5.1.0", bits: ["a", "B", "C"], ..Past::default() };
        let changes = after(1, &last);
        assert!(!changes.nothing_changed);
        let implementation = &changes.implementations[0];
        assert_eq!(implementation.name, "hf");
        assert_eq!(implementation.new.as_deref(), Some("transformers 5.1.0"));
        assert_eq!(changes.bits.len(), 1);
        assert_eq!(
            (changes.bits[0].points[0].to_string().as_str(), changes.bits[0].of),
            ("h.0.ln_1", 3)
        );
        assert!(changes.errors.is_empty());
    }

    #[test]
    fn bits_that_vary_by_themselves_are_no_news_after_the_second_night() {
        let night = |n: u32, bits| Past { bits, ..Past::default() }.record(n);
        let records =
            vec![night(0, ["a", "b", "c"]), night(1, ["a", "B", "c"]), night(2, ["a", "x", "c"])];
        let history = history(records);
        let of = |old: usize, new: usize| {
            diff(&history, &history.records[old], &history.records[new]).bits.len()
        };
        assert_eq!((of(0, 1), of(1, 2)), (1, 0));
    }

    #[test]
    fn an_error_is_told_where_it_is_beyond_what_is_usual() {
        let with = |error: f64| Past { errors: [1e-7, error, 3e-6], ..Past::default() };
        assert!(after(14, &with(2.4e-6)).errors.is_empty());
        let changes = after(14, &with(2.6e-6));
        let told = &changes.errors[0];
        assert_eq!(
            (told.name.as_str(), told.error, told.of, told.points.len()),
            ("hf", "total", 3, 1)
        );
        assert_eq!(told.points[0].usual.map(|u| (u.median, u.runs)), Some((2e-6, 14)));
        // Too few nights: twice as much, or half.
        assert!(after(3, &with(3.9e-6)).errors.is_empty());
        assert_eq!(after(3, &with(4.1e-6)).errors[0].points[0].usual, None);
        assert_eq!(after(3, &with(0.9e-6)).errors.len(), 1);
    }

    #[test]
    fn other_threads_are_another_series_and_their_figures_are_not_compared() {
        let changes = after(14, &Past { threads: 1, errors: [1.0; 3], ..Past::default() });
        assert_eq!(changes.circumstances[0].what, "means");
        assert!(changes.errors.is_empty() && changes.series == 0 && !changes.nothing_changed);
    }

    #[test]
    fn verdicts_by_point_and_times_are_told() {
        let mut last = Past { seconds: 30.0, ..Past::default() }.record(14);
        last.verdict = RunVerdict::Fail;
        last.checkpoints.insert(1, Verdict::Fail);
        last.pairs[0].verdicts = "PFF".into();
        let mut records: Vec<Record> = (0..14).map(|n| Past::default().record(n)).collect();
        records.push(last);
        let history = history(records);
        let changes = diff(&history, &history.records[13], &history.records[14]);
        assert_eq!(changes.verdict, Some([RunVerdict::Pass, RunVerdict::Fail]));
        assert_eq!(changes.checkpoints.len(), 1);
        let pair = &changes.verdicts[0];
        assert_eq!(
            (pair.who.as_str(), pair.points.len(), pair.old, pair.new),
            ("llorch-cpud–hf", 2, 'P', 'F')
        );
        assert_eq!(
            (changes.times[0].part.as_str(), changes.times[0].usual.median),
            ("total", 10.0)
        );
        // Times alone are no change.
        let slow = after(14, &Past { seconds: 30.0, ..Past::default() });
        assert!(slow.nothing_changed && slow.times.len() == 1);
    }
}
