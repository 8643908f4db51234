//! An S3 server of our own (`tests/s3`), and what can happen on the way to it.
#![allow(clippy::disallowed_methods, reason = "a test starts the programs that it tests")]
#![allow(dead_code)] // each test file uses its own part of it

pub mod wire;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::run_support::repository;

pub const KEY: &str = "AKIDTEST";
pub const SECRET: &str = "a-secret-that-nobody-may-read";
pub const BUCKET: &str = "runs";

/// Built once, into the cache; pinned by its lock file.
fn program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let package = repository().join("tests/s3");
        let lock = std::fs::read(package.join("Cargo.lock")).unwrap();
        let hash = &llorch_trace::hash::sha256_bytes(&lock)[..16];
        let target = llorch_models::cache_dir().join("build").join(format!("s3-{hash}"));
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        llorch_models::errln!("building the S3 server of the tests in {}", target.display());
        let bar = llorch_models::progress::Progress::new(false).open("tests/s3", "building");
        let output = Command::new(cargo)
            .args(["build", "--locked", "--quiet", "--manifest-path"])
            .arg(package.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .output()
            .unwrap();
        drop(bar);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        target.join("debug/llorch-s3")
    };
    BUILT.get_or_init(build).clone()
}

pub struct Server {
    child: Child,
    pub dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`
    pub address: String,
}

impl Server {
    pub fn start(options: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut child = Command::new(program())
            .arg(dir.path())
            .args([KEY, SECRET])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Server { child, dir, address: address.trim().into() }
    }

    /// The file that an object is kept in.
    pub fn object(&self, name: &str) -> PathBuf {
        self.dir.path().join(BUCKET).join(name)
    }

    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.object(name)).unwrap();
        assert!(text.ends_with('\n'), "{text:?}");
        text.lines().map(String::from).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets a command use this server, or what stands in front of it.
pub fn with_keys<'a>(command: &'a mut Command, address: &str) -> &'a mut Command {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_ENDPOINT", address)
        .env("AWS_ALLOW_HTTP", "true")
        // A proxy that the machine has is none for the machine itself.
        .env("NO_PROXY", "127.0.0.1")
}
