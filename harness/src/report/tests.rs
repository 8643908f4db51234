//! What a reader sees, on a small made-up result.

use std::collections::BTreeMap;

use llorch_trace::protocol::Worth;

use super::*;
use crate::result::*;

fn implementation(name: &str, role: Role, worth: Worth) -> Implementation {
    Implementation {
        name: name.into(),
        role,
        lock_sha256: None,
        version: format!("{name} 1.0"),
        worth: Some(worth),
        status: Status::Ok,
        reason: String::new(),
        mend: None,
        recipes: BTreeMap::new(),
    }
}

fn row(a: &str, b: &str, layer: usize, step: usize, error: f64, verdict: Verdict) -> Row {
    let point = format!("h.{layer}.attn.q").parse().unwrap();
    Row {
        metrics: Some(Metrics {
            max_abs: Some(error),
            max_rel: Some(error),
            rel_l2: Some(error),
            rmse: Some(error),
            ulp_max: Some(3),
            exceeding: usize::from(verdict == Verdict::Fail),
            total: 8,
            worst: vec![0, 1, 1],
            worst_values: [Some(0.5 + error), Some(0.5)],
        }),
        tolerance: 1e-4,
        verdict,
        reason: if verdict == Verdict::Fail {
            "1 of 8 elements exceed the tolerance".into()
        } else {
            String::new()
        },
        excerpt: (verdict == Verdict::Fail).then(|| Excerpt {
            from: vec![0, 1, 0],
            a: vec![Some(0.25), Some(1.5)],
            b: vec![Some(0.25), Some(0.5)],
        }),
        ..Row::new("hello", step, point, RowKind::Pair, a, b)
    }
}

fn result(rows: Vec<Row>, verdict: RunVerdict) -> RunResult {
    RunResult {
        means: Default::default(),
        machine: None,
        schema: SCHEMA.into(),
        verdict,
        started: "2026-01-01T00:00:00Z".into(),
        seconds: BTreeMap::from([("total".into(), 12.5)]),
        command: vec!["llorch-diff".into(), "run".into()],
        model: ModelRecord {
            name: "nano".into(),
            kind: ModelKind::Trained,
            source: "embedded".into(),
            revision: None,
            sha256: "ab12".into(),
            config: serde_json::json!({}),
        },
        implementations: vec![
            implementation("ours", Role::Subject, Worth::Semantics),
            implementation("hf", Role::Reference, Worth::Semantics),
            implementation("candle", Role::Reference, Worth::Kernels),
        ],
        cases: vec![],
        rows,
        odd: vec![],
        assessment: None,
        strategy: None,
        isolate: None,
        partition: None,
        tolerances: Default::default(),
        unchecked: vec![Unchecked {
            what: "candle: h.*.attn.k".into(),
            kind: UncheckedKind::Unsupported,
            reason: "no hook there".into(),
        }],
    }
}

pub(super) fn honest() -> RunResult {
    let mut rows = Vec::new();
    for (layer, step) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let size = 1e-7 * (1 + layer + 2 * step) as f64;
        rows.push(row("ours", "hf", layer, step, size, Verdict::Pass));
        rows.push(row("ours", "candle", layer, step, 2.0 * size, Verdict::Pass));
        rows.push(row("hf", "candle", layer, step, 3.0 * size, Verdict::Pass));
    }
    result(rows, RunVerdict::Pass)
}

pub(super) fn broken() -> RunResult {
    let mut result = honest();
    for r in result.rows.iter_mut().filter(|r| r.a == "ours" && r.layer == Some(1)) {
        *r = row("ours", &r.b.clone(), 1, r.step, 1.0, Verdict::Fail);
    }
    result.verdict = RunVerdict::Fail;
    result
}

fn table(result: &RunResult) -> String {
    render(result, Format::Table, &Style::default()).unwrap()
}

