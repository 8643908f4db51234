//! A series as a picture.

use askama::Template;

use super::series::Series;
use crate::report::CHART_CSS;

const LEFT: f64 = 56.0;
const TOP: f64 = 64.0;
const HEIGHT: f64 = 240.0;
const WIDTH: f64 = 720.0;

#[derive(Debug, Template)]
#[template(path = "history.svg", escape = "html")]
struct Picture {
    css: &'static str,
    title: String,
    says: &'static str,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    decades: Vec<(f64, String)>,
    lines: Vec<Drawn>,
    changes: Vec<(f64, String)>,
    dates: Vec<(f64, String)>,
}

#[derive(Debug)]
struct Drawn {
    class: String,
    name: String,
    key: f64,
    path: String,
    /// Where, and what a pointer is told.
    dots: Vec<(f64, f64, String)>,
}

pub fn picture(series: &Series<'_>) -> anyhow::Result<String> {
    let (low, high) = series.decades();
    let bottom = TOP + HEIGHT;
    let y = |v: f64| match v > 0.0 {
        true => tenth(bottom - 18.0 - (v.log10() - low) / (high - low) * (HEIGHT - 18.0)),
        false => bottom,
    };
    let count = series.runs.len().max(1);
    let x = |i: usize| tenth(LEFT + (i as f64 + 0.5) * WIDTH / count as f64);
    let mut key = LEFT;
    let mut lines = Vec::new();
    for (n, line) in series.lines.iter().enumerate() {
        let mut path = String::new();
        let mut dots = Vec::new();
        let mut pen_down = false;
        for (i, value) in line.values.iter().enumerate() {
            let Some(value) = value else {
                pen_down = false;
                continue;
            };
            path.push_str(&format!("{}{} {}", if pen_down { "L" } else { "M" }, x(i), y(*value)));
            pen_down = true;
            let run = series.runs[i];
            dots.push((x(i), y(*value), format!("{} {}: {value:.3e}", line.name, run.started)));
        }
        lines.push(Drawn {
            class: format!("s{}", n.min(9)),
            name: line.name.clone(),
            key: tenth(key),
            path,
            dots,
        });
        key += 44.0 + 6.4 * line.name.chars().count() as f64;
    }
    let changes = series.lines.iter().flat_map(|l| {
        let told = |(i, old, new): &(usize, String, String)| {
            (tenth(x(*i) - WIDTH / count as f64 / 2.0), format!("{}: {old} → {new}", l.name))
        };
        l.versions.iter().map(told)
    });
    let day = |i: usize| (x(i), series.runs[i].started[..10].to_string());
    let dates = match series.runs.len() {
        0 => Vec::new(),
        1 => vec![day(0)],
        n => vec![day(0), day(n - 1)],
    };
    let decades = (low as i32..=high as i32).map(|d| (y(10f64.powi(d)), format!("1e{d}")));
    let picture = Picture {
        css: CHART_CSS,
        title: series.title(),
        says: series.error.says(),
        width: (LEFT + WIDTH + 24.0).max(key),
        height: bottom + 34.0,
        left: LEFT,
        right: LEFT + WIDTH,
        top: TOP,
        bottom,
        decades: decades
            .chain(series.figures().any(|v| v == 0.0).then(|| (bottom, "0".to_string())))
            .collect(),
        lines,
        changes: changes.collect(),
        dates,
    };
    Ok(picture.render()? + "\n")
}

/// A tenth of a pixel is fine enough.
fn tenth(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}
