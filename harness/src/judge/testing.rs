//! What the tests of the judge share.

use std::collections::BTreeMap;

use llorch_trace::Bundle;
use llorch_trace::protocol::{HelloResponse, Worth};

use crate::evidence::Evidence;
use crate::result::Role;

/// One that gave these tensors and nothing else.
pub fn evidence(name: &str, role: Role, bundle: Bundle) -> Evidence {
    let hello = HelloResponse {
        protocol: 1,
        name: name.into(),
        version: "1".into(),
        worth: Worth::Semantics,
        capabilities: vec!["capture".into(), "generate".into(), "sample".into()],
        unsupported: vec![],
        recipes: BTreeMap::new(),
        deviations: vec![],
    };
    Evidence {
        lock_sha256: None,
        computes: None,
        name: name.into(),
        role,
        hello: Some(hello),
        bundle: Some(bundle),
        generated: BTreeMap::new(),
        tokenized: BTreeMap::new(),
        served: None,
        faults: vec![],
        missing: None,
        seconds: 0.0,
    }
}
