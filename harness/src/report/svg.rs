//! The chart of errors along the data flow: layers from left to right, errors on a logarithmic scale.

use askama::Template;
use llorch_trace::Point;

use super::flow::{Errors, Figure, Flow, flow};
use super::numbers::error;
use super::sentences::{Cause, first_cause};
use super::{Exporter, Run, Style};

pub struct Svg;

impl Exporter for Svg {
    fn export(&self, run: &Run<'_>, _: &Style) -> anyhow::Result<String> {
        let cause = first_cause(run.result).map(|cause| match cause {
            Cause::Stage(odd) => odd.point,
            Cause::Row(row) => row.point,
        });
        let chart = Chart::new(&flow(run.result), cause, true);
        Ok(chart.render()? + "\n")
    }
}

const LEFT: f64 = 56.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 46.0;
const TOTAL_HEIGHT: f64 = 230.0;
const LOCAL_HEIGHT: f64 = 170.0;
const BETWEEN: f64 = 58.0;
/// Where the axis has no room for it, an error of 0 stands a bit below the smallest.
const ZERO_BELOW: f64 = 16.0;
/// Errors below this are as good as none.
const FLOOR: f64 = 1e-12;

/// Colours and strokes, in light and dark.
pub const CSS: &str = include_str!("../../templates/chart.css");

#[derive(Debug, Template)]
#[template(path = "chart.svg", escape = "html")]
pub struct Chart {
    pub standalone: bool,
    pub width: String,
    pub height: String,
    pub left: String,
    pub step: String,
    pub count: usize,
    panels: Vec<Panel>,
    layers: Vec<Tick>,
    legend: Vec<Key>,
    cause: Option<Mark>,
    right: String,
    bottom: String,
    top: String,
    empty: bool,
    css: &'static str,
    axis: String,
    cause_y: String,
}

