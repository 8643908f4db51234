//! The whole answer to "where does it go wrong".

use llorch_trace::Point;

use super::causes::{Cause, causes};
use super::heal::{Surgery, heal};
use super::pairs;
use super::scan::{Judged, findings};
use super::{explain, intervals};
use crate::result::{
    Implementation, NO_REFERENCE, Odd, Role, Row, RowKind, RunResult, Status, UncheckedKind,
    Verdict,
};
use crate::saved::Collected;
use crate::text::count;

#[derive(Debug)]
pub struct Answer<'a> {
    pub result: &'a RunResult,
    pub collected: &'a Collected,
    /// Of the subject.
    pub name: String,
    /// In order.
    pub causes: Vec<Cause>,
    /// Where there is no oracle: the points at which the subject differs.
    pub differs: Option<pairs::Differs>,
    /// Points that the subject showed and nobody checked.
    pub unchecked: Vec<Point>,
    /// The subject's own failure.
    pub failure: Option<String>,
    pub notes: Vec<String>,
}

impl<'a> Answer<'a> {
    pub fn of(
        result: &'a RunResult,
        collected: &'a Collected,
        surgery: Option<&Surgery<'_>>,
    ) -> Answer<'a> {
        let subject = collected.evidence.iter().find(|e| e.role == Role::Subject);
        let name = result.subject_name().to_string();
        let failure = result.subject().filter(|s| s.status != Status::Ok).map(|s| s.reason.clone());
        let mut answer = Answer {
            result,
            collected,
            name,
            causes: Vec::new(),
            differs: None,
            unchecked: Vec::new(),
            failure,
            notes: Vec::new(),
        };
        let Some(subject) = subject else { return answer };
        if collected.truth.oracle.is_none() {
            answer.by_pairs();
            return answer;
        }
        let run = Judged {
            plan: &collected.plan,
            truth: &collected.truth,
            subject,
            rows: &result.rows,
            alone: collected.evidence.len() == 1,
        };
        answer.causes = causes(&run, findings(&run));
        let injects = subject.hello.as_ref().is_some_and(|h| h.can("inject"));
        match surgery.filter(|_| injects && !answer.causes.is_empty()) {
            Some(surgery) => {
                if let Err(reason) = heal(&run, &mut answer.causes, surgery) {
                    answer.notes.push(format!("healing could not be tried: {reason}"));
                    explain::explain(&run, &mut answer.causes);
                }
            }
            None => explain::explain(&run, &mut answer.causes),
        }
        answer.note_warnings();
        answer.note_accumulation();
        answer
    }

    /// Without an oracle there are only differences to go by.
    fn by_pairs(&mut self) {
        match pairs::search(self.result) {
            pairs::Found::Differs(differs) => self.differs = Some(*differs),
            pairs::Found::Nothing { unchecked } => self.unchecked = unchecked,
        }
    }

    /// 0 nothing, 1 a cause, 4 an interval, not all of it checked or a reference broken, 5 the subject
    /// failed.
    pub fn exit_code(&self) -> u8 {
        let precise = self.causes.iter().any(|c| c.first().after.is_none())
            || self.differs.as_ref().is_some_and(|d| !d.is_interval());
        let vague = !self.causes.is_empty() || self.differs.is_some();
        match () {
            _ if precise => 1,
            _ if vague => 4,
            _ if self.failure.is_some() || !self.anything_compared() => 5,
            _ if !self.unchecked.is_empty() || !self.open().is_empty() => 4,
            _ => 0,
        }
    }

    /// References that were asked for, and are missing or broke.
    fn broken_references(&self) -> impl Iterator<Item = &'a Implementation> {
        self.result.references().filter(|r| r.status != Status::Ok)
    }

    /// What was asked for and is not there: references that broke, parts that were not merged.
    pub fn open(&self) -> Vec<String> {
        let broken = self.broken_references().map(|r| format!("{} {}", r.name, r.reason));
        let names: Vec<&str> = self.result.references().map(|r| r.name.as_str()).collect();
        // Points that no reference checked are the oracle's to check; a reference is told above.
        let missing = self.result.unchecked.iter().filter(|u| {
            u.kind == UncheckedKind::Missing
                && u.reason != NO_REFERENCE
                && !names.contains(&u.what.as_str())
        });
        broken.chain(missing.map(|u| format!("{}: {}", u.what, u.reason))).collect()
    }

    /// References that are wrong by the oracle.
    pub fn odd_references(&self) -> impl Iterator<Item = &'a Odd> {
        self.result.odd.iter().filter(|odd| odd.name != self.name)
    }

    pub fn anything_compared(&self) -> bool {
        let told = |r: &&Row| matches!(r.verdict, Verdict::Pass | Verdict::Warn | Verdict::Fail);
        self.result.rows.iter().filter(|r| r.a == self.name).any(|r| told(&r))
    }

    /// More than rounding is expected to do, and no more than it can: no cause, but worth a word.
    fn note_warnings(&mut self) {
        let warns = |r: &&Row| {
            r.a == self.name && r.local.as_ref().is_some_and(|l| l.verdict == Verdict::Warn)
        };
        let warned: Vec<&Row> = self.result.rows.iter().filter(warns).collect();
        let largest = |r: &&&Row| r.local.as_ref().and_then(|l| l.of_band).unwrap_or(f64::MAX);
        let worst = warned.iter().max_by(|a, b| largest(a).total_cmp(&largest(b)));
        if let Some(row) = worst {
            let (n, times) = (warned.len(), largest(&row));
            self.notes.push(format!(
                "WARN at {}, up to {times:.1}× what rounding is expected to do ({} at step {} of {}): no cause",
                count(n, "place"),
                row.point, row.step, row.case
            ));
        }
    }

    /// Beyond the class as a whole, and right stage by stage.
    fn note_accumulation(&mut self) {
        let total =
            |r: &&Row| r.a == self.name && r.kind == RowKind::Oracle && r.verdict == Verdict::Fail;
        if !self.causes.is_empty() {
            return;
        }
        if let Some(row) = self.result.rows.iter().find(total) {
            self.notes.push(format!(
                "{} at step {} of {} is beyond its class, although every stage before it is within rounding: the \
                 errors add up",
                row.point, row.step, row.case
            ));
        }
    }

    /// Where only an interval is known, of the first cause: what came last and was right, and where it
    /// shows.
    pub fn between(&self) -> Option<(Option<Point>, Point)> {
        if let Some(differs) = &self.differs {
            return differs.between();
        }
        intervals::between(self.causes.first()?.first())
    }
}
