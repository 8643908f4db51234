//! The command that finds just this again.

use llorch_trace::{CHECKPOINTS, Stage};

use crate::result::{Row, RunResult};
use crate::suite::AD_HOC_NEW_TOKENS;
use crate::text::shell_word;

pub fn reproduce(result: &RunResult, row: &Row) -> String {
    let mut words = vec!["llorch-diff bisect".to_string()];
    let checkpoint = &CHECKPOINTS[row.checkpoint as usize];
    words.push(format!("--checkpoint {}", checkpoint.slug));
    words.extend(row.layer.map(|layer| format!("--layer {layer}")));
    let case = result.cases.iter().find(|c| c.name == row.case);
    // `--prompt` runs ten greedy tokens: the same case only where that is what was run up to here.
    let prompt = case.filter(|c| c.sampling.temperature == 0.0 && row.step < AD_HOC_NEW_TOKENS);
    let same_generation =
        |max: usize| row.point.stage != Stage::Generated || max <= AD_HOC_NEW_TOKENS;
    let prompt =
        prompt.filter(|c| same_generation(c.max_new_tokens)).and_then(|c| c.prompt.as_ref());
    words.extend(prompt.map(|text| format!("--prompt {}", shell_word(text))));
    if result.model.name != "nano" {
        words.push(format!("--model {}", shell_word(&result.model.name)));
    }
    let passed_on = ["--subject", "--ref", "--suite", "--dtype", "--threads"];
    words.extend(options(&result.command, &passed_on).into_iter().filter_map(|(name, value)| {
        let replaced = name == "--suite" && prompt.is_some();
        (!replaced).then(|| format!("{name} {}", shell_word(&value)))
    }));
    words.join(" ")
}

/// `--name value` and `--name=value` of a command line.
fn options(command: &[String], names: &[&'static str]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut words = command.iter();
    while let Some(word) = words.next() {
        for name in names {
            if word == name {
                found.extend(words.next().map(|value| (*name, value.clone())));
                break;
            }
            if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                found.push((*name, value.to_string()));
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_from_the_command_line_in_both_forms() {
        let command: Vec<String> =
            ["llorch-diff", "run", "--ref", "hf", "--ref=a=b c", "--subject", "x y"]
                .map(String::from)
                .to_vec();
        let found = options(&command, &["--subject", "--ref"]);
        assert_eq!(
            found,
            [("--ref", "hf".into()), ("--ref", "a=b c".into()), ("--subject", "x y".into())]
        );
    }
}
