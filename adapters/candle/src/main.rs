//! `llorch-adapter-candle [--variant f64|upstream]`: the adapter protocol on stdin and stdout.

use std::process::ExitCode;

use llorch_adapter_candle::{process, serve, variant::Variant};

fn main() -> ExitCode {
    let variant = match Variant::from_args(std::env::args().skip(1)) {
        Ok(variant) => variant,
        Err(usage) => {
            eprintln!("llorch-adapter-candle: {usage}");
            return ExitCode::from(2);
        }
    };
    let answer = process::claim_stdout().and_then(|output| serve::serve(variant, output));
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("llorch-adapter-candle: failed to write to the harness: {e}");
            ExitCode::FAILURE
        }
    }
}
