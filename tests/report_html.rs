//! The HTML report in a browser: figures, clicks, keys, widths, colours; and its size.
#![allow(clippy::disallowed_methods)] // a test starts the program that it tests

mod run_support;

use std::path::Path;
use std::process::Command;

use llorch_trace::bundle::Manifest;
use llorch_trace::{Bundle, BundleWriter, Point};
use run_support::browser::{chromium, python};
use run_support::reported::{Saved, failing, missing, parting, passing};
use run_support::{diff, repository, texts};
use serde_json::Value;

fn look(saved: &Saved, name: &str) {
    let page = saved.short.path("report.html");
    std::fs::write(&page, saved.report("html")).unwrap();
    // Kept, for people to look at.
    let shots = repository().join("target/reports").join(name);
    let output = Command::new(python())
        .arg(repository().join("tests/browser/look.py"))
        .args([chromium(), &page, &saved.out().join("result.json"), &shots])
        .output()
        .unwrap();
    let (_, stderr) = texts(&output);
    assert!(output.status.success(), "{name}: {stderr}");
    std::fs::copy(&page, shots.join("report.html")).unwrap();
    std::fs::write(shots.join("errors.svg"), saved.report("svg")).unwrap();
}

#[test]
fn a_run_that_passes() {
    look(passing(), "passing");
}

#[test]
fn a_run_that_fails_names_the_first_wrong_tensor() {
    look(failing(), "failing");
}

#[test]
fn a_run_with_a_reference_that_is_not_there() {
    look(missing(), "missing");
    assert!(missing().report("html").contains("/nonexistent/adapter"));
}

#[test]
fn where_texts_part_the_token_is_marked_and_both_choices_stand_below() {
    let saved = parting();
    let page = saved.report("html");
    let case = &saved.result["cases"][0];
    let right = case["forced_ids"].as_array().unwrap();
    let ids = case["generated"]["bug"]["ids"].as_array().unwrap();
    let step = (0..right.len()).find(|i| right[*i] != ids[*i]).expect("the bug must show");
    assert_eq!(page.matches("<mark ").count(), 1, "the references generate what the oracle does");
    assert!(page.contains(&format!("They part at step {step}.")));
    for (who, chosen) in [("bug", &ids[step]), ("candle", &right[step])] {
        let bundle = Bundle::open(&saved.out().join(who)).unwrap();
        let logits = bundle.get("short", step, "logits.last").unwrap().to_f64();
        let mut sorted = logits.clone();
        sorted.sort_by(|x, y| y.total_cmp(x));
        let first = logits.iter().position(|v| *v == sorted[0]).unwrap();
        assert_eq!(first as u64, chosen.as_u64().unwrap(), "{who}");
        let margin = format!("<td class=\"n\">{:.4}</td>", sorted[0] - sorted[1]);
        assert!(page.contains(&margin), "{who}: {margin}");
        assert!(page.contains(&format!("</code> {:.4}</span>", sorted[4])), "{who}");
    }
}

#[test]
fn a_tensor_that_is_damaged_or_gone_is_not_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let out = failing().out();
    for path in ["result.json", "bug/manifest.json", "bug/tensors.safetensors"]
        .into_iter()
        .chain(["numpy/manifest.json", "numpy/tensors.safetensors"])
    {
        let to = dir.path().join(path);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(out.join(path), to).unwrap();
    }
    let page = || {
        let mut report = diff();
        let output =
            report.arg("report").arg(dir.path()).args(["--format", "html"]).output().unwrap();
        assert!(output.status.success(), "{}", texts(&output).1);
        texts(&output).0
    };
    let pictures = |page: &str| page.matches("data:image/png").count();
    assert!(pictures(&page()) > 20);
    let path = dir.path().join("bug/tensors.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data..].iter_mut().for_each(|b| *b ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let damaged = page();
    assert_eq!(pictures(&damaged), 0);
    assert!(damaged.contains("h.2.attn.k is damaged: not the tensor that was saved"));
    std::fs::remove_dir_all(dir.path().join("bug")).unwrap();
    assert!(page().contains("No heat map: "), "and the rest of the page is there");
}

