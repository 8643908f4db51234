//! A safetensors file written tensor by tensor, so that 6 GB of weights need no 6 GB of memory.

use crate::error::ModelError;
use crate::progress::Bar;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Name and shape of every tensor, in file order. All are F32.
pub(super) type Layout = Vec<(String, Vec<usize>)>;

/// The file's header: its length, then JSON padded to a multiple of 8, so that data is aligned.
/// Written out by hand: its bytes are part of what is the same on every platform.
pub(super) fn header(layout: &Layout, metadata: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<String> =
        metadata.iter().map(|(key, value)| format!("\"{key}\":\"{value}\"")).collect();
    let mut json = format!("{{\"__metadata__\":{{{}}}", pairs.join(","));
    let mut offset = 0;
    for (name, shape) in layout {
        let end = offset + 4 * shape.iter().product::<usize>();
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let shape = shape.join(",");
        json.push_str(&format!(",\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[{offset},{end}]}}"));
        offset = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes
}

/// How many bytes the tensors take, without the header.
pub(super) fn data_bytes(layout: &Layout) -> u64 {
    layout.iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum()
}

/// The file while it is written. Tensors come in the layout's order, each in one piece or several.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    file: BufWriter<File>,
    layout: Layout,
    current: usize,
    written: usize,
    progress: Bar,
}

impl TensorFile {
    pub fn create(
        path: &Path,
        layout: Layout,
        header: &[u8],
        progress: Bar,
    ) -> Result<TensorFile, ModelError> {
        let file = File::create(path).map_err(ModelError::cache(path))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(header).map_err(ModelError::cache(path))?;
        Ok(TensorFile { path: path.to_owned(), file, layout, current: 0, written: 0, progress })
    }

    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        let len: usize = self.layout[self.current].1.iter().product();
        assert_eq!(name, self.layout[self.current].0, "tensors are written in the layout's order");
        assert!(self.written + values.len() <= len, "{name} has {len} elements, not more");
        let mut bytes = Vec::with_capacity(1 << 20);
        for piece in values.chunks(1 << 18) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            self.file.write_all(&bytes).map_err(ModelError::cache(&self.path))?;
            self.progress.add(bytes.len() as u64);
        }
        self.written += values.len();
        if self.written == len {
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), ModelError> {
        assert_eq!(self.current, self.layout.len(), "every tensor of the layout is written");
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(ModelError::cache(&self.path))
    }
}
