//! The engine: its operations and its forward pass against goldens, its promises bit by bit, its
//! errors, its protocol, its command line.

mod cli;
mod faults;
mod forward;
mod golden;
mod ops;
mod probes;
mod support;
mod tokenizer;
mod trace;
