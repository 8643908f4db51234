//! Stages by themselves: runs in which the input of each captured stage was put in place.

use llorch_trace::Point;
use llorch_trace::protocol::HelloResponse;

use super::case_run::Asked;
use super::{CollectError, Collection};
use crate::evidence::{Case, Fault, FaultKind};
use crate::isolate::Isolation;
use crate::supervise::{Failure, FailureKind};

/// What an implementation without the capability says of all stages.
pub const CANNOT_INJECT: &str = "can't inject, so no stage of it can be isolated";

impl Collection<'_> {
    /// What it can't isolate by its nature, as faults of the kind that lowers nothing.
    pub(super) fn declare_isolation(&mut self, hello: &HelloResponse, isolation: &Isolation) {
        let unsupported = |point, message| Fault {
            case: None,
            step: None,
            point,
            kind: FaultKind::Unsupported,
            message,
        };
        if !hello.can("inject") {
            self.evidence.faults.push(unsupported(None, CANNOT_INJECT.into()));
            return;
        }
        for stage in &self.settings.plan.points {
            if let Some(reason) = isolation.obstacle(hello, *stage) {
                self.evidence.faults.push(unsupported(Some(*stage), reason));
            }
        }
    }

    /// Every stage that it can isolate, in as few runs as there can be.
    pub(super) fn isolate(
        &mut self,
        case: &Case,
        isolation: &Isolation,
    ) -> Result<(), CollectError> {
        if !self.can("capture") || !self.can("inject") {
            return Ok(());
        }
        let Some(hello) = self.evidence.hello.clone() else { return Ok(()) };
        for (n, stages) in isolation.runs.iter().enumerate() {
            let can = |p: &&Point| {
                hello.unsupported_reason(&p.to_string()).is_none()
                    && isolation.obstacle(&hello, **p).is_none()
            };
            let stages: Vec<Point> = stages.iter().filter(can).copied().collect();
            let Some(failure) = self.isolated_run(case, isolation, &n.to_string(), &stages)? else {
                continue;
            };
            if failure.kind != FailureKind::Unsupported || stages.len() == 1 {
                self.stages_fault(case, &stages, &failure);
                continue;
            }
            // It refuses one of the injections: which one, shows when each stage is asked for alone.
            for (m, stage) in stages.iter().enumerate() {
                let id = format!("{n}-{m}");
                if let Some(failure) = self.isolated_run(case, isolation, &id, &[*stage])? {
                    self.stages_fault(case, &[*stage], &failure);
                }
            }
        }
        Ok(())
    }

    fn isolated_run(
        &mut self,
        case: &Case,
        isolation: &Isolation,
        id: &str,
        stages: &[Point],
    ) -> Result<Option<Failure>, CollectError> {
        if stages.is_empty() {
            return Ok(None);
        }
        let steps = if self.can("generate") { case.steps() } else { 1 };
        let asked = Asked {
            id: format!("{}-isolated-{id}", case.name),
            points: stages.iter().map(Point::to_string).collect(),
            inject: isolation.injections(case, stages, steps),
        };
        Ok(self.captured_run(case, asked)?.err())
    }

    /// What went wrong, for the stages of that run alone: those of other runs may have come.
    fn stages_fault(&mut self, case: &Case, stages: &[Point], failure: &Failure) {
        let kind = match failure.kind {
            FailureKind::Unsupported => FaultKind::Unsupported,
            _ => FaultKind::Process,
        };
        let message = self.told(failure);
        self.say(&format!("{}: {}: {message}", case.name, failure.kind));
        for stage in stages {
            self.evidence.faults.push(Fault {
                case: Some(case.name.clone()),
                step: None,
                point: Some(*stage),
                kind,
                message: message.clone(),
            });
        }
    }
}
