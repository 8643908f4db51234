//! Resolves a model and prints what was found: `cargo run --release --example resolve -- synth:tiny`.

use llorch_models::{ResolveOptions, resolve};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "nano".to_owned());
    let options = ResolveOptions {
        offline: arguments.any(|a| a == "--offline"),
        ..ResolveOptions::default()
    };
    match resolve(&name, &options) {
        Ok(model) => {
            println!("{} ({}): {}", model.name, model.kind, model.source);
            println!("revision {}", model.revision.as_deref().unwrap_or("unknown"));
            println!("{}", model.dir.display());
            for file in &model.files {
                println!("{}  {} ({} bytes)", file.sha256, file.name, file.bytes);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
