//! A running daemon as an adapter: `llorch-diff adapter http URL` speaks the protocol on stdin and stdout, and HTTP to
//! the daemon. `--subject http://…` starts it, so that a daemon is supervised, checked and judged as any program is.
//!
//! [`adapter`] holds the conversation; [`client`] asks the daemon; [`capture`] runs it
//! with the hooks on, and [`archive`] takes its tensors in.
//!
//! A daemon has its model, its dtype and its threads already: `load` checks the first two, and nobody can set the third.
//! How long anything may take is the business of whoever started this program, as with any adapter.

pub mod adapter;
pub mod archive;
pub mod capture;
pub mod client;
pub use std::io::BufReader;
use std::process::ExitCode;

use anyhow::Context;

use self::client::Client;
use crate::run::RunError;

/// Speak the adapter protocol for a running llorch-cpud: what `--subject http://…` starts. A key is read from the
/// environment variable LLORCH_API_KEY
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the daemon listens
    #[arg(value_name = "http://HOST:PORT")]
    pub url: String,
}

/// The command: answers until stdin ends.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.url.starts_with("http://") {
        let what = format!("failed to read {}: expected http://HOST:PORT", args.url);
        return Err(RunError::Usage(what).into());
    }
    let client = Client::new(args.url.trim_end_matches('/'), None)
        .map_err(|refused| RunError::Usage(refused.message))?;
    let requests = BufReader::new(std::io::stdin());
    adapter::serve(requests, &mut std::io::stdout().lock(), client).context("failed to answer")?;
    Ok(ExitCode::SUCCESS)
}