#[derive(Debug)]
struct Panel {
    title: &'static str,
    title_y: String,
    top: String,
    bottom: String,
    decades: Vec<Tick>,
    zero: String,
    tolerance: String,
    band: Vec<String>,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Tick {
    at: String,
    middle: String,
    label: String,
}

#[derive(Debug)]
struct Line {
    class: String,
    path: String,
    dots: Vec<(String, String)>,
}

#[derive(Debug)]
struct Key {
    class: String,
    x: String,
    x2: String,
    text_x: String,
    name: String,
}

#[derive(Debug)]
struct Mark {
    x: String,
    label: String,
    anchor: &'static str,
    text_x: String,
}

/// One of the errors of an implementation at a point.
type Of = fn(&Errors) -> Option<Figure>;

/// The scale of one panel.
struct Scale {
    low: f64,
    high: f64,
    top: f64,
    bottom: f64,
}

impl Scale {
    fn y(&self, figure: Figure) -> f64 {
        match figure {
            None => self.top,
            Some(v) if v < FLOOR => self.bottom,
            Some(v) => {
                let part = (v.log10() - self.low) / (self.high - self.low);
                self.bottom - ZERO_BELOW - part * (self.bottom - ZERO_BELOW - self.top)
            }
        }
    }
}

impl Chart {
    pub fn new(flow: &Flow, cause: Option<Point>, standalone: bool) -> Chart {
        let count = flow.points.len();
        let step = (920.0 / count.max(1) as f64).clamp(3.2, 14.0);
        let width = LEFT + RIGHT + (step * count as f64).max(560.0);
        let x = |i: usize| LEFT + (i as f64 + 0.5) * step;
        let mut panels = Vec::new();
        let mut top = TOP;
        let kinds: [(&'static str, f64, Of); 2] = [
            ("total error: all that went wrong so far", TOTAL_HEIGHT, |e| e.total),
            ("local error: what each stage did by itself", LOCAL_HEIGHT, |e| e.local),
        ];
        for (n, (title, height, of)) in kinds.into_iter().enumerate() {
            let any = flow.series.iter().any(|s| s.errors.iter().any(|e| of(e).is_some()));
            if !any {
                continue;
            }
            if n > 0 {
                top += BETWEEN - 24.0;
            }
            let title =
                if flow.by_oracle { title } else { "distance of each reference from the subject" };
            panels.push(panel(flow, title, top, height, &x, of, n == 0));
            top += height;
        }
        let right = LEFT + step * count as f64;
        let bottom = top;
        Chart {
            standalone,
            width: px(width),
            height: px(bottom + 30.0),
            left: px(LEFT),
            step: px(step),
            count,
            panels,
            layers: layers(flow, step, &x),
            legend: legend(flow),
            cause: cause.and_then(|cause| mark(flow, cause, &x, width)),
            right: px(right),
            bottom: px(bottom),
            top: px(TOP),
            empty: flow.points.is_empty(),
            css: CSS,
            axis: px(bottom + 18.0),
            cause_y: px(TOP + 16.0),
        }
    }
}

fn panel(
    flow: &Flow,
    title: &'static str,
    top: f64,
    height: f64,
    x: &dyn Fn(usize) -> f64,
    of: Of,
    with_inherited: bool,
) -> Panel {
    let every = flow.series.iter().flat_map(|s| s.errors.iter().filter_map(of)).flatten();
    let tolerances = flow.points.iter().map(|p| p.tolerance);
    let seen = every.chain(tolerances).filter(|v| *v >= FLOOR);
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for v in seen {
        (low, high) = (low.min(v.log10().floor()), high.max(v.log10().ceil()));
    }
    if !low.is_finite() {
        (low, high) = (-8.0, 0.0);
    }
    if high - low < 3.0 {
        high = low + 3.0;
    }
    let scale = Scale { low, high, top: top + 6.0, bottom: top + height };
    let decades = (low as i32..=high as i32)
        .filter(|d| high - low <= 8.0 || d % 2 == 0)
        .map(|d| Tick {
            at: px(scale.y(Some(10f64.powi(d)))),
            middle: px(scale.y(Some(10f64.powi(d))) + 3.5),
            label: format!("1e{d}"),
        })
        .collect();
    let mut lines = Vec::new();
    // The subject on top of the others.
    for (n, series) in flow.series.iter().enumerate().rev() {
        let class = format!("s{n}");
        if with_inherited && series.is_subject {
            let points = series.errors.iter().map(|e| e.inherited);
            lines.push(line(&format!("{class} inherited"), points, &scale, x, false));
        }
        lines.push(line(&class, series.errors.iter().map(of), &scale, x, series.is_subject));
    }
    Panel {
        title,
        title_y: px(top - 8.0),
        top: px(scale.top),
        bottom: px(scale.bottom),
        decades,
        zero: px(scale.bottom + 3.5),
        tolerance: steps(flow, &scale, x),
        band: band(flow, &scale, x, of),
        lines,
    }
}

fn line(
    class: &str,
    figures: impl Iterator<Item = Option<Figure>>,
    scale: &Scale,
    x: &dyn Fn(usize) -> f64,
    dots: bool,
) -> Line {
    let mut path = String::new();
    let mut all = Vec::new();
    let mut pen_down = false;
    for (i, figure) in figures.enumerate() {
        let Some(figure) = figure else {
            pen_down = false;
            continue;
        };
        let (x, y) = (px(x(i)), px(scale.y(figure)));
        path.push_str(&format!("{}{x} {y}", if pen_down { "L" } else { "M" }));
        pen_down = true;
        if dots {
            all.push((x, y));
        }
    }
    Line { class: class.into(), path, dots: if all.len() > 120 { Vec::new() } else { all } }
}

/// The tolerance as a line of steps; none where equality is asked for.
fn steps(flow: &Flow, scale: &Scale, x: &dyn Fn(usize) -> f64) -> String {
    let mut path = String::new();
    let half = (x(1) - x(0)) / 2.0;
    let mut last = None;
    for (i, point) in flow.points.iter().enumerate() {
        if point.tolerance == 0.0 {
            last = None;
            continue;
        }
        let y = px(scale.y(Some(point.tolerance)));
        if last.as_ref() != Some(&y) {
            path.push_str(&format!(
                "{}{} {y}",
                if last.is_some() { "L" } else { "M" },
                px(x(i) - half)
            ));
        }
        path.push_str(&format!("L{} {y}", px(x(i) + half)));
        last = Some(y);
    }
    path
}

/// Between the smallest and the largest reference, one area a run of points.
fn band(flow: &Flow, scale: &Scale, x: &dyn Fn(usize) -> f64, of: Of) -> Vec<String> {
    if !flow.by_oracle {
        return Vec::new();
    }
    let bands: Vec<Option<(f64, f64)>> = (0..flow.points.len()).map(|i| flow.band(i, of)).collect();
    let mut areas = Vec::new();
    let mut i = 0;
    while i < bands.len() {
        let from = i;
        while i < bands.len() && bands[i].is_some() {
            i += 1;
        }
        if i > from + 1 {
            let edge = |j: usize, high: bool| {
                let (low, top) = bands[j].unwrap_or_default();
                format!("{} {}", px(x(j)), px(scale.y(Some(if high { top } else { low }))))
            };
            let over: Vec<String> = (from..i).map(|j| edge(j, true)).collect();
            let under: Vec<String> = (from..i).rev().map(|j| edge(j, false)).collect();
            areas.push(format!("M{}L{}Z", over.join("L"), under.join("L")));
        }
        i = i.max(from + 1);
    }
    areas
}

/// Where layers begin, and their numbers as far as they have room.
fn layers(flow: &Flow, step: f64, x: &dyn Fn(usize) -> f64) -> Vec<Tick> {
    let mut found: Vec<(usize, usize, Option<usize>)> = Vec::new();
    for (i, point) in flow.points.iter().enumerate() {
        match found.last_mut() {
            Some((_, end, layer)) if *layer == point.point.layer => *end = i,
            _ => found.push((i, i, point.point.layer)),
        }
    }
    // Every layer's number where there is room for it, else every second, fifth, tenth.
    let wide = found.iter().filter(|(_, _, l)| l.is_some()).map(|(from, to, _)| x(*to) - x(*from));
    let wide = wide.fold(f64::INFINITY, f64::min) + step;
    let every = [1, 2, 5, 10, 20].into_iter().find(|n| wide * *n as f64 >= 54.0).unwrap_or(50);
    let label = |layer: Option<usize>, i: usize| match layer {
        Some(n) if n % every == 0 => format!("layer {n}"),
        Some(_) => String::new(),
        None if i == 0 => "input".into(),
        None => "output".into(),
    };
    let tick = |(from, to, layer): (usize, usize, Option<usize>)| Tick {
        at: px(x(from) - step / 2.0),
        middle: px((x(from) + x(to)) / 2.0),
        label: match layer {
            // A single point is no room for two words side by side.
            Some(0) if wide < 100.0 => String::new(),
            layer => label(layer, from),
        },
    };
    found.into_iter().map(tick).collect()
}

fn legend(flow: &Flow) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut at = LEFT;
    let mut add = |class: String, name: String| {
        let wide = 30.0 + 6.4 * name.chars().count() as f64 + 14.0;
        keys.push(Key { class, x: px(at), x2: px(at + 22.0), text_x: px(at + 28.0), name });
        at += wide;
    };
    for (n, series) in flow.series.iter().enumerate() {
        add(format!("s{n}"), series.name.clone());
        if series.is_subject && series.errors.iter().any(|e| e.inherited.is_some()) {
            add(format!("s{n} inherited"), "inherited".into());
        }
    }
    if flow.by_oracle && flow.series.iter().filter(|s| !s.is_subject).count() > 1 {
        add("band".into(), "references".into());
    }
    add("tolerance".into(), "tolerance".into());
    keys
}

fn mark(flow: &Flow, cause: Point, x: &dyn Fn(usize) -> f64, width: f64) -> Option<Mark> {
    let i = flow.points.iter().position(|p| p.point == cause)?;
    let (at, label) = (x(i), format!("first wrong: {cause}"));
    let left = at + 7.0 * label.len() as f64 > width;
    Some(Mark {
        x: px(at),
        label,
        anchor: if left { "end" } else { "start" },
        text_x: px(if left { at - 5.0 } else { at + 5.0 }),
    })
}

/// A tenth of a pixel is fine enough.
fn px(v: f64) -> String {
    let text = format!("{v:.1}");
    text.strip_suffix(".0").map(String::from).unwrap_or(text)
}

/// As a reader sees it where there is no row, or no finite figure.
pub fn figure(f: Option<Figure>) -> String {
    f.map_or("–".into(), error)
}
