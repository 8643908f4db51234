//! What every form of a bench says: a grid for each dtype and number of threads, and the sentences around them.

use super::args::Format;
use super::measure::Job;
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
    pub job: Job,
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
    let jobs = settings.dtypes.iter().flat_map(|&precision| {
        settings.threads.iter().map(move |&threads| Job { precision, threads })
    });
    jobs.map(|job| grid(result, job)).filter(|grid| !grid.rows.is_empty()).collect()
}

/// The figures of a grid, left to right.
pub fn columns(result: &BenchResult) -> Vec<(Metric, usize)> {
    let prompts = &result.settings.prompts;
    let long = prompts.iter().filter(|p| **p >= PROMPT_WORTH_SHOWING || prompts.len() == 1);
    let shortest = prompts.iter().min().copied().unwrap_or(0);
    let prefill = long.map(|p| (Metric::Prefill, *p));
    let decode = prompts.iter().map(|p| (Metric::Decode, *p));
    let has_batch =
        |p: &&usize| result.rows.iter().any(|r| (r.metric, r.prompt) == (Metric::BatchDecode, **p));
    let batch = prompts.iter().filter(has_batch).map(|p| (Metric::BatchDecode, *p));
    let once = [(Metric::FirstToken, shortest), (Metric::Load, 0), (Metric::PeakMemory, 0)];
    prefill.chain(decode).chain(batch).chain(once).collect()
}

fn grid(result: &BenchResult, job: Job) -> Grid {
    let columns = columns(result);
    let mut header = vec!["engine".to_string()];
    header.extend(columns.iter().map(|(metric, prompt)| metric.of(*prompt)));
    let judged = if is_narrow(job.precision) { "noise" } else { "error" };
    header.extend([
        format!("{judged} (bound)"),
        "same top".into(),
        "KL".into(),
        "perplexity".into(),
    ]);
    let mut rows = Vec::new();
    for engine in &result.engines {
        let of =
            |(metric, prompt): &(Metric, usize)| result.row(&engine.name, job, *metric, *prompt);
        let checks =
            engine.checks.iter().find(|c| (c.dtype, c.threads) == (job.precision, job.threads));
        let Some(record) = checks.filter(|_| columns.iter().any(|c| of(c).is_some())) else {
            continue;
        };
        let check = &record.check;
        let mut row = vec![engine.name.clone()];
        row.extend(columns.iter().map(|column| of(column).map_or("–".into(), cell)));
        row.push(format!("{:.1e} ({:.1e})", check.judged(job.precision), check.bound));
        row.push(format!("{}/{}", check.same_top, check.steps));
        row.push(format!("{:.1e}", check.kl));
        row.push(format!("{:.4}×", check.perplexity / check.oracle_perplexity));
        rows.push(row);
    }
    if !rows.is_empty() {
        rows.extend(limits(result, job));
    }
    Grid { job, header, rows }
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
fn limits(result: &BenchResult, job: Job) -> Option<Vec<String>> {
    let of = |(metric, prompt): &(Metric, usize)| {
        let limit = result.rows_of(job, *metric, *prompt).find_map(Row::limit);
        limit.map(|limit| figure(*metric, limit))
    };
    let limits: Vec<Option<String>> = columns(result).iter().map(of).collect();
    limits.iter().any(Option::is_some).then(|| {
        let cells = limits.into_iter().map(|cell| cell.unwrap_or_default());
        let none = std::iter::repeat_n(String::new(), 4);
        std::iter::once("machine's limit".to_string()).chain(cells).chain(none).collect()
    })
}

/// What the figures are.
pub fn legend(result: &BenchResult) -> String {
    let settings = &result.settings;
    let batch = match result.rows.iter().find(|row| row.metric == Metric::BatchDecode) {
        Some(row) => {
            format!("; batch: of {} at once, all their tokens", count(row.batch, "sequence"))
        }
        None => String::new(),
    };
    format!(
        "prefill and decode in tokens/s, {} decoded{batch}; median of {}, asked in turn; ±: half of the range; ×: how many \
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
        if machine.cpu.is_empty() { String::new() } else { format!("{}, ", machine.cpu) },
        machine.system,
        count(machine.cores, "core")
    )];
    for (threads, read) in &machine.read_gb_s {
        let rates = [
            (&machine.f32_gflop_s, "GFLOP/s in f32"),
            (&machine.bf16_gflop_s, "GFLOP/s in bf16"),
            (&machine.int8_gop_s, "GOP/s in int8"),
        ];
        let rates = rates.iter().filter_map(|(rates, unit)| Some((rates.get(threads)?, unit)));
        let operations: String = rates.map(|(rate, unit)| format!(", {rate:.0} {unit}")).collect();
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
                Job { precision: dtype, threads }.to_string()
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
        let rows = columns(result)
            .into_iter()
            .filter_map(|(metric, prompt)| result.row(&result.subject, grid.job, metric, prompt));
        rows.filter_map(|row| Some((row, row.of_limit?)))
            .map(|(row, part)| format!("{} {:.0} %", row.metric.of(row.prompt), 100.0 * part))
            .collect()
    };
    let grids = grids(result).into_iter().map(|grid| (grid.job, parts(&grid)));
    grids
        .filter(|(_, parts)| !parts.is_empty())
        .map(|(job, parts)| format!("{job}: {}", parts.join(", ")))
        .collect()
}

/// How far the subject is from the best of its peers, for each grid and figure.
pub fn against_the_best(result: &BenchResult) -> Vec<String> {
    let mut lines = Vec::new();
    for grid in grids(result) {
        let mut parts = Vec::new();
        for (metric, prompt) in columns(result) {
            let rows = result.rows_of(grid.job, metric, prompt);
            let peers = rows.filter_map(|row| Some((row.ratio?, &row.engine)));
            // The best peer is the one against whom the subject looks worst.
            let Some((ratio, engine)) = peers.min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
            parts.push(format!("{} {ratio:.2}× {engine}", metric.of(prompt)));
        }
        if !parts.is_empty() {
            lines.push(format!("{}: {}", grid.job, parts.join(", ")));
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
