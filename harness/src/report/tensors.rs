//! Tensors of a saved run, for pictures: each is held to the hash that its bundle's manifest gives.

use std::collections::BTreeMap;
use std::path::Path;

use llorch_trace::hash::sha256_bytes;
use llorch_trace::{Bundle, Tensor};

use crate::lineup::file_name;

/// The bundles of a run's folder, opened when they are first asked for.
#[derive(Debug)]
pub struct Tensors<'a> {
    dir: Option<&'a Path>,
    bundles: BTreeMap<String, Result<Bundle, String>>,
}

impl<'a> Tensors<'a> {
    pub fn new(dir: Option<&'a Path>) -> Tensors<'a> {
        Tensors { dir, bundles: BTreeMap::new() }
    }

    /// The tensor, or why there is none.
    pub fn get(
        &mut self,
        who: &str,
        case: &str,
        step: usize,
        point: &str,
    ) -> Result<Tensor, String> {
        let Some(dir) = self.dir else { return Err("only the result is at hand".into()) };
        let bundle = self
            .bundles
            .entry(who.to_string())
            .or_insert_with(|| Bundle::open(&dir.join(file_name(who))).map_err(|e| e.to_string()));
        let bundle = bundle.as_ref().map_err(Clone::clone)?;
        let is =
            |e: &&llorch_trace::bundle::Entry| e.case == case && e.step == step && e.point == point;
        let entry = bundle.manifest.tensors.iter().find(is);
        let entry = entry.ok_or_else(|| format!("{who} gave no {point} there"))?;
        let tensor = bundle.get(case, step, point).map_err(|e| e.to_string())?;
        // A damaged disk must not draw an engine's errors.
        match sha256_bytes(&tensor.data.to_le_bytes()) == entry.sha256 {
            true => Ok(tensor),
            false => Err(format!("{who}'s {point} is damaged: not the tensor that was saved")),
        }
    }
}
