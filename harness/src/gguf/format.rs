//! GGUF, version 3, as far as a model needs it: a header of settings and tensor descriptions, then the
//! tensors, each from a multiple of [`ALIGNMENT`] on. Everything is little-endian.

/// What a file without `general.alignment` is aligned to.
pub(super) const ALIGNMENT: u64 = 32;

const VERSION: u32 = 3;
/// ggml's number for the tensor type F32.
const GGML_F32: u32 = 0;

/// A setting.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// All that stands before the tensors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    pub values: Vec<(String, Value)>,
    /// Names and row-major shapes, in the order of the data.
    pub tensors: Vec<(String, Vec<usize>)>,
}

/// Zeros that follow so many bytes.
pub(super) fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize
}

fn padded_size(shape: &[usize]) -> u64 {
    (4 * shape.iter().product::<usize>() as u64).next_multiple_of(ALIGNMENT)
}

impl Header {
    /// Bytes of all tensors with what lies between them.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, shape)| padded_size(shape)).sum()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"GGUF");
        put_u32(&mut out, VERSION);
        put_u64(&mut out, self.tensors.len() as u64);
        put_u64(&mut out, self.values.len() as u64);
        for (key, value) in &self.values {
            put_text(&mut out, key);
            value.put(&mut out);
        }
        let mut offset = 0;
        for (name, shape) in &self.tensors {
            put_text(&mut out, name);
            put_u32(&mut out, shape.len() as u32);
            // ggml counts axes from the one whose elements are neighbours.
            for size in shape.iter().rev() {
                put_u64(&mut out, *size as u64);
            }
            put_u32(&mut out, GGML_F32);
            put_u64(&mut out, offset);
            offset += padded_size(shape);
        }
        out.resize(out.len() + padding(out.len() as u64), 0);
        out
    }
}

impl Value {
    /// GGUF's number of the type.
    fn kind(&self) -> u32 {
        match self {
            Value::U32(_) => 4,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Text(_) => 8,
            Value::Texts(_) | Value::I32s(_) => 9,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_u32(out, self.kind());
        match self {
            Value::U32(number) => put_u32(out, *number),
            Value::F32(number) => out.extend(number.to_le_bytes()),
            Value::Bool(flag) => out.push(u8::from(*flag)),
            Value::Text(text) => put_text(out, text),
            Value::Texts(texts) => {
                put_u32(out, 8);
                put_u64(out, texts.len() as u64);
                texts.iter().for_each(|text| put_text(out, text));
            }
            Value::I32s(numbers) => {
                put_u32(out, 5);
                put_u64(out, numbers.len() as u64);
                numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
        }
    }
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len() as u64);
    out.extend(text.as_bytes());
}
