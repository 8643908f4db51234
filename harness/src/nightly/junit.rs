//! A night as JUnit XML: the suites of each run under its name, and one for what could not run.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::outcome::{Night, Outcome};
use crate::golden::outcome::GoldenResult;
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

fn status(kind: NonSuccessKind, word: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(word).set_message(message.to_string());
    status
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
        RunVerdict::Fail => status(NonSuccessKind::Failure, "FAIL", &run.says),
        RunVerdict::Error => status(NonSuccessKind::Error, "ERROR", &run.says),
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
            Verdict::Fail => status(NonSuccessKind::Failure, "FAIL", &told),
            Verdict::Error => status(NonSuccessKind::Error, "ERROR", &answer.reason),
        };
        let mut case = TestCase::new(answer.id.clone(), status);
        case.set_classname(format!("llorch.published.{}", answer.of));
        case.set_system_out(told);
        suite.add_test_case(case);
    }
    suite
}
