use std::process::ExitCode;

use clap::Parser;
use llorch_diff::{cli, supervise};

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    supervise::on_interrupt();
    cli::main(arguments)
}
