//! `llorch-diff adapter`: for who brings an engine of their own.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{conformance, remote, scaffold};

const CHECK_EXIT_CODES: &str = "\
Exit codes:
    0  every check passes; what isn't declared is UNCHECKED and lowers nothing
    1  a check fails
    2  usage: the command can't be split into words, the model can't be used
    3  environment: the adapter can't be started, the model can't be had
  130  interrupted";

const NEW_EXIT_CODES: &str = "\
Exit codes:
    0  written
    2  usage: the name can't be one, or a file stands there already
    3  environment: it can't be written";

/// Your own engine: write an adapter for it, check that it speaks the protocol
#[derive(Debug, Args)]
pub struct AdapterArgs {
    #[command(subcommand)]
    pub command: AdapterCommand,
}

#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Check that a program speaks the adapter protocol
    #[command(after_help = CHECK_EXIT_CODES)]
    Check(conformance::Args),
    /// Write a small adapter that keeps the protocol already, with a stub where your engine goes
    #[command(after_help = NEW_EXIT_CODES)]
    New(scaffold::Args),
    Http(remote::Args),
}

pub fn run(args: &AdapterArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        AdapterCommand::Check(args) => conformance::run(args),
        AdapterCommand::New(args) => scaffold::run(args),
        AdapterCommand::Http(args) => remote::run(args),
    }
}
