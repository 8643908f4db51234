//! The guides are held to what they speak of: commands to the command line, bugs and signatures to the
//! seeded bugs, lines of code to the code, pages to the data.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Parser;
use llorch_trace::Stage;

use super::*;
use crate::cli::{Cli, Command};
use crate::plan::Filter;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn there_is_a_whole_guide_for_each_checkpoint() {
    for (i, guide) in all().iter().enumerate() {
        let n = guide.checkpoint;
        assert_eq!(usize::from(n), i);
        let texts = [
            &guide.purpose,
            &guide.formula,
            &guide.when,
            &guide.criticality_reason,
            &guide.success,
            &guide.next.pass,
            &guide.next.fail,
        ];
        assert!(texts.iter().all(|t| !t.trim().is_empty()), "{n}");
        assert!(guide.checklist.len() >= 5 && guide.failure.len() >= 5, "{n}");
        let names: Vec<&str> = guide.reference.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["hf", "tinygrad", "candle", "mistral.rs", "llama.cpp"], "{n}");
        let tells = |r: &guide::Reference| !r.place.is_empty() || !r.note.is_empty();
        assert!(guide.reference.iter().all(tells), "{n}");
    }
}

/// Every word in backquotes that begins a command line of ours, and the commands themselves.
fn commands() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut quoted = |whose: String, text: &str| {
        for piece in text.split('`').skip(1).step_by(2) {
            if piece.starts_with("llorch-diff ") {
                found.push((whose.clone(), piece.to_string()));
            }
        }
    };
    for guide in all() {
        let title = guide.title();
        let lists = guide.checklist.iter().chain(guide.failure.iter().map(|f| &f.looks));
        for text in lists.chain([&guide.purpose, &guide.when, &guide.success]) {
            quoted(title.clone(), text);
        }
        quoted(title.clone(), &guide.next.pass);
        quoted(title, &guide.next.fail);
    }
    for pattern in patterns::patterns() {
        quoted(pattern.id.clone(), &pattern.look);
    }
    let named = |g: &Guide| {
        let title = g.title();
        g.command.iter().map(move |c| (title.clone(), c.run.clone())).collect::<Vec<_>>()
    };
    found.extend(all().iter().flat_map(named));
    found
}

#[test]
fn every_command_that_is_named_is_one() {
    let commands = commands();
    assert!(commands.len() > 13 * 3);
    for (whose, line) in commands {
        let words = shlex::split(&line).unwrap_or_else(|| panic!("{whose}: {line}"));
        let parsed = Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{whose}: {line}\n{e}"));
        // What clap can't know.
        let checkpoints = match &parsed.command {
            Command::Run(args) => args.common.checkpoint.clone(),
            Command::Bisect(args) => args.common.checkpoint.clone(),
            Command::Explain(args) => {
                let what = args.what.as_deref().unwrap_or("0");
                assert!(find(what).is_ok(), "{whose}: {line}");
                continue;
            }
            _ => continue,
        };
        assert!(Filter::new(&checkpoints, &[]).is_ok(), "{whose}: {line}");
    }
}

