//! `run --partition K/N`: one of N parts of a run, so that several machines can share it.
//! [`crate::merge`] joins the parts.
//!
//! The split hangs on nothing but the order in which cases and references were named: part K takes the
//! Kth of every N. All parts carry what the whole was, so that no two different runs are joined.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::run::RunError;
use crate::run::args::Request;

/// What is given out to the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Each part runs some of the cases through everybody
    Case,
    /// Each part runs all cases through the subject and some of the references
    Reference,
}

/// Part `part` of `of`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub part: usize,
    pub of: usize,
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Partition, String> {
        let numbers =
            text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((part, of)) if 1 <= part && part <= of => Ok(Partition { part, of }),
            _ => Err("expected K/N with K from 1 to N, for instance 2/4".into()),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {}", self.part, self.of)
    }
}

impl Partition {
    /// What this part has of a list.
    pub fn of_list<T>(self, all: Vec<T>) -> Vec<T> {
        let mine = |(i, one): (usize, T)| (i % self.of + 1 == self.part).then_some(one);
        all.into_iter().enumerate().filter_map(mine).collect()
    }
}

/// What a part says of itself and of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    #[serde(flatten)]
    pub partition: Partition,
    pub by: By,
    /// Names of all cases and of all references of the whole run.
    pub cases: Vec<String>,
    pub references: Vec<String>,
    /// SHA-256 of what was asked for: equal in all parts of one run.
    pub plan: String,
}

impl PartRecord {
    /// Names of what another part has.
    pub fn names(&self, part: usize) -> Vec<String> {
        let partition = Partition { part, ..self.partition };
        partition.of_list(match self.by {
            By::Case => self.cases.clone(),
            By::Reference => self.references.clone(),
        })
    }
}

/// Leaves in a request what this part is to do.
pub fn apply(request: &mut Request, partition: Partition, by: By) -> Result<PartRecord, RunError> {
    let record = PartRecord {
        partition,
        by,
        cases: request.suite.cases.iter().map(|c| c.name.clone()).collect(),
        references: request.references.iter().map(|m| m.name.clone()).collect(),
        plan: plan(request),
    };
    let (what, have) = match by {
        By::Case => ("cases", record.cases.len()),
        By::Reference => ("references", record.references.len()),
    };
    if partition.of > have {
        return Err(RunError::Usage(format!(
            "failed to split the run: found {have} {what} for {} parts; expected at most one part for each",
            partition.of
        )));
    }
    match by {
        By::Case => {
            request.suite.cases = partition.of_list(std::mem::take(&mut request.suite.cases))
        }
        By::Reference => {
            request.references = partition.of_list(std::mem::take(&mut request.references))
        }
    }
    Ok(record)
}

/// Of all that decides what a run's rows are, except the model, which results name by its hash, and
/// the implementations' versions, which only a run finds out.
fn plan(request: &Request) -> String {
    let cases = request
        .suite
        .cases
        .iter()
        .map(|c| json!([c.name, c.prompt, c.ids, c.max_new_tokens, c.sampling]));
    let references = request.references.iter().map(|m| format!("{m:?}"));
    let plan = json!({
        "canonical": request.suite.is_canonical(),
        "cases": cases.collect::<Vec<_>>(),
        "references": references.collect::<Vec<_>>(),
        "subject": format!("{:?}", request.subject),
        "checkpoints": request.filter.checkpoints,
        "layers": request.filter.layers,
        "dtype": request.dtype.name(),
        "values": request.values,
    });
    llorch_trace::hash::sha256_bytes(plan.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_have_every_nth() {
        let part: Partition = "2/3".parse().unwrap();
        assert_eq!(part.of_list(vec!["a", "b", "c", "d", "e"]), ["b", "e"]);
        for wrong in ["0/3", "4/3", "1", "a/b", "1/", "-1/2", ""] {
            assert!(wrong.parse::<Partition>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_have_everything_once() {
        for of in 1..6 {
            let mut all: Vec<u32> = Vec::new();
            for part in 1..=of {
                all.extend(Partition { part, of }.of_list((0..7).collect()));
            }
            all.sort_unstable();
            assert_eq!(all, (0..7).collect::<Vec<u32>>());
        }
    }
}
