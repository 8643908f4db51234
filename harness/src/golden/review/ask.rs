//! One unit after the other, at a terminal. What is decided is on the disk before the next question.

use std::io::{BufRead, Write};

use super::decide::{Decision, decide};
use super::place::Place;
use super::show;
use super::view::{Decided, Review};
use crate::golden::stop::Stop;
use crate::text::count;

const HELP: &str = "\
  a  accept it: the new tensors take the places of the old ones
  r  reject it: the old tensors stay, the new ones are forgotten
  s  skip it: it stays pending
  d  show all its tensors
  A  accept this and all that are left, for one reason
  R  reject this and all that are left, for one reason
  q  stop here: what is left stays pending
Accepting and rejecting asks for a reason, which is kept in reviews.jsonl; Enter takes the last one.
";

/// Asks about every unit; what was decided is added to the review.
pub fn ask(
    place: &Place,
    review: &mut Review,
    given: Option<&str>,
    input: &mut dyn BufRead,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let broken =
        |e: std::io::Error| Stop::environment(format!("failed to talk to the terminal: {e}"));
    let mut decided: Vec<Decided> = Vec::new();
    let mut last: Option<String> = given.map(str::to_string);
    let units: Vec<_> = review.units().collect();
    let mut at = 0;
    let mut bundle = "";
    while let Some((of, unit)) = units.get(at) {
        if of.bundle != bundle {
            bundle = &of.bundle;
            writeln!(out, "\n{}\n", show::versions(of)).map_err(broken)?;
        }
        writeln!(out, "{}", show::unit(unit, false)).map_err(broken)?;
        let (decision, names) = loop {
            let place = format!("{} of {}", at + 1, units.len());
            let question =
                format!("{place}: {} [a]ccept [r]eject [s]kip [d]etails [q]uit [?] ", unit.unit);
            let Some(answer) = line(input, out, &question).map_err(broken)? else {
                break (None, Vec::new());
            };
            let rest = || units[at..].iter().map(|(_, u)| u.unit.clone()).collect::<Vec<_>>();
            match answer.as_str() {
                "a" | "accept" => break (Some(Decision::Accepted), vec![unit.unit.clone()]),
                "r" | "reject" => break (Some(Decision::Rejected), vec![unit.unit.clone()]),
                "A" => break (Some(Decision::Accepted), rest()),
                "R" => break (Some(Decision::Rejected), rest()),
                "s" | "skip" => break (None, vec![unit.unit.clone()]),
                "q" | "quit" => break (None, Vec::new()),
                "d" | "details" => {
                    writeln!(out, "{}", show::unit(unit, true)).map_err(broken)?;
                }
                _ => write!(out, "{HELP}").map_err(broken)?,
            }
        };
        if names.is_empty() {
            break;
        }
        if let Some(decision) = decision {
            let reason = match given {
                Some(reason) => reason.to_string(),
                None => match reason(input, out, last.as_deref()).map_err(broken)? {
                    Some(reason) => reason,
                    None => break,
                },
            };
            decide(place, &names, decision, &reason)?;
            let word = if decision == Decision::Accepted { "accepted" } else { "rejected" };
            writeln!(out, "{word} {}\n", count(names.len(), "unit")).map_err(broken)?;
            let all = names.iter().map(|unit| Decided {
                unit: unit.clone(),
                decision,
                reason: reason.clone(),
            });
            decided.extend(all);
            last = Some(reason);
        }
        at += names.len();
    }
    review.pending.retain(|unit| !decided.iter().any(|d| d.unit == *unit));
    review.decided.extend(decided);
    Ok(())
}

/// None at the end of the input.
fn line(
    input: &mut dyn BufRead,
    out: &mut dyn Write,
    question: &str,
) -> std::io::Result<Option<String>> {
    write!(out, "{question}")?;
    out.flush()?;
    let mut answer = String::new();
    match input.read_line(&mut answer)? {
        0 => writeln!(out).map(|()| None),
        _ => Ok(Some(answer.trim().to_string())),
    }
}

fn reason(
    input: &mut dyn BufRead,
    out: &mut dyn Write,
    last: Option<&str>,
) -> std::io::Result<Option<String>> {
    let question = match last {
        Some(last) => format!("why? (Enter: {last}) "),
        None => "why? ".to_string(),
    };
    while let Some(answer) = line(input, out, &question)? {
        match (answer.as_str(), last) {
            ("", Some(last)) => return Ok(Some(last.to_string())),
            ("", None) => writeln!(out, "a reason is needed: what changed, and why is it right?")?,
            _ => return Ok(Some(answer)),
        }
    }
    Ok(None)
}
