//! The tap of a run: captured points go to files, one message each; injected ones are replaced.

use std::io::Write;
use std::path::PathBuf;

use candle_core::Tensor;
use llorch_trace::protocol::{Response, TensorMessage};
use llorch_trace::{Point, files};

use crate::failure::{Failure, Result};
use crate::request::Plan;
use crate::serve::send;
use crate::tap::Tap;
use crate::tensors;

pub struct Recorder<'a> {
    pub id: String,
    pub plan: Plan,
    pub step: usize,
    out_dir: PathBuf,
    /// Makes file names differ between cases that share a folder.
    serial: usize,
    output: &'a mut (dyn Write + Send),
}

impl<'a> Recorder<'a> {
    pub fn new(
        id: &str,
        plan: Plan,
        out_dir: &std::path::Path,
        serial: usize,
        output: &'a mut (dyn Write + Send),
    ) -> Result<Recorder<'a>> {
        if !plan.captured.is_empty() && out_dir.as_os_str().is_empty() {
            return Err(Failure::input("out_dir is missing: there is nowhere to put the tensors"));
        }
        let made = match plan.captured.is_empty() {
            true => Ok(out_dir.to_path_buf()),
            false => std::path::absolute(out_dir)
                .and_then(|dir| std::fs::create_dir_all(&dir).map(|()| dir)),
        };
        let out_dir = made.map_err(|e| {
            Failure::resource(format!("failed to make folder {}: {e}", out_dir.display()))
        })?;
        Ok(Recorder { id: id.to_string(), plan, step: 0, out_dir, serial, output })
    }

    fn capture(&mut self, point: Point, value: &Tensor) -> Result<()> {
        let tensor = tensors::to_file(value)?;
        let file = self.out_dir.join(format!("candle-{}-{}-{point}.npy", self.serial, self.step));
        files::write_npy(&file, &tensor).map_err(|e| Failure::resource(e.to_string()))?;
        let message = TensorMessage {
            id: self.id.clone(),
            point: point.to_string(),
            step: self.step,
            file,
            key: None,
            dtype: tensor.dtype(),
            shape: tensor.shape,
        };
        send(self.output, &Response::Tensor(message))
            .map_err(|e| Failure::resource(format!("failed to write to the harness: {e}")))
    }
}

impl Tap for Recorder<'_> {
    fn pass(&mut self, point: Point, computed: Tensor) -> Result<Tensor> {
        let value = self.plan.injected.get(&(self.step, point)).cloned().unwrap_or(computed);
        if self.plan.captured.contains(&point) {
            self.capture(point, &value)?;
        }
        Ok(value)
    }

    fn wants(&self, point: Point) -> bool {
        self.plan.captured.contains(&point) || self.replaces(point)
    }

    fn replaces(&self, point: Point) -> bool {
        self.plan.injected.contains_key(&(self.step, point))
    }
}