#[test]
fn names_are_text_wherever_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(failing().out().join("result.json")).unwrap();
    let bad = "</script><script>alert(1)</script>";
    let text = text.replace("\"candle\"", &Value::from(bad).to_string());
    std::fs::write(dir.path().join("result.json"), text).unwrap();
    for format in ["html", "svg", "junit"] {
        let output =
            diff().arg("report").arg(dir.path()).args(["--format", format]).output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{stderr}");
        assert!(stdout.contains("alert(1)") && !stdout.contains("<script>alert"), "{format}");
        assert!(!stdout.contains("</script><script>"), "{format}");
    }
}

#[test]
fn the_svg_stands_alone() {
    let svg = failing().report("svg");
    assert!(svg.starts_with("<svg ") && svg.contains("<style>"), "{svg}");
    assert!(svg.contains("first wrong: h.2.attn.k"));
    assert!(!svg.contains("<script") && !svg.contains("url("));
    // Points of four layers, before and after them, and one line an implementation and error.
    for class in ["s0", "s0 inherited", "s1", "s2", "tolerance", "band"] {
        assert!(svg.contains(&format!("<path class=\"{class}\" d=\"M")), "{class}");
    }
}

/// The failing run as one of 24 layers and four implementations: its layers again and again, and a
/// reference that says what another says.
fn large(dir: &Path) {
    let saved = failing();
    let twin = |name: &str| if name == "numpy" { vec!["numpy", "twin"] } else { vec![] };
    let deeper = |point: &str| -> Vec<String> {
        let point: Point = point.parse().unwrap();
        match point.layer {
            None => vec![point.to_string()],
            Some(layer) => {
                let at = |n: usize| Point { layer: Some(layer + 4 * n), ..point }.to_string();
                (0..6).map(at).collect()
            }
        }
    };
    let mut result = saved.result.clone();
    let mut rows = Vec::new();
    for row in result["rows"].as_array().unwrap() {
        let [a, b] = ["a", "b"].map(|key| row[key].as_str().unwrap());
        let or = |names: Vec<&'static str>, name: &str| match names.is_empty() {
            true => vec![name.to_string()],
            false => names.into_iter().map(String::from).collect(),
        };
        let both: Vec<(String, String)> = match a == b {
            true => or(twin(a), a).into_iter().map(|a| (a.clone(), a)).collect(),
            false => {
                let (x, y) = (or(twin(a), a), or(twin(b), b));
                x.iter().flat_map(|a| y.iter().map(|b| (a.clone(), b.clone()))).collect()
            }
        };
        for point in deeper(row["point"].as_str().unwrap()) {
            for (a, b) in &both {
                let parsed: Point = point.parse().unwrap();
                let mut row = row.clone();
                row["checkpoint"] = parsed.checkpoint().number.into();
                row["layer"] = parsed.layer.into();
                (row["point"], row["a"], row["b"]) =
                    (point.clone().into(), a.clone().into(), b.clone().into());
                rows.push(row);
            }
        }
    }
    result["rows"] = rows.into();
    let list = result["implementations"].as_array_mut().unwrap();
    let mut more = list.iter().find(|i| i["name"] == "numpy").unwrap().clone();
    more["name"] = "twin".into();
    list.push(more);
    std::fs::write(dir.join("result.json"), result.to_string()).unwrap();
    for (from, to) in [("bug", "bug"), ("candle", "candle"), ("numpy", "numpy"), ("numpy", "twin")]
    {
        let bundle = Bundle::open(&saved.out().join(from)).unwrap();
        let mut writer = BundleWriter::create(&dir.join(to)).unwrap();
        for e in &bundle.manifest.tensors {
            let tensor = bundle.get(&e.case, e.step, &e.point).unwrap();
            for point in deeper(&e.point) {
                writer.add(&e.case, e.step, &point, &tensor).unwrap();
            }
        }
        writer.finish(Manifest { implementation: to.into(), ..Manifest::default() }).unwrap();
    }
}

#[test]
fn a_page_of_24_layers_and_four_implementations_is_below_5_megabytes() {
    let dir = tempfile::tempdir().unwrap();
    large(dir.path());
    let output = diff().arg("report").arg(dir.path()).args(["--format", "html"]).output().unwrap();
    let (page, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(page.len() < 5_000_000, "{}", page.len());
    // Every failed point has its picture.
    let pictures = page.matches("data:image/png;base64,").count();
    assert!(pictures > 150 && page.contains("h.23.mlp.out"), "{pictures}");
    println!("{} bytes, {pictures} heat maps", page.len());
    let shots = repository().join("target/reports/large");
    std::fs::create_dir_all(&shots).unwrap();
    std::fs::write(shots.join("report.html"), page).unwrap();
}
