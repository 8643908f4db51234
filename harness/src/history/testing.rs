//! Made-up runs for tests.

use super::record::*;
use super::store::{self, Store};
use crate::machine::Machine;
use crate::result::{Means, ModelKind, Role, RunVerdict, Status, Verdict};

/// What a made-up run says; each `record(n)` is of another day.
#[derive(Debug, Clone)]
pub struct Past {
    pub hf: &'static str,
    /// Of `hf` against the oracle at each point.
    pub errors: [f64; 3],
    pub bits: [&'static str; 3],
    pub verdict: RunVerdict,
    pub seconds: f64,
    pub threads: usize,
}

impl Default for Past {
    fn default() -> Past {
        Past {
            hf: "transformers 5.0.0",
            errors: [1e-7, 2e-6, 3e-6],
            bits: ["a", "b", "c"],
            verdict: RunVerdict::Pass,
            seconds: 10.0,
            threads: 2,
        }
    }
}

impl Past {
    pub fn record(&self, day: u32) -> Record {
        let points = ["embeddings", "h.0.ln_1", "logits"].map(|p| p.parse().unwrap()).to_vec();
        let figures = |errors: [f64; 3], bits: [&str; 3]| Figures {
            total: errors.map(Some).to_vec(),
            local: vec![Some(0.1); 3],
            verdicts: "PPP".into(),
            bits: bits.map(|b| Some(b.to_string())).to_vec(),
        };
        let implementation = |name: &str, role, version: &str| Implementation {
            name: name.into(),
            role,
            version: version.into(),
            status: Status::Ok,
            reason: String::new(),
        };
        let started = format!("2026-01-{:02}T02:00:00Z", day + 1);
        Record {
            schema: SCHEMA.into(),
            id: format!("{started}-{day:06x}"),
            started,
            name: None,
            verdict: self.verdict,
            level: None,
            command: vec!["llorch-diff".into(), "run".into()],
            version: "0.1.0".into(),
            machine: Some(Machine { system: "x".into(), cpu: "y".into(), cores: 2 }),
            means: Means { dtype: "f32".into(), threads: self.threads },
            model: Model {
                name: "nano".into(),
                kind: Some(ModelKind::Trained),
                revision: None,
                sha256: Some("00".into()),
            },
            cases: Cases { count: 1, sha256: Some("11".into()) },
            implementations: vec![
                implementation("llorch-cpud", Role::Subject, "llorch-cpud 0.1.0"),
                implementation("hf", Role::Reference, self.hf),
            ],
            checkpoints: [(0, Verdict::Pass), (1, Verdict::Pass), (8, Verdict::Pass)].into(),
            odd: Vec::new(),
            unchecked: Vec::new(),
            failures: Vec::new(),
            seconds: [("total".to_string(), self.seconds)].into(),
            points,
            figures: [
                ("llorch-cpud".to_string(), figures([1e-7, 1e-6, 1e-6], ["1", "2", "3"])),
                ("hf".to_string(), figures(self.errors, self.bits)),
            ]
            .into(),
            pairs: vec![Pair {
                a: "llorch-cpud".into(),
                b: "hf".into(),
                max_abs: vec![Some(0.0), Some(1e-6), Some(2e-6)],
                verdicts: "PPP".into(),
            }],
        }
    }
}

/// A folder with these lines in one day's file.
pub fn store_of(lines: &[String]) -> (tempfile::TempDir, Box<dyn Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = store::open(dir.path().to_str().unwrap()).unwrap();
    for line in lines {
        store.append("2026-01-01", line).unwrap();
    }
    (dir, store)
}
