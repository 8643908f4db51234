use std::process::ExitCode;

use clap::Parser;
use llorch_diff::{cli, shortened, supervise};

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    supervise::on_interrupt();
    shortened::tell();
    cli::main(arguments)
}
