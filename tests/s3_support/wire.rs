//! A wire to a server that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It arrives and is answered.
    No,
    /// Its first half arrives, then the connection breaks.
    Half,
    /// It arrives; the answer doesn't.
    Answer,
    /// Its first half arrives, and nothing more until the sender has gone.
    Stall,
}

pub struct Wire {
    pub address: String,
    /// Writes so far.
    pub writes: Arc<AtomicUsize>,
}

impl Wire {
    /// To `server`; `cut` says what becomes of the n-th write of a record, from 0 on.
    pub fn new(server: &str, cut: impl Fn(usize) -> Cut + Send + Sync + 'static) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (server, cut) = (server.trim_start_matches("http://").to_string(), Arc::new(cut));
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&writes);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, cut, counted) =
                    (server.clone(), Arc::clone(&cut), Arc::clone(&counted));
                std::thread::spawn(move || {
                    let _ = carry(client, &server, &|| cut(counted.fetch_add(1, Ordering::SeqCst)));
                });
            }
        });
        Wire { address, writes }
    }
}

/// One request after another, each whole, until one of the two has gone.
fn carry(mut client: TcpStream, server: &str, cut: &dyn Fn() -> Cut) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(server)?;
    loop {
        let Some((head, body)) = message(&mut client)? else { return Ok(()) };
        let is_record = head.starts_with(b"PUT ") && has(&head, b".jsonl");
        let fate = if is_record { cut() } else { Cut::No };
        let whole = [head, body].concat();
        let half = &whole[..whole.len() - 10];
        match fate {
            Cut::Half | Cut::Stall => upstream.write_all(half)?,
            Cut::No | Cut::Answer => upstream.write_all(&whole)?,
        }
        if fate == Cut::Stall {
            // Until the client has gone.
            let _ = client.read(&mut [0]);
        }
        if matches!(fate, Cut::Half | Cut::Stall) {
            upstream.shutdown(Shutdown::Both)?;
            return client.shutdown(Shutdown::Both);
        }
        let Some((head, body)) = message(&mut upstream)? else { return Ok(()) };
        if fate == Cut::Answer {
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&head)?;
        client.write_all(&body)?;
    }
}

/// A head and the body that it announces.
fn message(stream: &mut TcpStream) -> std::io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |n| n.trim().parse().unwrap())];
    if text.contains("transfer-encoding: chunked") {
        // As it comes: the last chunk is empty.
        while !body.ends_with(b"0\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(None);
            }
            body.push(byte[0]);
        }
    } else {
        stream.read_exact(&mut body)?;
    }
    Ok(Some((head, body)))
}

fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
