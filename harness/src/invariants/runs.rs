//! What the subject is asked, and what it gave.

use llorch_trace::protocol::{HelloResponse, Sampling};
use llorch_trace::{Dims, Point, Tensor, all_points};

use super::finding::Finding;
use crate::evidence::Case;
use crate::live::{Ask, Captured, Live, LiveError};
use crate::result::UncheckedKind;

/// What is known of the subject before anything is compared.
#[derive(Debug)]
pub struct Subject {
    pub hello: HelloResponse,
    pub dims: Dims,
    /// All points of the model that it can capture, in data-flow order.
    pub points: Vec<Point>,
}

impl Subject {
    pub fn of(live: &Live) -> Subject {
        let (hello, dims) = (live.hello().clone(), *live.dims());
        let mut points = all_points(dims.n_layer);
        points.retain(|p| hello.unsupported_reason(&p.to_string()).is_none());
        Subject { hello, dims, points }
    }

    pub fn can(&self, capability: &str) -> bool {
        self.hello.can(capability)
    }

    /// The tensor; where there is none, the finding says why.
    pub fn tensor<'a>(
        &self,
        captured: &'a Captured,
        step: usize,
        point: Point,
        finding: &mut Finding,
    ) -> Option<&'a Tensor> {
        if let Some(reason) = self.hello.unsupported_reason(&point.to_string()) {
            finding.uncheck(UncheckedKind::Unsupported, format!("{point}: {reason}"));
            return None;
        }
        match captured.get(step, point) {
            Ok(tensor) => Some(tensor),
            Err(what) => {
                finding.error(what);
                None
            }
        }
    }

    /// The sampling that a case asks for, as far as the subject can.
    pub fn sampling(&self, case: &Case) -> Sampling {
        match self.can("sample") {
            true => case.sampling,
            false => Sampling::default(),
        }
    }

    /// Left to itself: it is fed the tokens that it chooses.
    pub fn ask_free(&self, case: &Case) -> Ask {
        Ask {
            ids: case.ids.clone(),
            points: vec!["*".into()],
            max_new_tokens: if self.can("generate") { case.max_new_tokens } else { 0 },
            sampling: self.sampling(case),
            ..Ask::default()
        }
    }

    /// The same, fed what an earlier run was fed, so that one other token doesn't spoil the rest.
    pub fn ask_fed(&self, case: &Case, generated: &[u32]) -> Ask {
        let forced = (!generated.is_empty()).then(|| generated.to_vec());
        Ask { forced_ids: forced, ..self.ask_free(case) }
    }

    /// A prefill of these ids, and nothing more.
    pub fn ask_prefill(&self, case: &Case, ids: Vec<u32>) -> Ask {
        Ask { ids, points: vec!["*".into()], sampling: self.sampling(case), ..Ask::default() }
    }

    /// These ids one at a time: the first is the prompt, the others are forced.
    pub fn ask_one_by_one(&self, case: &Case, ids: &[u32]) -> Ask {
        // As many are forced as there are steps; the last is never fed.
        let forced: Vec<u32> = ids[1..].iter().copied().chain([ids[0]]).collect();
        Ask {
            ids: ids[..1].to_vec(),
            max_new_tokens: forced.len(),
            forced_ids: Some(forced),
            ..self.ask_prefill(case, Vec::new())
        }
    }
}

/// A run that was made: the case as it was run, and what came.
#[derive(Debug)]
pub struct Run<'a> {
    pub case: &'a Case,
    pub captured: &'a Captured,
}

impl Run<'_> {
    /// All tokens that were fed, the prompt's and those of the decode steps.
    pub fn fed(&self) -> Vec<u32> {
        let decoded = self.case.steps() - 1;
        let later = self.captured.generated.iter().take(decoded);
        self.case.ids.iter().chain(later).copied().collect()
    }
}

/// Runs, and in case of trouble tells the findings that need it.
pub fn ask(live: &mut Live, ask: Ask, findings: &mut [&mut Finding]) -> Option<Captured> {
    match live.run(ask) {
        Ok(captured) => Some(captured),
        Err(error) => {
            tell(findings, &error);
            None
        }
    }
}

pub fn tell(findings: &mut [&mut Finding], error: &LiveError) {
    findings.iter_mut().for_each(|finding| finding.trouble(error));
}
