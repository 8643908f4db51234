//! Isolated stages: all implementations read the same input, so an output is held to the float64
//! recomputation of that stage, and to every other output, with nothing inherited between them.
//!
//! Classes are those of block 0 in every layer. They were made for the inputs that GPT-2 has: where an
//! input is random or the user's, what rounding may do there is allowed too where that is more. Layer
//! norms are also looked at before their gain and bias, in rows of kind `self`.

use llorch_trace::{Class, Dtype, Point};

use super::local::{describe, measure};
use super::{Found, JudgeOptions, Place, Verdicts, deviations, narrow, overall};
use crate::collect::CANNOT_INJECT;
use crate::compare::{Comparison, Numbers, Tolerance, compare};
use crate::evidence::{Evidence, Plan};
use crate::isolate::Isolation;
use crate::oracle::norm_checks::{Moment, norm_input};
use crate::oracle::{Inputs, Job, Oracle, Replayed, Truth};
use crate::result::{
    Metrics, Role, Row, RowKind, RunVerdict, Status, Unchecked, UncheckedKind, Verdict,
};

pub fn judge(
    plan: &Plan,
    evidence: &[Evidence],
    truth: &Truth,
    isolation: &Isolation,
    options: &JudgeOptions,
) -> Verdicts {
    let oracle = truth.oracle.as_ref().filter(|_| options.stages);
    let mut rows: Vec<Row> = Vec::new();
    let bar = options.progress.steps("judging stages", "point", plan.points.len());
    for (n, point) in plan.points.iter().enumerate() {
        bar.set(n as u64);
        for case in &plan.cases {
            for step in 0..case.steps() {
                let place = Place::new(plan, evidence, options, case, step, *point);
                rows.extend(Isolated::new(place, isolation, oracle).rows());
            }
        }
    }
    let nth = |row: &Row| plan.cases.iter().position(|c| c.name == row.case);
    rows.sort_by_key(|row| (nth(row), row.step, row.point));
    conclude(plan, evidence, rows)
}

/// One stage at one step of one case.
struct Isolated<'a> {
    place: Place<'a>,
    isolation: &'a Isolation,
    oracle: Option<&'a Oracle>,
    /// The stage in float64, by the dtype that it is judged in.
    replayed: Vec<(Dtype, Replayed)>,
}

impl<'a> Isolated<'a> {
    fn new(place: Place<'a>, isolation: &'a Isolation, oracle: Option<&'a Oracle>) -> Self {
        let mut dtypes: Vec<Dtype> = Vec::new();
        for found in &place.found {
            if let Found::Tensor(x) = found
                && !dtypes.contains(&x.dtype)
            {
                dtypes.push(x.dtype);
            }
        }
        let inputs = isolation.given(place.case);
        let replay = |dtype: Dtype| {
            let job = Job { step: place.step, inputs: &inputs, u: dtype.unit_roundoff() };
            let replayed = oracle?.replay(place.point, job).ok().flatten()?;
            Some((dtype, replayed))
        };
        let replayed = dtypes.into_iter().filter_map(replay).collect();
        Isolated { place, isolation, oracle, replayed }
    }

    fn rows(&self) -> Vec<Row> {
        let n = self.place.evidence.len();
        let tensors = (0..n).filter_map(|who| match &self.place.found[who] {
            Found::Tensor(x) => Some((who, x)),
            _ => None,
        });
        let mut against_oracle = Vec::new();
        for (who, x) in tensors {
            if let Some(replayed) = self.replayed(x) {
                against_oracle.push(self.against_oracle(who, x, replayed));
                against_oracle.extend(self.norm(who, x));
            }
        }
        let mut rows = Vec::new();
        for a in 0..n {
            for b in a + 1..n {
                let missing = |i: usize| self.place.evidence[i].missing.is_some();
                if !(missing(a) && missing(b)) {
                    rows.push(self.pair(a, b, &against_oracle));
                }
            }
        }
        rows.extend(against_oracle);
        rows
    }

