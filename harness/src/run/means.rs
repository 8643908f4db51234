//! What a run may use: a dtype; threads, the network, time. Shared by the commands that start
//! implementations.

use std::num::NonZeroUsize;
use std::time::Duration;

use llorch_trace::Dtype;

use crate::provision::ProvisionOptions;
use crate::supervise::Limits;

#[derive(Debug, Clone, clap::Args)]
pub struct Precision {
    /// What is computed in: f32, f64, f16 or bf16. f16 and bf16 ask the subject alone; references stay in f32
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = float)]
    pub dtype: Dtype,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Means {
    /// Threads that each implementation computes with [default: all cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub access: Access,
}

/// The network, and time.
#[derive(Debug, Clone, clap::Args)]
pub struct Access {
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,

    /// Install and build nothing; a reference that isn't installed is UNCHECKED
    #[arg(long)]
    no_provision: bool,

    /// Time for hello, for load and for each case or request [default: 120, 600 and 900]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

impl Means {
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(cores, NonZeroUsize::get)
    }

    pub fn limits(&self) -> Limits {
        self.access.limits()
    }

    pub fn provision(&self) -> ProvisionOptions {
        self.access.provision()
    }
}

impl Access {
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(time) = self.timeout {
            (limits.hello, limits.load, limits.case) = (time, time, time);
        }
        limits
    }

    pub fn provision(&self) -> ProvisionOptions {
        ProvisionOptions { offline: self.offline, quiet: false, allow: !self.no_provision }
    }
}

/// All cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

pub fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number from 1 on".to_string())
}

fn float(text: &str) -> Result<Dtype, String> {
    match text.parse::<Dtype>() {
        Ok(dtype) if dtype != Dtype::I64 => Ok(dtype),
        _ => Err("expected f32, f64, f16 or bf16".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a number of seconds above 0".into()),
    }
}
