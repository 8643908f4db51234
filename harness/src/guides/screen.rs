//! A guide for a terminal, as wide as it is.

use std::fmt::Write;

use llorch_trace::Point;

use super::{Guide, stage_name};
use crate::points_cmd;

pub const FIGURES: [&str; 6] =
    ["point", "against hf", "against tinygrad", "against candle", "by itself", "tolerance"];
pub const FIGURES_NOTE: &str = "Largest differences of `llorch-cpud` on `nano` (4 layers, E 128, H 4, D 32), all layers, \
     cases and steps of the canonical suite; by itself: against the float64 recomputation of that one \
     stage. transformers 5.23.0, tinygrad 0.14.0, candle 0.11.1.";

/// Narrower than that, words don't fit any more.
const LEAST: usize = 40;

pub fn guide(guide: &Guide, asked: Option<Point>, width: usize) -> String {
    let mut page = Page::new(width);
    page.text(&format!("{} · {}", guide.title(), guide.criticality.name()));
    page.gap();
    page.text(&guide.purpose);
    page.text(&format!("Why {}: {}.", guide.criticality.name(), guide.criticality_reason));
    if let Some(point) = asked {
        page.heading(&format!("AT {point}"));
        page.text(super::hint(point.stage).unwrap_or_default());
    }

    page.heading("WHAT IS COMPUTED");
    page.verbatim(&guide.formula);
    page.gap();
    for point in points_cmd::of_checkpoint(guide.checkpoint) {
        let is_asked = asked.is_some_and(|p| point.stage == stage_name(p.stage));
        let mark = if is_asked { "> " } else { "" };
        page.item(
            mark,
            &format!("{} {}, {}: {}", point.point, point.shape, point.class, point.recipe),
        );
    }
    page.text(points_cmd::LEGEND);

    page.heading("WHEN TO CHECK IT");
    page.text(&guide.when);
    page.heading("CHECKLIST");
    for item in &guide.checklist {
        page.item("[ ] ", item);
    }

    page.heading("WHERE IT IS");
    for reference in &guide.reference {
        page.text(&format!("{} ({})", reference.name, reference.version));
        if !reference.note.is_empty() {
            page.item("  ", &reference.note);
        }
        for place in &reference.place {
            page.item("  - ", &format!("{}: {}", place.cite(), place.text));
        }
    }

    page.heading("COMMON FAILURES");
    for failure in &guide.failure {
        page.item("- ", &failure.mistake);
        page.item("    ", &failure.looks);
        let named = failure.signature.as_ref().map(|s| format!("bisect says: {s}"));
        let bug = failure.bug.as_ref().map(|b| format!("seeded bug: {b}"));
        let both: Vec<String> = named.into_iter().chain(bug).collect();
        if !both.is_empty() {
            page.item("    ", &both.join(" · "));
        }
    }

    page.heading("WHAT SUCCESS LOOKS LIKE");
    page.text(&guide.success);
    for f in &guide.figure {
        page.item(
            "- ",
            &format!(
                "{}: {} against hf, {} tinygrad, {} candle; {} by itself; tolerance {}",
                f.point, f.hf, f.tinygrad, f.candle, f.local, f.tolerance
            ),
        );
    }
    if !guide.figure.is_empty() {
        page.text(FIGURES_NOTE);
    }

    page.heading("HOW TO INSPECT IT");
    for command in &guide.command {
        // Not broken into lines: it is there to be copied.
        page.line(&format!("$ {}", command.run));
        page.item("    ", &command.text);
    }

    page.heading("WHAT NEXT");
    page.item("pass: ", &guide.next.pass);
    page.item("fail: ", &guide.next.fail);
    page.out
}

/// All of them, a line each.
pub fn list(width: usize) -> String {
    let mut page = Page::new(width);
    for guide in super::all() {
        let checkpoint = &llorch_trace::points::CHECKPOINTS[usize::from(guide.checkpoint)];
        page.line(&format!(
            "{:>2}  {:<10}  {:<22} {}",
            checkpoint.number,
            checkpoint.slug,
            checkpoint.name,
            guide.criticality.name()
        ));
        page.item("    ", &guide.criticality_reason);
    }
    page.gap();
    page.text(
        "`llorch-diff explain 4` explains one; a name or a point will do as well: \
         `llorch-diff explain h.3.attn.out`.",
    );
    page.out
}

struct Page {
    out: String,
    width: usize,
}

impl Page {
    fn new(width: usize) -> Page {
        Page { out: String::new(), width: width.max(LEAST) }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}", text.trim_end());
    }

    fn gap(&mut self) {
        self.line("");
    }

    fn heading(&mut self, text: &str) {
        self.gap();
        self.line(text);
    }

    fn text(&mut self, text: &str) {
        for paragraph in text.trim().split("\n\n") {
            self.item("", paragraph);
        }
    }

    fn verbatim(&mut self, text: &str) {
        for line in text.trim().lines() {
            self.line(&format!("    {line}"));
        }
    }

    /// Wrapped between words; further lines stand below the first word.
    fn item(&mut self, lead: &str, text: &str) {
        let below = " ".repeat(lead.chars().count());
        let options = textwrap::Options::new(self.width)
            .initial_indent(lead)
            .subsequent_indent(&below)
            .break_words(false)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        let words: Vec<&str> = text.split_whitespace().collect();
        for line in textwrap::wrap(&words.join(" "), options) {
            self.line(&line);
        }
    }
}
