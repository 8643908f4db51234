//! The daemon, through its socket: started as a user starts it, asked by a real HTTP client.
#![allow(clippy::disallowed_methods, reason = "a test starts the program as a user would")]

mod api;
mod checkpoints;
mod daemon;
mod neighbours;
mod openai;
mod operation;
mod security;
