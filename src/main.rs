//! `llorch-cpud`: see the library's documentation.

fn main() -> std::process::ExitCode {
    llorch_cpud::cli::run()
}
