//! `llorch-adapter-mistralrs`: the adapter protocol on stdin and stdout.

use std::process::ExitCode;

use llorch_adapter_mistralrs::{process, serve, variant::Variant};

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        eprintln!("llorch-adapter-mistralrs: it has no variants and takes no arguments");
        return ExitCode::from(2);
    }
    let answer = process::claim_stdout().and_then(|output| serve::serve(Variant, output));
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("llorch-adapter-mistralrs: failed to write to the harness: {e}");
            ExitCode::FAILURE
        }
    }
}
