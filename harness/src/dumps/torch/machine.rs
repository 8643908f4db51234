//! A pickle read as data. Of the pickle machine's opcodes those that tensors in dicts, lists and
//! tuples need; nothing is imported, nothing is called: a name of Python's stands for itself, and
//! what `torch.save` would call with it is kept as a [`Node::Call`].
//!
//! Opcodes: <https://github.com/python/cpython/blob/3.11/Lib/pickletools.py>

use std::collections::HashMap;
use std::rc::Rc;

/// What lies on the machine's stack. Whatever holds other values lies in [`Pickle::nodes`], so that
/// values are small, may share and contain themselves, and are dropped without recursion.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// None, a float, bytes: nothing that a tensor or its name is made of.
    Other,
    Bool(bool),
    Int(i64),
    Text(Rc<str>),
    /// A name of Python's: its module and itself.
    Global(Rc<(String, String)>),
    Node(usize),
}

#[derive(Debug, Clone)]
pub enum Node {
    Sequence(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// What a name was to be called with, and what came to the result: its items, if it is a dict,
    /// and its attributes.
    Call {
        callable: Rc<(String, String)>,
        arguments: Value,
        items: Vec<(Value, Value)>,
        state: Value,
    },
    /// A reference to something outside of the pickle: a tensor's storage.
    Persistent(Value),
}

#[derive(Debug)]
pub struct Pickle {
    pub root: Value,
    pub nodes: Vec<Node>,
}

/// Reads a whole pickle. The error is a sentence.
pub fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        nodes: Vec::new(),
    };
    loop {
        let begin = machine.at;
        let opcode = machine.take(1)?[0];
        match machine.step(opcode) {
            Ok(false) => {}
            Ok(true) => break,
            Err(what) => return Err(format!("its pickle, at byte {begin}: {what}")),
        }
    }
    let root = machine.pop()?;
    Ok(Pickle { root, nodes: machine.nodes })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    nodes: Vec<Node>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends at byte {}", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, n: usize) -> Result<u64, String> {
        let mut wide = [0; 8];
        wide[..n].copy_from_slice(self.take(n)?);
        Ok(u64::from_le_bytes(wide))
    }

    fn counted(&mut self, width: usize) -> Result<&'a [u8], String> {
        let n = self.number(width)?;
        self.take(usize::try_from(n).map_err(|_| format!("a length of {n}"))?)
    }

    fn text(&mut self, width: usize) -> Result<Value, String> {
        let text = std::str::from_utf8(self.counted(width)?).map_err(|e| e.to_string())?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|b| *b == b'\n').ok_or("a name without an end")?;
        let line = std::str::from_utf8(&rest[..n]).map_err(|e| e.to_string())?;
        self.at += n + 1;
        Ok(line.to_string())
    }

    /// The top of the stack, but nothing from below the last mark.
    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| "an empty stack".to_string()),
            false => Err("it takes a value that isn't there".into()),
        }
    }

    fn popped(&mut self, n: usize) -> Result<Vec<Value>, String> {
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(self.pop()?);
        }
        values.reverse();
        Ok(values)
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("it goes back to a mark that isn't there")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_node(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(Value::Node(self.nodes.len() - 1));
    }

    /// The node on the top of the stack, which stays there.
    fn top(&mut self) -> Result<&mut Node, String> {
        let Some(Value::Node(top)) = self.stack.last() else {
            return Err("it fills something that holds nothing".into());
        };
        self.nodes.get_mut(*top).ok_or_else(|| "a value that isn't there".into())
    }

    fn append(&mut self, values: Vec<Value>) -> Result<(), String> {
        match self.top()? {
            Node::Sequence(held) => held.extend(values),
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, values: Vec<Value>) -> Result<(), String> {
        if values.len() % 2 == 1 {
            return Err("a key without a value".into());
        }
        let mut values = values.into_iter();
        let mut pairs = Vec::new();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            pairs.push((key, value));
        }
        match self.top()? {
            Node::Dict(held) | Node::Call { items: held, .. } => held.extend(pairs),
            _ => return Err("it sets an item of what is no dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        let top = self.stack.last().ok_or("it remembers a value that isn't there")?;
        self.memo.insert(slot, top.clone());
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let value = self.memo.get(&slot).ok_or("it recalls a value that was never kept")?;
        self.stack.push(value.clone());
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let Value::Global(callable) = self.pop()? else {
            return Err("it calls what is no name".into());
        };
        let (items, state) = (Vec::new(), Value::Other);
        self.push_node(Node::Call { callable, arguments, items, state });
        Ok(())
    }

    /// Does one opcode; true at the end.
    fn step(&mut self, opcode: u8) -> Result<bool, String> {
        match opcode {
            b'.' => return Ok(true),
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'N' => self.stack.push(Value::Other),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(n.into()));
            }
            b'K' => {
                let n = self.number(1)?;
                self.stack.push(Value::Int(n as i64));
            }
            b'M' => {
                let n = self.number(2)?;
                self.stack.push(Value::Int(n as i64));
            }
            0x8a => {
                let digits = self.counted(1)?;
                self.stack.push(long(digits));
            }
            // BINFLOAT, BINBYTES, SHORT_BINBYTES, BINBYTES8
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Other);
            }
            b'B' | b'C' | 0x8e => {
                self.counted(match opcode {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                })?;
                self.stack.push(Value::Other);
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; BINSTRING, SHORT_BINSTRING of Python 2
            b'X' | b'T' => self.text(4).map(|text| self.stack.push(text))?,
            0x8c | b'U' => self.text(1).map(|text| self.stack.push(text))?,
            0x8d => self.text(8).map(|text| self.stack.push(text))?,
            b'}' => self.push_node(Node::Dict(Vec::new())),
            b']' | b')' => self.push_node(Node::Sequence(Vec::new())),
            // TUPLE, TUPLE1 to TUPLE3; what follows is put in place by value, as it can't change.
            b't' => self.since_mark().map(|values| self.push_node(Node::Sequence(values)))?,
            0x85..=0x87 => {
                let values = self.popped(usize::from(opcode) - 0x84)?;
                self.push_node(Node::Sequence(values));
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' => self.since_mark().and_then(|values| self.append(values))?,
            b's' => self.popped(2).and_then(|values| self.set(values))?,
            b'u' => self.since_mark().and_then(|values| self.set(values))?,
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let name = (self.line()?, self.line()?);
                self.stack.push(Value::Global(Rc::new(name)));
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    let name = (module.to_string(), name.to_string());
                    self.stack.push(Value::Global(Rc::new(name)));
                }
                _ => return Err("a name that is no text".into()),
            },
            // REDUCE, NEWOBJ
            b'R' | 0x81 => self.call()?,
            b'b' => {
                let given = self.pop()?;
                match self.top()? {
                    Node::Call { state, .. } => *state = given,
                    _ => return Err("it gives a state to what has none".into()),
                }
            }
            b'Q' => {
                let outside = self.pop()?;
                self.push_node(Node::Persistent(outside));
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => self.number(1).and_then(|slot| self.remember(slot as u32))?,
            b'r' => self.number(4).and_then(|slot| self.remember(slot as u32))?,
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => self.number(1).and_then(|slot| self.recall(slot as u32))?,
            b'j' => self.number(4).and_then(|slot| self.recall(slot as u32))?,
            other => {
                return Err(format!("opcode 0x{other:02x}, which no dict of tensors needs"));
            }
        }
        Ok(false)
    }
}

/// A whole number in two's complement; beyond 64 bits it is nothing that we could use.
fn long(digits: &[u8]) -> Value {
    if digits.len() > 8 {
        return Value::Other;
    }
    let negative = digits.last().is_some_and(|top| top & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..digits.len()].copy_from_slice(digits);
    Value::Int(i64::from_le_bytes(wide))
}