    fn replayed(&self, x: &Numbers) -> Option<&Replayed> {
        self.replayed.iter().find(|(dtype, _)| *dtype == x.dtype).map(|(_, replayed)| replayed)
    }

    /// Within the class, or, for inputs that GPT-2 never has, within what rounding may do if that is more.
    fn compare(
        &self,
        x: &Numbers,
        y: &Numbers,
        rounding: &dyn Fn(usize) -> f64,
    ) -> Result<Comparison, String> {
        let class = class(self.place.point);
        let allowed = |i: usize| {
            let largest = x.values[i].abs().max(y.values[i].abs()).max(1.0);
            (class * largest).max(rounding(i))
        };
        let tolerance = match self.isolation.is_of_gpt2() {
            _ if class == 0.0 => Tolerance::Exact,
            true => Tolerance::Mixed(class),
            false => Tolerance::Absolute(&allowed),
        };
        compare(x, y, tolerance, &self.place.cells())
    }

    fn against_oracle(&self, who: usize, x: &Numbers, replayed: &Replayed) -> Row {
        let place = &self.place;
        let bound = |i: usize| replayed.bounds.get(i).map_or(0.0, |pair| pair.bound);
        let compared = self.compare(x, &replayed.value, &bound);
        let mut row = place.judged(RowKind::Oracle, who, "oracle", (x, &replayed.value), compared);
        let Some(mut local) = measure(x, replayed, place.class(), &place.cells()) else {
            return row;
        };
        let within_bound = local.of_bound.is_some_and(|of| of <= 1.0);
        if local.verdict == Verdict::Fail && within_bound && !self.isolation.is_of_gpt2() {
            let noisy = local.of_band.is_none_or(|of| of > 1.0);
            local.verdict = if noisy { Verdict::Warn } else { Verdict::Pass };
            local.exceeding = 0;
        }
        if matches!(local.verdict, Verdict::Fail | Verdict::Warn) && row.verdict != Verdict::Error {
            (row.verdict, row.reason) = (row.verdict.max(local.verdict), describe(&local));
        }
        row.local = Some(local);
        let row = narrow::by_itself(x, row);
        deviations::excuse_local(place, who, (x, &replayed.value), row)
    }

    fn pair(&self, a: usize, b: usize, against_oracle: &[Row]) -> Row {
        let place = &self.place;
        let name = &place.evidence[b].name;
        let (x, y) = match place.both(a, b) {
            Ok(both) => both,
            Err(row) => return *row,
        };
        let of = |n: &Numbers, i: usize| {
            self.replayed(n).and_then(|r| r.bounds.get(i)).map_or(0.0, |pair| pair.bound)
        };
        let compared = self.compare(x, y, &|i| of(x, i) + of(y, i));
        let row = place.judged(RowKind::Pair, a, name, (x, y), compared);
        let row = deviations::excuse(place, &[a, b], (x, y), row);
        let mut row = narrow::pair(place, against_oracle, [(a, x), (b, y)], row);
        if row.verdict == Verdict::Fail {
            let wrong = |n: &&String| {
                against_oracle.iter().any(|r| r.a == **n && r.verdict == Verdict::Fail)
            };
            row.blame = [&row.a, &row.b].into_iter().filter(wrong).cloned().collect();
            if row.blame.len() == 1 {
                row.reason = format!("{}; {} is wrong by the oracle", row.reason, row.blame[0]);
            }
        }
        row
    }

