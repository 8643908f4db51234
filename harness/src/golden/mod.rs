//! Goldens: answers that are known before anything runs.
//!
//! Reading order: [`check`] is the command; [`bundles`] are nano's goldens by Hugging Face, [`tokenizer`]
//! the strings by tiktoken; [`published`] what others published of the real GPT-2, [`answers`] puts
//! those questions, to the subject and to its [`weights`]; [`outcome`] is what is found, [`show`] prints
//! it. [`record`] makes nano's goldens anew, and [`review`] accepts or rejects what changes;
//! [`waiting`] is what nobody has decided yet.

pub mod answers;
pub mod bundles;
pub mod check;
pub mod outcome;
pub mod published;
pub mod record;
pub mod review;
pub mod show;
pub mod stop;
pub mod tokenizer;
pub mod waiting;
pub mod weights;

/// Check against goldens and published answers; record goldens anew, and review them
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    Check(check::Args),
    Record(record::Args),
    Review(review::Args),
}

/// The exit code, as documented in the program's help.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    match &args.command {
        Command::Check(args) => check::run(args),
        Command::Record(args) => record::run(args),
        Command::Review(args) => review::run(args),
    }
}