#[test]
fn an_honest_run_says_so_in_its_first_line_and_in_one_sentence() {
    let text = table(&honest());
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("PASS · ours matches hf and candle at"), "{first}");
    assert!(first.contains(
        "real GPT-2 weights: UNCHECKED (check them with `llorch-diff run --model gpt2`)"
    ));
    let sentence = "ours matches hf and candle; the references agree within 1.2e-6, widest hf–candle at h.1.attn.q.";
    assert!(text.contains(sentence), "{text}");
    assert!(text.contains("1 semantics, 1 kernels"), "{text}");
    assert!(text.contains("candle: h.*.attn.k: no hook there"));
}

#[test]
fn layers_and_steps_fold_onto_the_worst() {
    let text = table(&honest());
    let line = text.lines().find(|l| l.contains("h.*.attn.q")).unwrap();
    // Three pairs: the largest of each over two layers and two steps.
    for part in
        ["×4", "4.0e-7", "8.0e-7", "1.2e-6", "1e-4", "layer 1, hello step 1 [0,1,1]", "PASS"]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn a_failure_shows_the_first_place_both_values_and_a_hint() {
    let text = table(&broken());
    assert!(text.starts_with("FAIL · ours against hf and candle: 0 of 1 checkpoints passed, first at h.1.attn.q (case hello, prefill)"), "{text}");
    for part in [
        "ours differs from hf and candle; the references agree",
        "worst [0,1,1]: 1.500000 against 0.5000000",
        "ours from [0,1,0]: 0.2500000 1.500000",
        "hint: Conv1D weights are [in, out]",
        "and 1 more rows that fail here",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_narrow_terminal_breaks_lines_between_words_only() {
    let wide = render(&broken(), Format::Table, &Style::default()).unwrap();
    for width in [20, 60, 80] {
        let style = Style { width: Some(width), ..Style::default() };
        let narrow = render(&broken(), Format::Table, &style).unwrap();
        let cells = |text: &str| -> std::collections::BTreeSet<String> {
            let lines = text.lines().filter(|l| l.starts_with('│'));
            let words = lines.flat_map(|l| l.trim_matches('│').split_whitespace());
            words.map(String::from).collect()
        };
        assert_eq!(cells(&narrow), cells(&wide), "width {width}:\n{narrow}");
    }
}

#[test]
fn real_weights_have_no_unchecked_line() {
    let mut result = honest();
    result.model.kind = ModelKind::Real;
    assert!(!table(&result).lines().next().unwrap().contains("UNCHECKED"));
}

#[test]
fn markdown_has_the_same_figures_and_escapes_what_would_break_a_table() {
    let text = render(&broken(), Format::Md, &Style::default()).unwrap();
    assert!(text.starts_with("# FAIL · ours against hf and candle"), "{text}");
    assert!(text.contains("| `h.*.attn.q` ×4 | 1.0e0 FAIL | 1.0e0 FAIL | 1.2e-6 |"), "{text}");
    for line in text.lines().filter(|l| l.starts_with('|')) {
        assert!(line.ends_with('|'), "{line}");
    }
}

#[test]
fn json_is_the_result() {
    let result = broken();
    let text = render(&result, Format::Json, &Style::default()).unwrap();
    assert_eq!(serde_json::from_str::<RunResult>(&text).unwrap(), result);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = &value["rows"][0];
    assert_eq!(
        (&row["kind"], &row["point"], &row["max_abs"]),
        (&"pair".into(), &"h.0.attn.q".into(), &1e-7.into())
    );
}

#[test]
fn colour_comes_only_where_it_is_asked_for() {
    assert!(!table(&broken()).contains('\x1b'));
    let style = Style { colour: true, ..Style::default() };
    assert!(render(&broken(), Format::Table, &style).unwrap().contains('\x1b'));
}

#[test]
fn tables_keep_to_the_width() {
    let style = Style { width: Some(80), ..Style::default() };
    let text = render(&broken(), Format::Table, &style).unwrap();
    for line in text.lines().filter(|l| l.starts_with(['┌', '│', '╞', '└'])) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn two_releases_of_one_reference_are_one_witness_and_two_columns() {
    let mut result = honest();
    let latest = implementation("hf@latest", Role::Reference, Worth::Semantics);
    result.implementations.push(latest);
    for layer in 0..2 {
        result.rows.push(row("ours", "hf@latest", layer, 0, 1e-7, Verdict::Pass));
        result.rows.push(row("hf", "hf@latest", layer, 0, 2e-7, Verdict::Pass));
    }
    let view = &view::checkpoints(&result)[0];
    assert_eq!((view.semantics, view.kernels), (1, 1));
    let (with_ours, among) = view::pairs(&result);
    assert!(with_ours.iter().any(|p| p.b == "hf@latest"));
    assert!(among.iter().any(|p| p.a == "hf" && p.b == "hf@latest"));
    let shown = table(&result);
    assert!(shown.contains("1 semantics, 1 kernels"), "{shown}");
    let said = "RELEASE hf@latest (hf@latest 1.0) against hf (hf 1.0): first differs at h.0.attn.q (case hello, \
        prefill), by 2.0e-7; largest at h.1.attn.q (case hello, prefill), by 2.0e-7; all within tolerance";
    assert!(shown.contains(said), "{shown}");

    for r in result.rows.iter_mut().filter(|r| r.a == "hf" && r.b == "hf@latest") {
        *r = row("hf", "hf@latest", r.layer.unwrap_or(0), 0, 0.0, Verdict::Pass);
    }
    assert!(table(&result).contains("against hf (hf 1.0): equal in every bit that was compared"));
    result.rows.push(row("hf", "hf@latest", 1, 0, 0.5, Verdict::Fail));
    assert!(
        table(&result)
            .contains("beyond tolerance first at h.1.attn.q (case hello, prefill), by 5.0e-1")
    );
}

#[test]
fn beyond_three_references_the_spread_stands_for_the_pairs() {
    let mut result = honest();
    for name in ["x", "y"] {
        result.implementations.push(implementation(name, Role::Reference, Worth::Kernels));
        result.rows.push(row("ours", name, 0, 0, 1e-7, Verdict::Pass));
    }
    result.rows.push(row("x", "y", 0, 0, 5e-5, Verdict::Pass));
    let text = table(&result);
    assert!(text.contains("widest pair") && text.contains("5.0e-5 x–y"), "{text}");
    let all = render(&result, Format::Table, &Style { pairs: true, ..Style::default() }).unwrap();
    assert!(!all.contains("widest pair"), "{all}");
}

#[test]
fn what_is_declared_stands_beside_the_largest_error_and_does_not_hide_it() {
    let mut result = honest();
    for (a, b) in [("ours", "candle"), ("hf", "candle")] {
        let mut declared = row(a, b, 1, 2, 4e-3, Verdict::Pass);
        declared.deviates = vec!["candle".into()];
        result.rows.push(declared);
    }
    let text = table(&result);
    let largest = text.lines().find(|l| l.contains("QKV projection")).unwrap();
    assert!(largest.contains("8.0e-7") && largest.contains("candle, h.1.attn.q"), "{text}");
    assert!(largest.contains("; candle 4.0e-3, as declared"), "{text}");
    assert!(
        text.contains(
            "the references agree within 1.2e-6, widest hf–candle at h.1.attn.q; with candle, as \
             declared, within 4.0e-3."
        ),
        "{text}"
    );
    let markdown = render(&result, Format::Md, &Style::default()).unwrap();
    assert!(markdown.contains("; candle 4.0e-3, as declared"), "{markdown}");
}

#[test]
fn agreement_with_itself_is_no_pass() {
    let mut result = honest();
    for r in result.rows.iter_mut().filter(|r| r.a == "ours") {
        r.verdict = Verdict::Unchecked;
        r.metrics = None;
    }
    let mut own = row("ours", "ours", 0, 0, 0.0, Verdict::Pass);
    own.kind = RowKind::Own;
    result.rows.push(own);
    let text = table(&result);
    assert!(
        text.starts_with("PASS · ours matches nothing of hf and candle; 1 UNCHECKED"),
        "{text}"
    );
    assert!(text.contains("Checkpoint 2 · QKV projection · UNCHECKED"), "{text}");
}

#[test]
fn the_first_line_says_which_reference_checked_how_much() {
    let mut result = honest();
    for r in result.rows.iter_mut().filter(|r| r.b == "candle") {
        r.verdict = Verdict::Unchecked;
    }
    let first = table(&result).lines().next().unwrap().to_string();
    assert!(
        first.starts_with(
            "PASS · ours matches hf at the checkpoint that was asked for, nothing of candle"
        ),
        "{first}"
    );
}

#[test]
fn what_is_excused_is_marked() {
    let mut result = honest();
    let excused = &mut result.rows[0];
    excused.metrics.as_mut().unwrap().exceeding = 1;
    excused.reason = "hf declares a deviation".into();
    excused.metrics.as_mut().unwrap().max_abs = Some(1e-2);
    let text = table(&result);
    assert!(text.contains("1.0e-2*") && text.contains("  * ours–hf at h.0.attn.q"), "{text}");
}

#[test]
fn without_the_oracle_the_chart_shows_the_distances_from_the_subject() {
    let flow = flow::flow(&honest());
    let names: Vec<&str> = flow.series.iter().map(|s| s.name.as_str()).collect();
    assert_eq!((names, flow.by_oracle), (vec!["hf", "candle"], false));
    let totals: Vec<_> = flow.series[1].errors.iter().map(|e| e.total).collect();
    // The larger of two steps, of each of two layers.
    assert_eq!(totals, [Some(Some(6e-7)), Some(Some(8e-7))]);
    let run = Run { result: &honest(), dir: None };
    let page = export(&run, ReportFormat::Html, &Style::default()).unwrap();
    assert!(page.contains("ours matches hf and candle") && page.contains("had no say"), "{page}");
}

#[test]
fn the_page_names_the_first_cause_by_the_rule_of_every_report() {
    let result = broken();
    let run = Run { result: &result, dir: None };
    let page = export(&run, ReportFormat::Html, &Style::default()).unwrap();
    let (first, _) = page.split_once("</h1>").unwrap();
    assert!(first.ends_with("<a id=\"first\" href=\"#p-h.1.attn.q\">h.1.attn.q</a>"), "{first}");
    assert!(page.contains("id=\"p-h.1.attn.q\"") && page.contains("only the result is at hand"));
    assert!(table(&result).lines().next().unwrap().contains("first at h.1.attn.q"));
}

#[test]
fn values_that_are_not_finite_are_drawn_at_the_top_and_named() {
    let mut result = broken();
    for row in &mut result.rows {
        row.metrics.as_mut().unwrap().max_abs = None;
    }
    let run = Run { result: &result, dir: None };
    let page = export(&run, ReportFormat::Html, &Style::default()).unwrap();
    assert!(page.contains("not finite") && !page.contains("NaN") && !page.contains("inf "));
    let svg = export(&run, ReportFormat::Svg, &Style::default()).unwrap();
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn a_result_without_rows_is_a_page_all_the_same() {
    let result = result(Vec::new(), RunVerdict::Error);
    let run = Run { result: &result, dir: None };
    for format in [ReportFormat::Html, ReportFormat::Svg, ReportFormat::Junit, ReportFormat::Github]
    {
        let text = export(&run, format, &Style::default()).unwrap();
        assert!(text.contains("nothing was compared"), "{format:?}: {text}");
        assert!(!text.contains("NaN"), "{format:?}");
    }
}
