//! What every form of a bench says: a grid for each dtype and number of threads, and the sentences around them.

use llorch_trace::Precision;

use super::args::Format;
use super::record::{BenchResult, Metric, Row, Why};
use super::truth::is_narrow;
use super::{markdown, svg, table};
use crate::provision::disk::human_bytes;
use crate::report::numbers;
use crate::text::count;

/// Prompts shorter than this are read as tokens are decoded, and say nothing of their own.
const PROMPT_WORTH_SHOWING: usize = 16;

/// Engines down, figures across.
pub struct Grid {
    pub dtype: Precision,
    pub threads: usize,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

pub fn show(result: &BenchResult, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table::tables(result),
        Format::Md => markdown::page(result),
        Format::Svg => svg::chart(result)?,
        Format::Json => serde_json::to_string_pretty(result)? + "\n",
    })
}

pub fn grids(result: &BenchResult) -> Vec<Grid> {
    let settings = &result.settings;
    let jobs = settings.dtypes.iter().flat_map(|d| settings.threads.iter().map(move |t| (*d, *t)));
    jobs.map(|(dtype, threads)| grid(result, dtype, threads))
        .filter(|grid| !grid.rows.is_empty())
        .collect()
}

/// The figures of a grid, left to right.
pub fn columns(result: &BenchResult) -> Vec<(Metric, usize)> {
    let prompts = &result.settings.prompts;
    let long = prompts.iter().filter(|p| **p >= PROMPT_WORTH_SHOWING || prompts.len() == 1);
    let shortest = prompts.iter().min().copied().unwrap_or(0);
    let prefill = long.map(|p| (Metric::Prefill, *p));
    let decode = prompts.iter().map(|p| (Metric::Decode, *p));
    let once = [(Metric::FirstToken, shortest), (Metric::Load, 0), (Metric::PeakMemory, 0)];
    prefill.chain(decode).chain(once).collect()
}

fn grid(result: &BenchResult, dtype: Precision, threads: usize) -> Grid {
    let columns = columns(result);
    let title = |(metric, prompt): &(Metric, usize)| what(*metric, *prompt);
    let mut header = vec!["engine".to_string()];
    header.extend(columns.iter().map(title));
    let judged = if is_narrow(dtype) { "noise" } else { "error" };
    header.extend([format!("{judged} (bound)"), "same top".into(), "KL".into()]);
    let mut rows = Vec::new();
    for engine in &result.engines {
        let of = |(metric, prompt): &(Metric, usize)| {
            result.row(&engine.name, dtype, threads, *metric, *prompt)
        };
        let check = engine.checks.iter().find(|c| (c.dtype, c.threads) == (dtype, threads));
        let Some(check) = check.filter(|_| columns.iter().any(|c| of(c).is_some())) else {
            continue;
        };
        let mut row = vec![engine.name.clone()];
        row.extend(columns.iter().map(|column| of(column).map_or("–".into(), cell)));
        let check_of = &check.check;
        row.push(format!("{:.1e} ({:.1e})", check_of.judged(dtype), check_of.bound));
        row.push(format!("{}/{}", check.check.same_top, check.check.steps));
        row.push(format!("{:.1e}", check.check.kl));
        rows.push(row);
    }
    if !rows.is_empty() {
        rows.extend(limits(result, dtype, threads));
    }
    Grid { dtype, threads, header, rows }
}

/// `61.7 ±2%`, and how many times as good the subject is: `41.9 ±3% 1.47×`.
fn cell(row: &Row) -> String {
    let mut text = figure(row.metric, row.median);
    if row.runs > 1 {
        text += &format!(" ±{:.0}%", 50.0 * (row.max - row.min) / row.median);
    }
    if let Some(ratio) = row.ratio {
        text += &format!(" {ratio:.2}×");
    }
    text
}

fn figure(metric: Metric, x: f64) -> String {
    match metric {
        Metric::PeakMemory => human_bytes(x as u64),
        Metric::Load | Metric::FirstToken => format!("{x:.2} s"),
        _ if x >= 200.0 => format!("{x:.0}"),
        _ => format!("{x:.1}"),
    }
}

/// What the machine allows of each column, where that is known.
fn limits(result: &BenchResult, dtype: Precision, threads: usize) -> Option<Vec<String>> {
    let of = |(metric, prompt): &(Metric, usize)| {
        let rows = result.rows.iter().filter(|row| {
            (row.dtype, row.threads, row.metric, row.prompt) == (dtype, threads, *metric, *prompt)
        });
        let mut limits = rows.filter_map(|row| Some(row.median / row.of_limit?));
        limits.next().map(|limit| figure(*metric, limit))
    };
    let limits: Vec<Option<String>> = columns(result).iter().map(of).collect();
    limits.iter().any(Option::is_some).then(|| {
        let cells = limits.into_iter().map(|cell| cell.unwrap_or_default());
        let none = std::iter::repeat_n(String::new(), 3);
        std::iter::once("machine's limit".to_string()).chain(cells).chain(none).collect()
    })
}

pub fn title(grid: &Grid) -> String {
    format!("{}, {}", grid.dtype, count(grid.threads, "thread"))
}

/// What the figures are.
pub fn legend(result: &BenchResult) -> String {
    let settings = &result.settings;
    format!(
        "prefill and decode in tokens/s, {} decoded; median of {}, asked in turn; ±: half of the range; ×: how many \
         times as good {} is",
        count(settings.decode, "token"),
        count(settings.rounds, "round"),
        result.subject
    )
}

