//! A guide as Markdown. `docs/checkpoints` holds what comes out here; a test compares.

use std::fmt::Write;

use super::Guide;
use crate::points_cmd;

/// A page, with what it takes to make it again.
pub fn guide(guide: &Guide) -> String {
    let mut out = String::new();
    let n = guide.checkpoint;
    let _ = writeln!(out, "<!-- Made from harness/src/guides/data/{}.toml by", guide.file_stem());
    let _ =
        writeln!(out, "     `llorch-diff explain --write docs/checkpoints`; change it there. -->");
    let _ = writeln!(out, "# {}\n", guide.title());
    let _ = writeln!(out, "{}\n", guide.purpose.trim());
    let reason = &guide.criticality_reason;
    let _ = writeln!(out, "**{}**: {}\n", capital(guide.criticality.name()), reason.trim());

    let _ = writeln!(out, "## What is computed\n\n```\n{}\n```\n", guide.formula.trim());
    row(&mut out, &["point", "shape", "class", "what it is"].map(String::from));
    let _ = writeln!(out, "| --- | --- | --- | --- |");
    for point in points_cmd::of_checkpoint(n) {
        row(&mut out, &[code(&point.point), code(&point.shape), point.class, point.recipe.into()]);
    }
    let _ = writeln!(out, "\n{}\n", points_cmd::LEGEND);

    let _ = writeln!(out, "## When to check it\n\n{}\n", guide.when.trim());
    let _ = writeln!(out, "## Checklist\n");
    for item in &guide.checklist {
        let _ = writeln!(out, "- [ ] {}", item.trim());
    }

    let _ = writeln!(out, "\n## Where it is\n");
    for reference in &guide.reference {
        let _ = writeln!(out, "**{}** ({})\n", reference.name, reference.version);
        if !reference.note.is_empty() {
            let _ = writeln!(out, "{}\n", reference.note.trim());
        }
        for place in &reference.place {
            let _ = writeln!(out, "- `{}`: {}", place.cite(), place.text.trim());
        }
        if !reference.place.is_empty() {
            let _ = writeln!(out);
        }
    }

    let _ = writeln!(out, "## Common failures\n");
    row(&mut out, &["mistake", "how it looks", "`bisect` says", "seeded bug"].map(String::from));
    let _ = writeln!(out, "| --- | --- | --- | --- |");
    for failure in &guide.failure {
        let or_none = |text: &Option<String>| text.as_ref().map_or("-".into(), |t| code(t));
        row(
            &mut out,
            &[
                failure.mistake.clone(),
                failure.looks.clone(),
                or_none(&failure.signature),
                or_none(&failure.bug),
            ],
        );
    }

    let _ = writeln!(out, "\n## What success looks like\n\n{}\n", guide.success.trim());
    if !guide.figure.is_empty() {
        row(&mut out, &super::screen::FIGURES.map(String::from));
        let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- |");
        for f in &guide.figure {
            let cells = [&f.hf, &f.tinygrad, &f.candle, &f.local, &f.tolerance].map(String::clone);
            row(&mut out, &[&[code(&f.point)], &cells[..]].concat());
        }
        let _ = writeln!(out, "\n{}\n", super::screen::FIGURES_NOTE);
    }

    let _ = writeln!(out, "## How to inspect it\n\n```console");
    for command in &guide.command {
        let _ = writeln!(out, "$ {}", command.run);
    }
    let _ = writeln!(out, "```\n");
    for command in &guide.command {
        let _ = writeln!(out, "- `{}`: {}", command.run, command.text.trim());
    }

    let _ = writeln!(out, "\n## What next\n");
    let _ = writeln!(out, "- **It passes**: {}", guide.next.pass.trim());
    let _ = writeln!(out, "- **It fails**: {}", guide.next.fail.trim());
    out
}

/// All of them in a table.
pub fn list() -> String {
    let mut out = String::from(
        "<!-- Made by `llorch-diff explain --write docs/checkpoints`. -->\n# The 13 checkpoints\n\n\
         One guide each: what is computed, where references compute it, what goes wrong there and how\n\
         that looks, and how to look at it. `llorch-diff explain 4` prints one in a terminal; a point\n\
         will do as well: `llorch-diff explain h.3.attn.out`.\n\n",
    );
    row(&mut out, &["checkpoint", "criticality", "why"].map(String::from));
    let _ = writeln!(out, "| --- | --- | --- |");
    for guide in super::all() {
        let link = format!("[{}]({}.md)", guide.title(), guide.file_stem());
        row(&mut out, &[link, guide.criticality.name().into(), guide.criticality_reason.clone()]);
    }
    out
}

fn row(out: &mut String, cells: &[String]) {
    let cells: Vec<String> = cells.iter().map(|c| one_line(c).replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or(String::new(), |c| c.to_uppercase().collect::<String>() + letters.as_str())
}
