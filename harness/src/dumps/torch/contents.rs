//! What a pickle of `torch.save` says of its tensors: their names, and where each lies in which
//! storage. Names of Python's are allowed one by one; any other is refused by its name.

use std::collections::BTreeMap;

use super::machine::{Node, Pickle, Value};

/// Values that are looked at. Shared parts count each time, so that a small file that names one list
/// a billion times comes to an end.
const VISITS: usize = 1_000_000;

/// Dicts in lists in dicts.
const DEPTH: usize = 32;

/// The type of a storage's elements, as torch calls it (`float32`).
pub type TorchDtype = &'static str;

/// A tensor as a window on a storage; nothing of it is checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// The storage's name in the archive.
    pub storage: String,
    pub dtype: TorchDtype,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}

/// Everything that a pickle holds, by name; for what can't be used, why.
pub type Contents = Vec<(String, Result<Window, String>)>;

/// How the file itself is called decides the names of a list or tensor that has none.
pub fn contents(pickle: &Pickle, stem: &str) -> Result<Contents, String> {
    let mut walk = Walk { pickle, found: Vec::new(), visits: 0 };
    let front = match &pickle.root {
        Value::Node(root) => match pickle.nodes.get(*root) {
            Some(Node::Dict(_)) => "",
            Some(Node::Call { callable, .. }) => match kind(callable) {
                Kind::Output | Kind::Dict => "",
                Kind::Cache => "past_key_values",
                _ => stem,
            },
            _ => stem,
        },
        _ => stem,
    };
    walk.value(front, &pickle.root, 0)?;
    Ok(walk.found)
}

/// What a name of Python's is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `_rebuild_tensor_v2` and its kin: a storage, an offset, a size, a stride.
    Tensor,
    /// `_rebuild_parameter`: its first argument.
    Parameter,
    Dict,
    /// A `ModelOutput`: a dict with other manners.
    Output,
    /// A key and value cache of transformers: its attributes.
    Cache,
    Size,
    /// `torch.device("cpu")`, `torch.float32`: no tensor.
    Plain,
    Refused,
}

fn kind(name: &(String, String)) -> Kind {
    match (name.0.as_str(), name.1.as_str()) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
            Kind::Tensor
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Kind::Parameter,
        ("torch", "Size") => Kind::Size,
        ("torch", "device") => Kind::Plain,
        ("torch", dtype) if dtype_named(dtype).is_some() => Kind::Plain,
        ("collections", "OrderedDict") => Kind::Dict,
        ("transformers.cache_utils", _) => Kind::Cache,
        (module, class) if module.starts_with("transformers.") && class.contains("Output") => {
            Kind::Output
        }
        _ => Kind::Refused,
    }
}

fn refuse(name: &(String, String)) -> String {
    let (module, class) = name;
    let mut text = format!(
        "it needs {module}.{class}, and a name that isn't known to be harmless is not followed; "
    );
    text += match (module.split('.').next(), class.as_str()) {
        (Some("transformer_lens"), _) => {
            "save the tensors alone: torch.save(dict(cache.cache_dict), \"cache.pt\")"
        }
        (Some("numpy"), _) => "save arrays with numpy.savez, or as tensors",
        _ => {
            "save a dict of tensors alone, where its program is installed: \
             torch.save({\"logits\": out.logits, …}, \"dump.pt\")"
        }
    };
    text
}

/// torch's name of a dtype, of those that are numbers.
fn dtype_named(name: &str) -> Option<TorchDtype> {
    const NAMES: [&str; 14] = [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
    ];
    NAMES.into_iter().find(|known| *known == name)
}

/// The dtype that a typed storage's class says.
fn dtype_of_storage(class: &str) -> Option<TorchDtype> {
    Some(match class {
        "FloatStorage" => "float32",
        "DoubleStorage" => "float64",
        "HalfStorage" => "float16",
        "BFloat16Storage" => "bfloat16",
        "LongStorage" => "int64",
        "IntStorage" => "int32",
        "ShortStorage" => "int16",
        "CharStorage" => "int8",
        "ByteStorage" => "uint8",
        "BoolStorage" => "bool",
        "ComplexFloatStorage" => "complex64",
        "ComplexDoubleStorage" => "complex128",
        _ => return None,
    })
}

struct Walk<'a> {
    pickle: &'a Pickle,
    found: Contents,
    visits: usize,
}

