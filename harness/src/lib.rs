//! `llorch-diff`: differential testing of GPT-2 implementations.
//!
//! The same prompts go through an engine and through independent references, each a subprocess that
//! speaks the adapter protocol; their tensors are compared at every checkpoint, and the first wrong
//! one is named. The engine has no privileges: it is one more subprocess.
//!
//! In reading order:
//!
//! 1. [`cli`]: which command is which module;
//! 2. [`run`]: the main command, from arguments to one saved result;
//! 3. [`suite`] and [`plan`]: what is run and what is compared; [`lineup`]: who takes part;
//! 4. [`references`], [`provision`], [`assets`]: what references there are and how they are installed;
//! 5. [`supervise`]: the only place that starts processes;
//! 6. [`collect`]: tensors from an adapter into [`evidence`]; [`remote`] makes an adapter of a running daemon, [`served`]
//!    is the daemon's part of a subject that has one; [`saved`] keeps and reopens it;
//! 7. [`oracle`], [`sampling`], [`compare`], [`judge`]: from evidence to rows and verdicts; nothing is
//!    started and nothing but bundles and weights is read; [`isolate`] puts the same tensor before a stage in all of them;
//! 8. [`result`]: the one saved form; [`report`] renders it; [`guides`] says what to make of it;
//! 9. the other commands: [`bisect`], [`invariants`], [`judge_cmd`], [`report_cmd`], [`limits`], [`points_cmd`], [`adapters_cmd`] ([`jury`] examines the references);
//!    [`partition`] splits a run between machines and [`merge`] joins the parts; [`history`] remembers runs,
//!    with the kind of [`machine`]; [`nightly`] makes a matrix of them;
//! 10. [`dumps`]: tensors that programs left in files, compared and exported; [`gguf`]: a model for
//!     llama.cpp; [`golden`]: answers that are known beforehand; [`live`]: one implementation spoken to
//!     directly;
//! 11. [`conformance`]: whether a program speaks the protocol, [`scaffold`]: a beginning of
//!     one that does ([`adapter_cmd`]).

pub mod adapter_cmd;
pub mod adapters_cmd;
pub mod assets;
pub mod bench;
pub mod bisect;
pub mod cli;
pub mod collect;
pub mod compare;
pub mod conformance;
pub mod dumps;
pub mod evidence;
pub mod gguf;
pub mod golden;
pub mod guides;
pub mod history;
pub mod invariants;
pub mod isolate;
pub mod judge;
pub mod judge_cmd;
pub mod jury;
pub mod limits;
pub mod lineup;
pub mod live;
pub mod machine;
pub mod merge;
pub mod nightly;
pub mod oracle;
mod parallel;
pub mod partition;
pub mod plan;
pub mod points_cmd;
pub mod provision;
pub mod references;
pub mod remote;
pub mod report;
pub mod report_cmd;
pub mod result;
pub mod run;
pub mod sampling;
pub mod saved;
pub mod scaffold;
pub mod served;
pub mod shortened;
pub mod suite;
pub mod supervise;
mod text;
