//! How the daemon is started.

use std::path::PathBuf;

use crate::cli::ModelArgs;

/// Every option can be set in the environment too, as the brackets behind each say; what is on the command line counts.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Address to listen on
    #[arg(long, env = "LLORCH_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 takes a free one, which the first line of output names
    #[arg(long, env = "LLORCH_PORT", default_value_t = 8080)]
    pub port: u16,

    /// Sequences that are computed together; memory for the keys and values of so many is set aside
    #[arg(long, env = "LLORCH_MAX_BATCH", default_value_t = 16, value_name = "N",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub max_batch: usize,

    /// Requests that may wait beyond those; more are refused with 429
    #[arg(long, env = "LLORCH_QUEUE", default_value_t = 64, value_name = "N",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=1_000_000))]
    pub queue: usize,

    /// A key that requests must bring (Authorization: Bearer KEY). Other users of the machine can read a command line: prefer the
    /// environment or a file
    #[arg(long, env = "LLORCH_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,

    /// Keys that requests may bring, one a line; lines with # are comments
    #[arg(long, env = "LLORCH_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// A web site whose pages may ask from a browser: https://example.org, or * for all. May be given several times
    #[arg(long, env = "LLORCH_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,

    /// A name under which the daemon may be asked, beside localhost and addresses, while it listens on this machine alone and
    /// without a key. May be given several times
    #[arg(long, env = "LLORCH_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    pub allow_host: Vec<String>,

    /// Seconds after which a request is given up
    #[arg(long, env = "LLORCH_REQUEST_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub request_timeout: u64,

    /// Seconds that a client may take to send the head of a request, and then its body
    #[arg(long, env = "LLORCH_HEADER_TIMEOUT", default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub header_timeout: u64,

    /// Seconds that a client may go without reading any of its answer
    #[arg(long, env = "LLORCH_WRITE_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub write_timeout: u64,

    /// Bytes that a request's body may have
    #[arg(long, env = "LLORCH_MAX_BODY", default_value_t = 1 << 20, value_name = "BYTES",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1 << 30))]
    pub max_body: usize,

    /// Connections that may be open; more are told to come again
    // Below the 1,024 descriptors that a process has unless somebody gave it more.
    #[arg(long, env = "LLORCH_MAX_CONNECTIONS", default_value_t = 896, value_name = "N",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub max_connections: usize,

    /// Seconds that accepted requests have to finish after SIGTERM or Ctrl-C
    #[arg(long, env = "LLORCH_DRAIN", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub drain: u64,

    /// A folder in which POST /v1/checkpoints may keep bundles; without it, it keeps none
    #[arg(long, env = "LLORCH_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Megabytes of tensors that one capture may have
    #[arg(long, env = "LLORCH_MAX_CAPTURE", default_value_t = 2048, value_name = "MB",
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub max_capture: u64,

    /// How log lines are written to standard error
    #[arg(long, env = "LLORCH_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info (a line a request), debug
    #[arg(long, env = "LLORCH_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: tracing::Level,

    /// Log the text of prompts and of answers too
    #[arg(long, env = "LLORCH_LOG_TEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub log_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}
