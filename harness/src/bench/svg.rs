//! A bench as bars: a panel for each dtype, number of threads and rate, with the machine's limit where it is known.

use askama::Template;

use super::record::{BenchResult, Metric, Row};
use super::shown::{columns, grids};
use crate::report::CHART_CSS;

const WIDTH: f64 = 720.0;
/// Names stand to the left of the bars, figures to the right.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 110.0;
const BAR: f64 = 18.0;
const HEADING: f64 = 34.0;

#[derive(Template)]
#[template(path = "bench.svg", escape = "html")]
struct Chart {
    width: f64,
    height: f64,
    left: f64,
    css: &'static str,
    panels: Vec<Panel>,
}

struct Panel {
    title: String,
    y: f64,
    bars: Vec<Bar>,
    /// Where the limit stands, from `top` to `bottom`.
    limit: Option<f64>,
    top: f64,
    bottom: f64,
}

struct Bar {
    name: String,
    ours: bool,
    y: f64,
    text_y: f64,
    width: String,
    label_x: String,
    label: String,
}

pub fn chart(result: &BenchResult) -> anyhow::Result<String> {
    let mut panels = Vec::new();
    let mut y = 8.0;
    for grid in grids(result) {
        for (metric, prompt) in columns(result).into_iter().filter(|(m, _)| m.more_is_better()) {
            let engines = result.engines.iter();
            let rows: Vec<&Row> =
                engines.filter_map(|e| result.row(&e.name, grid.job, metric, prompt)).collect();
            if rows.is_empty() {
                continue;
            }
            let what = match metric {
                Metric::Prefill => format!("prefill of {prompt}"),
                Metric::BatchDecode => {
                    format!("decode of {} at once after {prompt}", result.settings.batch)
                }
                _ => format!("decode after {prompt}"),
            };
            let panel = panel(result, &rows, format!("{}: {what}, tokens/s", grid.job), y);
            y = panel.bottom + 12.0;
            panels.push(panel);
        }
    }
    let chart = Chart { width: WIDTH, height: y.max(40.0), left: LEFT, css: CHART_CSS, panels };
    Ok(chart.render()? + "\n")
}

fn panel(result: &BenchResult, rows: &[&Row], title: String, y: f64) -> Panel {
    let limit = rows.iter().find_map(|row| row.limit());
    let largest = rows.iter().map(|row| row.median).chain(limit).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / largest;
    let top = y + HEADING - 6.0;
    let bars = rows.iter().enumerate().map(|(i, row)| {
        let (at, width) = (y + HEADING + i as f64 * BAR, row.median * scale);
        Bar {
            name: row.engine.clone(),
            ours: row.engine == result.subject,
            y: at,
            text_y: at + 10.0,
            width: format!("{width:.1}"),
            label_x: format!("{:.1}", LEFT + width + 6.0),
            label: format!("{:.1}", row.median),
        }
    });
    Panel {
        title,
        y: y + 16.0,
        bars: bars.collect(),
        limit: limit.map(|limit| ((LEFT + limit * scale) * 10.0).round() / 10.0),
        top,
        bottom: y + HEADING + rows.len() as f64 * BAR,
    }
}
