//! Our own engine, as an adapter and as a daemon, and a proxy that spoils what passes through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use super::serving::Daemon;
use super::{diff, texts};

/// `…/llorch-cpud trace`, built first where need be.
pub fn engine() -> String {
    let output = diff().args(["adapters", "command", "llorch-cpud"]).output().unwrap();
    assert!(output.status.success(), "{}", texts(&output).1);
    texts(&output).0.trim().to_string()
}

impl Daemon {
    pub fn start() -> Daemon {
        Daemon::with(&[], &[])
    }

    /// Our own engine as a daemon, ready, with options and an environment.
    pub fn with(args: &[&str], environment: &[(&str, &str)]) -> Daemon {
        let words = shlex::split(&engine()).unwrap();
        let mut program = Command::new(&words[0]);
        program.args(["serve", "--port", "0"]).args(args);
        program.env_remove("LLORCH_API_KEY").envs(environment.iter().copied());
        let daemon = Daemon::spawn(program.stderr(Stdio::null()));
        daemon.wait_until_healthy();
        daemon
    }
}

/// What becomes of one request.
#[derive(Debug, Clone)]
pub enum Fate {
    Pass,
    /// This is answered in the daemon's place.
    Answer(String),
    /// The daemon's answer, up to so many bytes.
    Cut(usize),
}

/// Stands before a daemon; `fate` is asked with the path of a request and how often it was asked for before.
pub struct Proxy {
    pub url: String,
    seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    pub fn before(daemon: &Daemon, fate: impl Fn(&str, usize) -> Fate + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let upstream = daemon.url.strip_prefix("http://").unwrap().to_string();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let proxy = Proxy { url, seen: seen.clone(), stop: stop.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // Who goes away while being answered is no failure of the proxy.
                let _ = client.and_then(|client| pass(client, &upstream, &seen, &fate));
            }
        });
        proxy
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| *seen == path).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.url.strip_prefix("http://").unwrap());
    }
}

/// One request of a connection, which is closed behind it.
fn pass(
    mut client: TcpStream,
    upstream: &str,
    seen: &Mutex<Vec<String>>,
    fate: &impl Fn(&str, usize) -> Fate,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    while reader.read_line(&mut head)? > 2 {
        let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = head.split_whitespace().nth(1).unwrap_or_default().to_string();
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(path.clone());
        seen.iter().filter(|earlier| **earlier == path).count() - 1
    };
    let most = match fate(&path, before) {
        Fate::Answer(answer) => return client.write_all(answer.as_bytes()),
        Fate::Cut(most) => most,
        Fate::Pass => usize::MAX,
    };
    let mut server = TcpStream::connect(upstream)?;
    let (first, rest) = head.split_once("\r\n").unwrap();
    server.write_all(format!("{first}\r\nconnection: close\r\n{rest}").as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer[..answer.len().min(most)])
}

/// Clients that ask a daemon for completions until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn on(daemon: &Daemon, clients: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..clients).map(|client| {
            let (stop, done) = (stop.clone(), done.clone());
            let url = format!("{}/v1/completions", daemon.url);
            std::thread::spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Prompts of other lengths, so that batches are never the same.
                    let prompt: Vec<usize> = (1..=1 + (client * 7 + n) % 40).collect();
                    let ask = serde_json::json!({"prompt": prompt, "max_tokens": 20 + n % 30,
                        "temperature": 1, "seed": n, "ignore_eos": true});
                    ureq::post(&url).send_json(ask).unwrap().body_mut().read_to_vec().unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Load { stop, done, threads }
    }

    /// How many answers there were by now.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    pub fn wait_for(&self, answers: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.done() < answers {
            assert!(Instant::now() < deadline, "{} answers within a minute", self.done());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fails if a client did.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}
