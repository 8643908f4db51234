//! Suites: which prompts are run. Data, not code: a new case is a few lines of TOML.
//!
//! ```toml
//! schema = "llorch.suite/1"
//! [[case]]
//! name = "hello"            # letters, digits, - and _
//! prompt = "Hello."         # and/or ids = [15496, 13]
//! max_new_tokens = 10       # 0 is the prefill alone
//! sampling = { temperature = 0.8, top_k = 40, top_p = 0.95, seed = 1 }
//! ```

use std::collections::HashSet;
use std::path::Path;

use llorch_trace::protocol::Sampling;
use toml::{Table, Value};

pub const SCHEMA: &str = "llorch.suite/1";
const CANONICAL: &str = "golden/suites/canonical.toml";

/// New tokens of a prompt given on the command line.
pub const AD_HOC_NEW_TOKENS: usize = 10;
/// More than any GPT-2 has positions; a typing error is caught before memory is.
const MOST_NEW_TOKENS: i64 = 1 << 20;

/// Prompts to run, from a file or the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// `canonical`, the path of a file, or `--prompt`.
    pub name: String,
    pub cases: Vec<SuiteCase>,
}

/// One prompt. At least one of `prompt` and `ids` is there.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteCase {
    pub name: String,
    pub prompt: Option<String>,
    pub ids: Option<Vec<u32>>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
}

#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("failed to read suite {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("failed to read suite {path}: {message}")]
    Syntax { path: String, message: String },
    /// `key` is a path like `case[2].max_new_tokens`, counted from 1.
    #[error("failed to read suite {path}: {key} is {found}; expected {expected}")]
    Key { path: String, key: String, found: String, expected: String },
}

impl Suite {
    pub fn canonical() -> Result<Suite, SuiteError> {
        let bytes = crate::assets::get(CANONICAL).unwrap_or_default();
        let mut suite = Suite::parse(CANONICAL, &String::from_utf8_lossy(&bytes))?;
        suite.name = "canonical".into();
        Ok(suite)
    }

    pub fn is_canonical(&self) -> bool {
        self.name == "canonical"
    }

    pub fn read(path: &Path) -> Result<Suite, SuiteError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| SuiteError::Io { path: name.clone(), source })?;
        Suite::parse(&name, &text)
    }

    /// Prompts of the command line, `prompt-1`, `prompt-2`, …
    pub fn of_prompts(prompts: &[String]) -> Suite {
        let case = |(i, prompt): (usize, &String)| SuiteCase {
            name: format!("prompt-{}", i + 1),
            prompt: Some(prompt.clone()),
            ids: None,
            max_new_tokens: AD_HOC_NEW_TOKENS,
            sampling: Sampling::default(),
        };
        Suite { name: "--prompt".into(), cases: prompts.iter().enumerate().map(case).collect() }
    }

    fn parse(path: &str, text: &str) -> Result<Suite, SuiteError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| SuiteError::Syntax {
            path: path.into(),
            message: format!("not TOML: {}", error.to_string().trim_end()),
        })?;
        let top = Keys { path, prefix: "", table: &table };
        top.only(&["schema", "case"])?;
        if table.get("schema").and_then(Value::as_str) != Some(SCHEMA) {
            return Err(top.wrong("schema", &format!("{SCHEMA:?}")));
        }
        let listed = match table.get("case") {
            Some(Value::Array(cases)) if !cases.is_empty() => cases,
            _ => return Err(top.wrong("case", "one or more [[case]] sections")),
        };
        let mut cases = Vec::new();
        let mut names = HashSet::new();
        for (i, value) in listed.iter().enumerate() {
            let prefix = format!("case[{}]", i + 1);
            let Value::Table(table) = value else {
                return Err(top.wrong("case", "one or more [[case]] sections"));
            };
            let keys = Keys { path, prefix: &prefix, table };
            let case = keys.case()?;
            if !names.insert(case.name.clone()) {
                return Err(keys.wrong("name", "a name that no other case has"));
            }
            cases.push(case);
        }
        Ok(Suite { name: path.into(), cases })
    }
}

