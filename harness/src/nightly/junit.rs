//! A night as JUnit XML: the suites of each run under its name, and one for what could not run.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::outcome::{Night, Outcome};
use crate::golden::outcome::GoldenResult;
use crate::report::junit::{case, non_success};
use crate::result::{RunVerdict, Verdict};

pub fn report(night: &Night) -> anyhow::Result<String> {
    let mut report = Report::new("llorch-diff nightly");
    if let Ok(time) = std::time::Duration::try_from_secs_f64(night.seconds) {
        report.set_time(time);
    }
    for run in &night.runs {
        match run.suites.is_empty() {
            true => drop(report.add_test_suite(alone(run))),
            false => {
                for suite in &run.suites {
                    let mut suite = suite.clone();
                    suite.name = format!("{}: {}", run.name, suite.name.as_str()).into();
                    report.add_test_suite(suite);
                }
            }
        }
    }
    Ok(report.to_string()?)
}

fn skipped(message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(message.to_string());
    status
}

/// A run that could not be made.
fn alone(run: &Outcome) -> TestSuite {
    let mut suite = TestSuite::new(run.name.clone());
    let status = match run.verdict {
        RunVerdict::Pass | RunVerdict::Warn => TestCaseStatus::success(),
        RunVerdict::Incomplete => skipped(&run.says),
        RunVerdict::Fail => non_success(NonSuccessKind::Failure, "FAIL", &run.says),
        RunVerdict::Error => non_success(NonSuccessKind::Error, "ERROR", &run.says),
    };
    let mut case = TestCase::new("verdict", status);
    case.set_classname("llorch.run");
    suite.add_test_case(case);
    suite
}

/// Published answers, a case each.
pub fn answers(result: &GoldenResult) -> TestSuite {
    let mut suite = TestSuite::new("published answers");
    for answer in &result.published {
        let told = match answer.worst() {
            Some(c) => format!("{}: found {}, published {}", c.what, c.found, c.expected),
            None => answer.reason.clone(),
        };
        let status = match answer.verdict {
            Verdict::Pass | Verdict::Warn => TestCaseStatus::success(),
            Verdict::Unchecked => skipped(&format!("UNCHECKED: {}", answer.reason)),
            Verdict::Fail => non_success(NonSuccessKind::Failure, "FAIL", &told),
            Verdict::Error => non_success(NonSuccessKind::Error, "ERROR", &answer.reason),
        };
        let class = format!("llorch.published.{}", answer.of);
        suite.add_test_case(case(&answer.id, &class, status, &told));
    }
    suite
}
