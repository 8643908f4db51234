//! `llorch-diff golden review`: what was recorded against what is accepted, and which of it is
//! accepted.
//!
//! Reading order: [`pending`] is what waits and [`changes`] what is decided as one; [`errors`] holds both
//! sides to the oracle; [`view`] is what is shown, [`show`] shows it, [`ask`] asks about it. [`decide`] does
//! what was answered: [`mixture`] writes the bundle, [`commit`] puts it in place so that nothing is lost
//! whenever the program ends, by [`disk`]'s steps, in a [`place`] that nobody else is in.

mod ask;
pub mod changes;
pub mod commit;
pub mod decide;
pub mod disk;
pub mod errors;
pub mod mixture;
pub mod pending;
pub mod place;
pub mod show;
#[cfg(test)]
mod tests;
pub mod view;

use std::io::IsTerminal;
use std::path::PathBuf;

use llorch_trace::points::glob_matches;

use self::decide::{Decision, decide};
use self::pending::Pending;
use self::place::Place;
use self::view::{Decided, Review};
use super::stop::{self, Stop};
use crate::report::Format;

/// Review what `golden record` recorded: show old against new, accept or reject one by one.
///
/// Each tensor that changes is shown with both errors against the float64 oracle. At a terminal it
/// asks about one point of a bundle after the other; tensors of a case whose generated text changes
/// go together, and so does a bundle whose weights change. What is accepted, and why, is kept in
/// reviews.jsonl beside the goldens. Elsewhere it only shows, unless --accept-all or --reject-all says
/// what to do.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  nothing is pending any more
  1  something is
  2  usage, or pending or accepted goldens that are damaged
  3  environment: a file could not be written, another process is at it")]
pub struct Args {
    /// The folder that holds hf-f32 and hf-f64
    #[arg(long, value_name = "DIR", default_value = place::DEFAULT)]
    pub dir: PathBuf,
    /// Only units whose name fits, e.g. 'hf-f32/h.*.attn.scores'
    #[arg(long, value_name = "GLOB")]
    pub only: Option<String>,
    /// Accept all that is pending
    #[arg(long, requires = "reason", conflicts_with = "reject_all")]
    pub accept_all: bool,
    /// Reject all that is pending
    #[arg(long, requires = "reason")]
    pub reject_all: bool,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
    /// Show every tensor, not only those of a unit that change most
    #[arg(long)]
    pub all: bool,
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it is empty: say what changed and why it is right".into()),
        text => Ok(text.to_string()),
    }
}

pub fn run(args: &Args) -> anyhow::Result<u8> {
    Ok(stop::exit_code(review(args)))
}

fn review(args: &Args) -> Result<u8, Stop> {
    let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let asks = at_terminal && args.format == Format::Table;
    if args.reason.is_some() && !(args.accept_all || args.reject_all || asks) {
        return Err(Stop::input(
            "--reason says why, but nothing is decided; expected --accept-all or --reject-all beside it"
                .to_string(),
        ));
    }
    let place = Place::enter(&args.dir)?;
    let Some(mut pending) = Pending::read(&place.dir)? else {
        print(args, &Review::nothing(&args.dir))?;
        return Ok(0);
    };
    let all = pending.units().count();
    if all == 0 {
        // The accepted goldens have become what was pending, by another way than a review.
        decide(&place, &[], Decision::Rejected, "")?;
        print(args, &Review::nothing(&args.dir))?;
        return Ok(0);
    }
    let mut left_out = Vec::new();
    if let Some(glob) = &args.only {
        for pair in &mut pending.pairs {
            let fits = |name: &str| glob_matches(glob, name);
            left_out.extend(pair.units.iter().map(|u| u.name.clone()).filter(|n| !fits(n)));
            pair.units.retain(|u| fits(&u.name));
        }
        if left_out.len() == all {
            let some: Vec<&str> = left_out.iter().take(5).map(String::as_str).collect();
            let more = if all > some.len() { ", …" } else { "" };
            return Err(Stop::input(format!(
                "no pending unit fits {glob:?}; there are {}{more}",
                some.join(", ")
            )));
        }
    }
    let mut review = Review::of(&args.dir, &pending)?;
    // Their files are mapped, and about to change places.
    drop(pending);
    let reason = args.reason.as_deref();
    let said = match (args.accept_all, args.reject_all) {
        (true, _) => Some(Decision::Accepted),
        (_, true) => Some(Decision::Rejected),
        _ => None,
    };
    if let (Some(decision), Some(reason)) = (said, reason) {
        let names = std::mem::take(&mut review.pending);
        decide(&place, &names, decision, reason)?;
        let one = |unit| Decided { unit, decision, reason: reason.to_string() };
        review.decided = names.into_iter().map(one).collect();
        review.pending = left_out;
        print(args, &review)?;
    } else {
        review.pending.extend(left_out);
        if asks {
            let (mut input, mut out) = (std::io::stdin().lock(), std::io::stdout().lock());
            ask::ask(&place, &mut review, reason, &mut input, &mut out)?;
            let left = review.pending.len();
            drop(out);
            stop::print(&format!("{} decided, {left} pending", review.decided.len()))?;
        } else {
            print(args, &review)?;
        }
    }
    Ok(u8::from(!review.pending.is_empty()))
}

fn print(args: &Args, review: &Review) -> Result<(), Stop> {
    stop::print(&match args.format {
        Format::Json => serde_json::to_string_pretty(review).map_err(Stop::environment)?,
        Format::Table => show::text(review, args.all, false),
        Format::Md => show::text(review, args.all, true),
    })
}