impl Walk<'_> {
    fn node(&self, value: &Value) -> Option<&Node> {
        match value {
            Value::Node(at) => self.pickle.nodes.get(*at),
            _ => None,
        }
    }

    fn sequence(&self, value: &Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Sequence(values) => Some(values),
            // torch.Size((2, 3))
            Node::Call { callable, arguments, .. } if kind(callable) == Kind::Size => {
                match self.node(arguments)? {
                    Node::Sequence(arguments) => match self.node(arguments.first()?)? {
                        Node::Sequence(values) => Some(values),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn value(&mut self, name: &str, value: &Value, depth: usize) -> Result<(), String> {
        self.visits += 1;
        if self.visits > VISITS || depth > DEPTH {
            let what = if depth > DEPTH { "nested more than 32 deep" } else { "too many values" };
            return Err(format!("its pickle: {what}, at {name:?}"));
        }
        // The pickle outlives the walk, which collects meanwhile.
        let pickle = self.pickle;
        let node = match value {
            Value::Node(at) => pickle.nodes.get(*at),
            Value::Global(global) if kind(global) == Kind::Refused => return Err(refuse(global)),
            _ => return Ok(()),
        };
        match node {
            Some(Node::Sequence(values)) => {
                for (i, value) in values.iter().enumerate() {
                    self.value(&join(name, &i.to_string()), value, depth + 1)?;
                }
            }
            Some(Node::Dict(items)) => self.items(name, items, depth)?,
            Some(Node::Call { callable, arguments, items, state }) => match kind(callable) {
                Kind::Tensor => {
                    let window = self.window(arguments);
                    self.found.push((name.to_string(), window));
                }
                Kind::Parameter => {
                    let data = self.sequence(arguments).and_then(|a| a.first()).cloned();
                    let data = data.ok_or_else(|| format!("its pickle: {name:?} has no data"))?;
                    self.value(name, &data, depth + 1)?;
                }
                // OrderedDict([(key, value), …]), and what was set afterwards.
                Kind::Dict => {
                    let given = self.sequence(arguments).and_then(|a| a.first()).cloned();
                    let given = given.and_then(|pairs| self.sequence(&pairs).map(<[_]>::to_vec));
                    for pair in given.unwrap_or_default() {
                        if let Some([key, value]) = self.sequence(&pair) {
                            let pair = [(key.clone(), value.clone())];
                            self.items(name, &pair, depth)?;
                        }
                    }
                    self.items(name, items, depth)?;
                }
                // Its fields are its items; arguments and state hold the same once more.
                Kind::Output => self.items(name, items, depth)?,
                Kind::Cache => self.value(name, state, depth + 1)?,
                Kind::Size | Kind::Plain => {}
                Kind::Refused => return Err(refuse(callable)),
            },
            Some(Node::Persistent(_)) | None => {}
        }
        Ok(())
    }

    fn items(&mut self, name: &str, items: &[(Value, Value)], depth: usize) -> Result<(), String> {
        self.visits = self.visits.saturating_add(items.len());
        // What is set twice has the later value.
        let mut last: BTreeMap<String, usize> = BTreeMap::new();
        let mut order = Vec::new();
        for (n, (key, _)) in items.iter().enumerate() {
            let key = match key {
                Value::Text(text) => text.to_string(),
                Value::Int(number) => number.to_string(),
                _ => continue,
            };
            if last.insert(key.clone(), n).is_none() {
                order.push(key);
            }
        }
        for key in order {
            if let Some((_, value)) = last.get(&key).and_then(|n| items.get(*n)) {
                self.value(&join(name, &key), value, depth + 1)?;
            }
        }
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)`;
    /// `_v3` has the dtype before the metadata.
    fn window(&self, arguments: &Value) -> Result<Window, String> {
        let short = "its pickle says too little of it";
        let arguments = self.sequence(arguments).ok_or(short)?;
        let [storage, Value::Int(offset), size, stride, ..] = arguments else {
            return Err(short.into());
        };
        let Some(Node::Persistent(outside)) = self.node(storage) else {
            return Err("it has no storage".into());
        };
        let Some([Value::Text(word), Value::Global(class), Value::Text(key), ..]) =
            self.sequence(outside)
        else {
            return Err("its storage is not as torch writes it".into());
        };
        if &**word != "storage" {
            return Err(format!("its data lies in a {word:?}, expected \"storage\""));
        }
        let said = arguments.iter().skip(4).find_map(|value| match value {
            Value::Global(dtype) if dtype.0 == "torch" => dtype_named(&dtype.1),
            _ => None,
        });
        let dtype = said
            .or_else(|| dtype_of_storage(&class.1))
            .ok_or_else(|| format!("elements of {}.{}", class.0, class.1))?;
        for extra in arguments.iter().skip(6) {
            if let Some(Node::Dict(bits)) = self.node(extra)
                && !bits.is_empty()
            {
                return Err(
                    "a view that is conjugated or negated when it is read; save a .clone()".into(),
                );
            }
        }
        let (shape, stride) = (self.sizes(size)?, self.sizes(stride)?);
        Ok(Window { storage: key.to_string(), dtype, offset: *offset, shape, stride })
    }

    fn sizes(&self, value: &Value) -> Result<Vec<i64>, String> {
        let values = self.sequence(value).ok_or("its size is no tuple")?;
        values
            .iter()
            .map(|value| match value {
                Value::Int(n) => Ok(*n),
                _ => Err("its size is not made of numbers".to_string()),
            })
            .collect()
    }
}

fn join(front: &str, name: &str) -> String {
    match front {
        "" => name.to_string(),
        _ => format!("{front}.{name}"),
    }
}
