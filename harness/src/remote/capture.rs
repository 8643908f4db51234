//! A run with the hooks on: what is asked of `POST /v1/checkpoints`, and how its tensors are handed on.

use std::io::Write;
use std::path::Path;

use llorch_trace::bundle::{Bundle, CaseRecord, Entry};
use llorch_trace::files::write_npy;
use llorch_trace::protocol::{DoneMessage, Response, RunRequest, TensorMessage};
use llorch_trace::{Dims, Point, Stage};
use serde_json::json;
use tempfile::TempDir;

use super::adapter::{Adapter, End, failed};
use super::archive::{Room, parts, unpack};
use super::client::sample;

/// The case that every run is to the daemon.
const CASE: &str = "run";
const CHECKPOINTS: &str = "/v1/checkpoints";

impl<W: Write> Adapter<'_, W> {
    /// With the hooks on. The tensors go from the daemon's archive into files of their own, as `.npy`: each is read
    /// without looking through the names of all.
    pub(super) fn capture(
        &mut self,
        run: &RunRequest,
        dims: &Dims,
        points: &[Point],
    ) -> Result<DoneMessage, End> {
        let steps = run.max_new_tokens.max(1);
        let scratch = folder(run, points).map_err(|e| failed("create a folder", e))?;
        // Something must be asked for.
        let some = [Point::new(Stage::Argmax)];
        let asked = if points.is_empty() { &some[..] } else { points };
        let mut bundles: Vec<Bundle> = Vec::new();
        for (n, part) in parts(dims, asked, run.ids.len(), steps).into_iter().enumerate() {
            let dir = scratch.path().join(n.to_string());
            std::fs::create_dir(&dir).map_err(|e| failed("create a folder", e))?;
            bundles.push(self.checkpoints(run, dims, part, &dir)?);
        }
        let records: Vec<&CaseRecord> =
            bundles.iter().filter_map(|bundle| bundle.manifest.cases.get(CASE)).collect();
        if let Some(other) = records.iter().find(|r| r.generated != records[0].generated) {
            let (a, b) = (&records[0].generated, &other.generated);
            let why = format!("asked for in parts, it generated {a:?} and then {b:?}");
            return Err(self.client.broke_off(CHECKPOINTS, &why).into());
        }
        // Tokens that are given are what comes of it, for all.
        let beside = run.beside.iter().map(|_| run.forced_ids.clone().unwrap_or_default());
        let done = DoneMessage {
            generated: records.first().and_then(|r| r.generated.clone()).unwrap_or_default(),
            text: records.first().and_then(|r| r.text.clone()),
            beside: beside.collect(),
            ..DoneMessage::default()
        };
        if !points.is_empty() {
            self.announce(run, &bundles)?;
        }
        Ok(done)
    }

    fn checkpoints(
        &self,
        run: &RunRequest,
        dims: &Dims,
        points: &[Point],
        dir: &Path,
    ) -> Result<Bundle, End> {
        let ids = &run.ids;
        let mut body = json!({
            "prompt": ids,
            // By their names: a daemon may refuse globs that match nothing, an adapter may not.
            "points": points,
            "max_new_tokens": run.max_new_tokens,
            "forced_ids": run.forced_ids,
            "case": CASE,
            "format": "tar",
        });
        sample(&mut body, &run.sampling);
        let stop = || self.cancelled.contains(&run.id);
        let mut answer = self.client.ask(CHECKPOINTS, Some(&body), &stop)?;
        let room = Room::of(dims, points, ids.len(), run.max_new_tokens.max(1));
        let strange = |why: String| self.client.broke_off(CHECKPOINTS, &why);
        let bundle = unpack(answer.body_mut().as_reader(), dir, room).map_err(strange)?;
        match bundle.manifest.cases.get(CASE) {
            Some(record) if record.ids == *ids => Ok(bundle),
            Some(record) => {
                let what = format!("it ran {:?}; expected {ids:?}", record.ids);
                Err(strange(what).into())
            }
            None => Err(strange(format!("its manifest has no case {CASE:?}")).into()),
        }
    }

    /// All tensors of a step before those of the next.
    fn announce(&mut self, run: &RunRequest, bundles: &[Bundle]) -> Result<(), End> {
        let mut entries: Vec<(&Entry, &Bundle)> = Vec::new();
        for bundle in bundles {
            entries.extend(bundle.manifest.tensors.iter().map(|entry| (entry, bundle)));
        }
        entries.sort_by_key(|(entry, _)| entry.step);
        for (n, (entry, bundle)) in entries.into_iter().enumerate() {
            self.go_on(&run.id)?;
            let strange = |why: String| self.client.broke_off(CHECKPOINTS, &why);
            // Only names of points become names of files.
            let point: Point = entry.point.parse().map_err(|e| strange(format!("{e}")))?;
            let tensor = bundle.get(&entry.case, entry.step, &entry.point);
            let tensor = tensor.map_err(|e| strange(e.to_string()))?;
            let file = run.out_dir.join(format!("{n:04}_{point}.npy"));
            write_npy(&file, &tensor).map_err(|e| failed("save a tensor", e))?;
            self.send(&Response::Tensor(TensorMessage {
                id: run.id.clone(),
                point: entry.point.clone(),
                step: entry.step,
                file,
                key: None,
                dtype: tensor.dtype(),
                shape: tensor.shape,
            }))
            .map_err(End::Gone)?;
        }
        Ok(())
    }
}

/// For the daemon's archives, beside the tensors, which are as large; where there are none, out of the way.
fn folder(run: &RunRequest, points: &[Point]) -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    if points.is_empty() {
        return builder.prefix("llorch-http-").tempdir();
    }
    std::fs::create_dir_all(&run.out_dir)?;
    builder.prefix(".http-").tempdir_in(&run.out_dir)
}
