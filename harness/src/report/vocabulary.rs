//! What tokens read as, from the model's `vocab.json`: GPT-2's vocabulary writes bytes as characters.

use std::collections::HashMap;
use std::path::Path;

use crate::saved;

/// The text of each id; empty where the model has no vocabulary here.
#[derive(Debug, Default)]
pub struct Vocabulary {
    texts: HashMap<u32, String>,
}

impl Vocabulary {
    /// Of the model that a saved run was made with, if it is still there.
    pub fn of_run(dir: Option<&Path>) -> Vocabulary {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).ok()?;
            serde_json::from_str::<serde_json::Value>(&text).ok()
        };
        let model = dir.and_then(|dir| saved::model_dir(dir).ok());
        let table = model.and_then(|model| read(&model.join("vocab.json")));
        let Some(serde_json::Value::Object(table)) = table else { return Vocabulary::default() };
        let bytes = bytes_of_characters();
        let one = |(text, id): (String, serde_json::Value)| {
            let id = u32::try_from(id.as_u64()?).ok()?;
            let bytes: Option<Vec<u8>> = text.chars().map(|c| bytes.get(&c).copied()).collect();
            let text = bytes.map_or(text, |b| String::from_utf8_lossy(&b).into_owned());
            Some((id, text))
        };
        Vocabulary { texts: table.into_iter().filter_map(one).collect() }
    }

    /// Its text as it stands.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(&id).map(String::as_str)
    }

    /// `" road"`, or the bare id where nobody knows its text.
    pub fn quoted(&self, id: u32) -> String {
        self.text(id).map_or_else(|| id.to_string(), |text| format!("{text:?}"))
    }
}

/// GPT-2 writes printable bytes as themselves and the others as characters from U+0100 on, in order.
fn bytes_of_characters() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut map = HashMap::new();
    for b in 0..=255u8 {
        let c = match printable(b) {
            true => b as char,
            false => {
                next += 1;
                char::from_u32(next - 1).unwrap_or('?')
            }
        };
        map.insert(c, b);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_gpt2() {
        let map = bytes_of_characters();
        // Of the published vocabulary: Ġ is the space, Ċ the line feed, ł 0xA0 (as in Âł), Ń the soft hyphen.
        let expected = [('Ġ', 0x20), ('Ċ', 0x0A), ('A', 0x41), ('ł', 0xA0), ('Ń', 0xAD)];
        assert_eq!(map.len(), 256);
        assert!(expected.iter().all(|(c, b)| map[c] == *b), "{expected:?}");
    }
}