    /// A layer norm before its gain and bias.
    fn norm(&self, who: usize, y: &Numbers) -> Option<Row> {
        let place = &self.place;
        let input = norm_input(place.point, place.dims.n_layer)?;
        let x = self.isolation.given(place.case).tensor(place.step, input)?;
        let u = y.dtype.unit_roundoff();
        let found = self.oracle?.norm_moments(place.point, &x, y, u).ok().flatten()?;
        let both = [found.mean, found.variance];
        let worst = if both[1].of_bound() > both[0].of_bound() { both[1] } else { both[0] };
        let name = place.evidence[who].name.clone();
        let (verdict, reason) = match found.hold() {
            true if found.left_out == 0 => (Verdict::Pass, String::new()),
            true => (Verdict::Pass, left_out(found.left_out)),
            false => (Verdict::Fail, told(&found.mean, &found.variance)),
        };
        let mut row = place.row(RowKind::Own, who, &name, verdict, reason);
        let finite = |v: f64| v.is_finite().then_some(v);
        row.tolerance = worst.bound;
        row.metrics = Some(Metrics {
            max_abs: finite(found.mean.off().max(found.variance.off())),
            max_rel: None,
            rel_l2: None,
            rmse: None,
            ulp_max: None,
            exceeding: both.iter().filter(|m| !m.holds()).count(),
            total: 2 * found.rows,
            worst: vec![worst.row],
            worst_values: [finite(worst.found), finite(worst.expected)],
        });
        Some(row)
    }
}

fn told(mean: &Moment, variance: &Moment) -> String {
    let one = |what: &str, m: &Moment| {
        format!(
            "{what} {:.6e} in row {}; expected {:.6e} ± {:.1e}",
            m.found, m.row, m.expected, m.bound
        )
    };
    let mut parts = Vec::new();
    if !mean.holds() {
        parts.push(one("mean", mean));
    }
    if !variance.holds() {
        parts.push(one("variance", variance));
    }
    format!("before gain and bias: {}", parts.join("; "))
}

fn left_out(channels: usize) -> String {
    format!("before gain and bias: {channels} channels have a gain too small to be undone")
}

/// The class of a stage, in every layer; 0 where equality is asked for.
fn class(point: Point) -> f64 {
    match point.checkpoint().class {
        Class::Exact => 0.0,
        Class::Mixed(t) => t,
    }
}

/// As of a whole run, but that the recomputation counts as a comparison, and that a subject which
/// could not be isolated was not checked.
fn conclude(plan: &Plan, evidence: &[Evidence], rows: Vec<Row>) -> Verdicts {
    let mut verdicts = overall::conclude(plan, evidence, rows);
    let cannot = |e: &&Evidence| e.faults.iter().any(|f| f.message == CANNOT_INJECT);
    let subject = evidence.iter().find(|e| e.role == Role::Subject).map_or("", |e| &e.name);
    for e in evidence.iter().filter(cannot).filter(|e| e.name != subject) {
        verdicts.unchecked.push(Unchecked {
            what: format!("{}: every stage", e.name),
            kind: UncheckedKind::Unsupported,
            reason: CANNOT_INJECT.into(),
        });
    }
    let recomputed = |name: &str| {
        verdicts.rows.iter().any(|r| r.kind == RowKind::Oracle && (name.is_empty() || r.a == name))
    };
    let well = verdicts.statuses.get(subject).is_some_and(|(status, _)| *status == Status::Ok);
    if verdicts.verdict == RunVerdict::Error && well && recomputed("") {
        let fails = verdicts.rows.iter().any(|r| r.verdict_of(subject) == Verdict::Fail);
        verdicts.verdict = if fails { RunVerdict::Fail } else { RunVerdict::Incomplete };
    }
    if well && !recomputed(subject) {
        let reason = evidence.iter().find(|e| e.name == subject).and_then(why_nothing);
        verdicts.unchecked.push(Unchecked {
            what: format!("{subject}: every stage"),
            kind: UncheckedKind::Missing,
            reason: reason.unwrap_or_else(|| "no stage of it was recomputed".into()),
        });
        if matches!(verdicts.verdict, RunVerdict::Pass | RunVerdict::Warn) {
            verdicts.verdict = RunVerdict::Incomplete;
        }
    }
    verdicts
}

fn why_nothing(e: &Evidence) -> Option<String> {
    e.faults.first().map(|f| f.message.clone())
}