/// A table of the file and where it stands, for messages.
struct Keys<'a> {
    path: &'a str,
    prefix: &'a str,
    table: &'a Table,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_string() } else { format!("{}.{key}", self.prefix) }
    }

    fn wrong(&self, key: &str, expected: &str) -> SuiteError {
        let found = match self.table.get(key) {
            None => "missing".to_string(),
            Some(Value::String(text)) => format!("{text:?}"),
            Some(value) => crate::text::shorten(&value.to_string(), 60),
        };
        SuiteError::Key {
            path: self.path.into(),
            key: self.key(key),
            found,
            expected: expected.into(),
        }
    }

    fn only(&self, known: &[&str]) -> Result<(), SuiteError> {
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(SuiteError::Key {
                path: self.path.into(),
                key: self.key(key),
                found: "not known".into(),
                expected: format!("one of {}", known.join(", ")),
            }),
        }
    }

    fn case(&self) -> Result<SuiteCase, SuiteError> {
        self.only(&["name", "prompt", "ids", "max_new_tokens", "sampling"])?;
        let name = match self.table.get("name").and_then(Value::as_str) {
            Some(name) if is_word(name) => name.to_string(),
            _ => return Err(self.wrong("name", "a word of at most 64 letters, digits, - and _")),
        };
        let prompt = match self.table.get("prompt") {
            None => None,
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(_) => return Err(self.wrong("prompt", "a text that isn't empty")),
        };
        let ids = self.table.get("ids").map(|value| self.ids(value)).transpose()?;
        if prompt.is_none() && ids.is_none() {
            return Err(self.wrong("prompt", "a text, or ids"));
        }
        let max_new_tokens = self.whole("max_new_tokens", AD_HOC_NEW_TOKENS as u64)? as usize;
        let sampling = match self.table.get("sampling") {
            None => Sampling::default(),
            Some(Value::Table(table)) => {
                let prefix = self.key("sampling");
                Keys { path: self.path, prefix: &prefix, table }.sampling()?
            }
            Some(_) => return Err(self.wrong("sampling", "a table such as { temperature = 0.8 }")),
        };
        Ok(SuiteCase { name, prompt, ids, max_new_tokens, sampling })
    }

    fn ids(&self, value: &Value) -> Result<Vec<u32>, SuiteError> {
        let wrong = || self.wrong("ids", "a list of one or more token ids");
        let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(wrong)?;
        let id = |v: &Value| v.as_integer().and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong);
        list.iter().map(id).collect()
    }

    fn sampling(&self) -> Result<Sampling, SuiteError> {
        self.only(&["temperature", "top_k", "top_p", "seed"])?;
        Ok(Sampling {
            temperature: self.real("temperature", 0.0, "a number from 0 on", |t| t >= 0.0)?,
            top_k: self.whole("top_k", 0)? as usize,
            top_p: self
                .real("top_p", 1.0, "a number above 0, at most 1", |p| p > 0.0 && p <= 1.0)?,
            seed: self.whole("seed", 0)?,
        })
    }

    fn whole(&self, key: &str, default: u64) -> Result<u64, SuiteError> {
        match self.table.get(key) {
            None => Ok(default),
            Some(Value::Integer(n)) if (0..=MOST_NEW_TOKENS).contains(n) => Ok(*n as u64),
            Some(Value::Integer(n)) if *n >= 0 && key == "seed" => Ok(*n as u64),
            Some(_) => Err(self.wrong(key, "a whole number from 0 on")),
        }
    }

    fn real(
        &self,
        key: &str,
        default: f64,
        expected: &str,
        fits: fn(f64) -> bool,
    ) -> Result<f64, SuiteError> {
        let found = match self.table.get(key) {
            None => return Ok(default),
            Some(Value::Float(x)) => *x,
            Some(Value::Integer(n)) => *n as f64,
            Some(_) => return Err(self.wrong(key, expected)),
        };
        if found.is_finite() && fits(found) { Ok(found) } else { Err(self.wrong(key, expected)) }
    }
}

/// Names become parts of file names and keys.
fn is_word(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_suite_holds_what_the_contract_asks_for() {
        let suite = Suite::canonical().unwrap();
        let hello = &suite.cases[0];
        assert_eq!((hello.name.as_str(), hello.max_new_tokens), ("hello", 10));
        assert_eq!(hello.ids.as_deref(), Some(&[15496, 13][..]));
        let lengths: Vec<usize> =
            suite.cases.iter().map(|c| c.ids.as_ref().unwrap().len()).collect();
        assert!(lengths.contains(&1) && lengths.iter().any(|n| *n >= 64), "{lengths:?}");
        assert!(suite.cases.iter().any(|c| !c.prompt.as_ref().unwrap().is_ascii()));
        assert!(suite.cases.iter().any(|c| c.sampling.temperature > 0.0));
    }

    #[test]
    fn a_mistake_is_named_by_its_key_what_was_found_and_what_was_expected() {
        let head = "schema = \"llorch.suite/1\"\n";
        let with = |case: &str| format!("{head}[[case]]\n{case}\n");
        let twice = with("name = \"a\"\nids = [1]\n[[case]]\nname = \"a\"\nids = [1]");
        let cases = [
            ("schema = 3", "schema is 3; expected \"llorch.suite/1\""),
            (head, "case is missing; expected one or more [[case]]"),
            (&with("name = \"a b\"\nids = [1]"), "case[1].name is \"a b\"; expected a word"),
            (&with("name = \"a\""), "case[1].prompt is missing; expected a text, or ids"),
            (&with("name = \"a\"\nids = []"), "case[1].ids is []; expected"),
            (&with("name = \"a\"\nids = [1, -1]"), "case[1].ids is [1, -1]; expected"),
            (
                &with("name = \"a\"\nids = [1]\nmax_new_tokens = \"ten\""),
                "case[1].max_new_tokens is \"ten\"",
            ),
            (
                &with("name = \"a\"\nids = [1]\nsampling = { top_p = 0 }"),
                "case[1].sampling.top_p is 0",
            ),
            (&with("name = \"a\"\nids = [1]\ntemperature = 1"), "case[1].temperature is not known"),
            (&twice, "case[2].name is \"a\"; expected a name that no other case has"),
            ("schema = ", "not TOML"),
        ];
        for (text, expected) in cases {
            let error = Suite::parse("my.toml", text).unwrap_err().to_string();
            assert!(error.starts_with("failed to read suite my.toml: "), "{error}");
            assert!(error.contains(expected), "{error}\nexpected {expected}");
        }
    }

    #[test]
    fn prompts_become_cases_of_ten_new_tokens() {
        let suite = Suite::of_prompts(&["a".into(), "b".into()]);
        assert_eq!(suite.cases[1].name, "prompt-2");
        assert_eq!((suite.cases[1].max_new_tokens, suite.cases[1].ids.clone()), (10, None));
    }
}