/// One line a number of threads.
pub fn machine(result: &BenchResult) -> Vec<String> {
    let machine = &result.machine;
    let mut lines = vec![format!(
        "machine: {}{}, {}",
        if machine.cpu.is_empty() { "" } else { machine.cpu.as_str() },
        if machine.cpu.is_empty() {
            machine.system.clone()
        } else {
            format!(", {}", machine.system)
        },
        count(machine.cores, "core")
    )];
    for (threads, read) in &machine.read_gb_s {
        let operations = machine.f32_gflop_s.get(threads);
        let operations = operations.map(|o| format!(", {o:.0} GFLOP/s in f32")).unwrap_or_default();
        lines.push(format!(
            "limits of {}: {read:.1} GB/s read{operations}",
            count(*threads, "thread")
        ));
    }
    lines
}

/// Who isn't in the tables, and why; equal reasons are told once.
pub fn left_out(result: &BenchResult) -> Vec<String> {
    let mut told: Vec<(String, String, Vec<String>)> = Vec::new();
    for left in &result.unmeasured {
        let word = match left.why {
            Why::Missing => "UNCHECKED",
            Why::Unsupported => "not measured",
            Why::Failed => "ERROR",
            Why::Wrong => "WRONG OUTPUT",
        };
        let what = left.dtype.map(|dtype| match left.threads {
            Some(threads) if left.why != Why::Unsupported => {
                format!("{dtype}, {}", count(threads, "thread"))
            }
            _ => dtype.to_string(),
        });
        // What an engine's stderr ended with is in the JSON.
        let reason = format!("{word}: {}", left.reason.lines().next().unwrap_or_default());
        let known = told.iter_mut().find(|(e, r, _)| *e == left.engine && *r == reason);
        match known {
            Some((_, _, jobs)) => jobs.extend(what.filter(|w| !jobs.contains(w))),
            None => told.push((left.engine.clone(), reason, what.into_iter().collect())),
        }
    }
    let line = |(engine, reason, jobs): &(String, String, Vec<String>)| match jobs.as_slice() {
        [] => format!("{engine}: {reason}"),
        jobs => format!("{engine} ({}): {reason}", numbers::list(jobs)),
    };
    told.iter().map(line).collect()
}

/// What part of the machine's limit the subject reaches, for each grid.
pub fn of_the_limit(result: &BenchResult) -> Vec<String> {
    let parts = |grid: &Grid| -> Vec<String> {
        let rows = columns(result).into_iter().filter_map(|(metric, prompt)| {
            result.row(&result.subject, grid.dtype, grid.threads, metric, prompt)
        });
        rows.filter_map(|row| Some((row, row.of_limit?)))
            .map(|(row, part)| format!("{} {:.0} %", what(row.metric, row.prompt), 100.0 * part))
            .collect()
    };
    let grids = grids(result).into_iter().map(|grid| (title(&grid), parts(&grid)));
    grids
        .filter(|(_, parts)| !parts.is_empty())
        .map(|(title, parts)| format!("{title}: {}", parts.join(", ")))
        .collect()
}

fn what(metric: Metric, prompt: usize) -> String {
    match metric {
        Metric::Prefill => format!("prefill {prompt}"),
        Metric::Decode => format!("decode after {prompt}"),
        Metric::FirstToken => "first token".into(),
        Metric::Load => "load".into(),
        Metric::PeakMemory => "peak memory".into(),
    }
}

/// How far the subject is from the best of its peers, for each grid and figure.
pub fn against_the_best(result: &BenchResult) -> Vec<String> {
    let mut lines = Vec::new();
    for grid in grids(result) {
        let mut parts = Vec::new();
        for (metric, prompt) in columns(result) {
            let peers = result.rows.iter().filter(|row| {
                row.ratio.is_some()
                    && (row.dtype, row.threads) == (grid.dtype, grid.threads)
                    && (row.metric, row.prompt) == (metric, prompt)
            });
            // The best peer is the one against whom the subject looks worst.
            let best =
                peers.min_by(|a, b| a.ratio.unwrap_or(0.0).total_cmp(&b.ratio.unwrap_or(0.0)));
            let Some(best) = best else { continue };
            let what = what(metric, prompt);
            parts.push(format!("{what} {:.2}× {}", best.ratio.unwrap_or(0.0), best.engine));
        }
        if !parts.is_empty() {
            lines.push(format!("{}: {}", title(&grid), parts.join(", ")));
        }
    }
    lines
}

/// `llorch-cpud beside the best peer of each figure`, where there is a peer.
pub fn first_line(result: &BenchResult) -> String {
    let measured = |name: &str| result.rows.iter().any(|row| row.engine == name);
    let peers = result.engines.iter().skip(1).filter(|e| measured(&e.name)).count();
    let weights = format!("model {} ({})", result.model.name, result.model.source);
    match measured(&result.subject) {
        false => format!("{} was not measured · {weights}", result.subject),
        true => {
            let beside = match peers {
                0 => "alone".to_string(),
                peers => format!("beside {} with right output", count(peers, "peer")),
            };
            let took = numbers::seconds(result.seconds);
            format!("{} {beside} · {weights} · {took}", result.subject)
        }
    }
}
