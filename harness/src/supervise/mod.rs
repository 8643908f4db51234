//! The only place that starts processes.
//!
//! Everything the harness runs (our engine, the references, `uv`, `cargo`) goes through here, so
//! that one page of rules holds for all of it:
//!
//! - a child leads a **process group of its own**; what ends it ends the whole group, first with
//!   TERM, after a grace period with KILL;
//! - its pipes are **drained by threads**, stdout in lines of bounded length, stderr into a file of
//!   bounded size, so a child can neither fill memory nor stall us by filling a pipe, and a
//!   grandchild that inherits a pipe can't keep us waiting;
//! - every wait has a **time-out**;
//! - **Ctrl-C** ends all groups and leaves nothing behind ([`on_interrupt`]).
//!
//! Reading order: [`AdapterCommand`] says what to run, [`Limits`] for how long, `child` is one
//! running process, [`Session`] the protocol conversation with an adapter, [`Dialogue`] one in raw
//! lines, [`Service`] a program that runs until it is stopped (the daemon), [`run_tool`] one that ends by
//! itself; [`Failure`] is what can go wrong.
//!
//! Linux only: descendants that leave the process group (`setsid`, double fork) are still found
//! and ended, because the harness makes itself their subreaper and recognises them by a mark in
//! their environment (`group`). Elsewhere on Unix they survive; the group kill works everywhere.
#![allow(clippy::disallowed_methods)] // the ban on starting processes holds everywhere but here

mod child;
mod command;
mod dialogue;
mod failure;
mod group;
mod interrupt;
mod limits;
mod lines;
mod service;
mod session;
mod stderr_log;
mod tool;

pub use child::{ExitState, Forced};
pub use command::{AdapterCommand, CommandError};
pub use dialogue::{Dialogue, Heard};
pub use failure::{Failure, FailureKind};
pub use group::{group_is_empty, live_groups};
pub(crate) use interrupt::await_exit;
pub use interrupt::{Cleanup, interrupted, on_interrupt, remove_on_interrupt};
pub use limits::Limits;
pub use service::Service;
pub use session::{Finished, Session};
pub use stderr_log::StderrSummary;
pub use tool::{
    ToolEvent, ToolFailure, ToolFailureKind, ToolOutput, run_tool, run_tool_told, run_tool_with,
};
