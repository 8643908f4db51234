//! The daemon, through its socket: started as a user starts it, asked by a real HTTP client.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

mod api;
#[path = "../run_support/browser.rs"]
mod browser;
mod checkpoints;
mod daemon;
mod neighbours;
#[path = "../run_support/node.rs"]
mod node;
mod operation;
mod page;
mod security;
#[path = "../run_support/serving.rs"]
mod serving;

fn repository() -> std::path::PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}