#[test]
fn bugs_are_seeded_ones_and_are_found_with_the_signature_that_is_named() {
    // | checkpoint | `bug` | point step … signature | found |
    let table = read("docs/SEEDED_BUGS.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|l| l.starts_with("| ") && l.ends_with("| found |"))
        .map(|l| l.split('|').map(str::trim).collect())
        .collect();
    let words = read("docs/BISECT.md");
    for guide in all() {
        for failure in &guide.failure {
            let whose = format!("{}: {}", guide.title(), failure.mistake);
            if let Some(signature) = &failure.signature {
                assert!(words.contains(&format!("`{signature}`")), "{whose}: {signature}");
                assert!(failure.bug.is_some(), "{whose}: a signature that no bug shows");
            }
            let Some(bug) = &failure.bug else { continue };
            let row = rows.iter().find(|r| r[2].trim_matches('`') == bug);
            let row = row.unwrap_or_else(|| panic!("{whose}: {bug} is no seeded bug"));
            let found = row[3].split("; ").next().and_then(|cause| cause.split(' ').next_back());
            assert_eq!(found, Some(failure.signature.as_deref().unwrap_or("none")), "{whose}");
        }
    }
}

#[test]
fn each_stage_has_one_hint_in_the_guide_of_its_checkpoint() {
    for stage in Stage::all() {
        let name = stage_name(stage);
        let guides = all().iter().filter(|g| g.hint.iter().any(|h| h.stages.contains(&name)));
        let numbers: Vec<u8> = guides.map(|g| g.checkpoint).collect();
        let point = llorch_trace::Point::of_layer(stage, 0);
        assert_eq!(numbers, [point.checkpoint().number], "{name}");
        assert!(hint(stage).is_some_and(|h| h.len() < 120), "{name}");
    }
    let stages: BTreeSet<String> = Stage::all().map(stage_name).collect();
    for guide in all() {
        assert!(guide.hint.iter().flat_map(|h| &h.stages).all(|s| stages.contains(s)));
    }
}

#[test]
fn lines_of_this_repository_are_where_the_guides_say() {
    let mut checked = 0;
    for guide in all() {
        for place in guide.reference.iter().flat_map(|r| &r.place) {
            if !place.file.starts_with("adapters/") {
                continue;
            }
            let text = read(&place.file);
            let word = place.holds.as_ref().unwrap_or_else(|| panic!("{}", place.cite()));
            place.find(&text).unwrap_or_else(|e| panic!("{}: {word:?} {e}", place.cite()));
            checked += 1;
        }
    }
    assert!(checked > 30);
}

/// Lines are those of the versions that are pinned; a new pin means a new look.
#[test]
fn versions_are_the_pinned_ones() {
    let python = |name: &str| read(&format!("refs/{name}/requirements.lock"));
    let (hf, tinygrad, candle) =
        (python("hf"), python("tinygrad"), read("adapters/candle/Cargo.lock"));
    for reference in all().iter().flat_map(|g| &g.reference) {
        for named in reference.version.split(", ") {
            let (name, version) = named.split_once(' ').unwrap();
            let pinned = match reference.name.as_str() {
                "hf" => hf.contains(&format!("{name}=={version}")),
                "tinygrad" => tinygrad.contains(&format!("{name}=={version}")),
                "candle" => candle.contains(&format!("name = \"{name}\"\nversion = \"{version}\"")),
                // No part of this project: looked up once.
                _ => true,
            };
            assert!(pinned, "{named}");
        }
    }
}

#[test]
fn the_pages_in_docs_are_what_the_data_gives() {
    let mend = "run `llorch-diff explain --write docs/checkpoints`";
    let mut expected: BTreeSet<String> = ["README.md".to_string()].into();
    for guide in all() {
        let name = format!("{}.md", guide.file_stem());
        assert!(read(&format!("docs/checkpoints/{name}")) == page::guide(guide), "{name}: {mend}");
        expected.insert(name);
    }
    assert!(read("docs/checkpoints/README.md") == page::list(), "README.md: {mend}");
    let names = std::fs::read_dir(repository().join("docs/checkpoints")).unwrap();
    let names: BTreeSet<String> =
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, expected);
}

#[test]
fn guides_are_found_by_number_name_and_point() {
    for (text, expected) in [
        ("4", 4),
        ("qkv", 2),
        ("Attention scores", 4),
        ("h.3.attn.out", 5),
        ("h.*.attn.q", 2),
        ("h.i.mlp.act", 6),
        ("ln_1", 1),
        ("h.0", 7),
        ("h.2", 8),
        ("logits", 8),
        ("logits.last", 9),
        ("generated", 12),
    ] {
        assert_eq!(find(text).unwrap().guide.checkpoint, expected, "{text}");
    }
    let error = find("13").unwrap_err().to_string();
    assert!(error.contains("\"13\"") && error.contains("h.3.attn.out"), "{error}");
}

#[test]
fn a_screen_is_as_wide_as_it_is_told() {
    for width in [40, 60, 100, 200] {
        for guide in all() {
            let text = screen::guide(guide, None, width);
            // Formulas and commands are there to be copied, names of files can't be broken.
            let wrapped = |l: &&str| !l.starts_with("$ ") && !l.starts_with("    ");
            for line in text.lines().filter(wrapped) {
                let fits = line.chars().count() <= width;
                let longest = line.split_whitespace().map(|w| w.chars().count()).max();
                assert!(fits || longest.unwrap_or(0) + 8 > width, "{width}: {line}");
            }
        }
    }
}
