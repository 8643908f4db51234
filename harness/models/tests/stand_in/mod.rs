//! A Hugging Face hub on this machine, with one repository and as many faults as a test needs.

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong, and how often.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// The connection stays open after so many bytes, silent.
    SilentAfter(usize),
    /// This status, with this X-Error-Code.
    Status(u16, &'static str),
}

#[derive(Debug, Default)]
pub struct Behaviour {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Faults of a file's next answers (those that carry the body), in turn.
    pub faults: HashMap<String, VecDeque<Fault>>,
    /// A fault of every answer to paths that contain this.
    pub always: Vec<(String, Fault)>,
    /// Sent in place of the content, under the true content's ETag.
    pub forged: HashMap<String, Vec<u8>>,
    /// Sizes that the list states wrongly.
    pub listed_sizes: HashMap<String, u64>,
    pub no_list: bool,
    pub no_ranges: bool,
    /// Large files are redirected to another host, as the real hub does.
    pub redirect: bool,
    pub log: Vec<Seen>,
}

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub host: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

pub struct StandIn {
    pub address: SocketAddr,
    pub behaviour: Arc<Mutex<Behaviour>>,
}

impl StandIn {
    pub fn start() -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let behaviour =
            Arc::new(Mutex::new(Behaviour { files: model_files(), ..Behaviour::default() }));
        let shared = behaviour.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let behaviour = shared.clone();
                std::thread::spawn(move || {
                    // A client that hangs up is its own business.
                    let _ = answer(stream, &behaviour, address.port());
                });
            }
        });
        StandIn { address, behaviour }
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    pub fn log(&self) -> Vec<Seen> {
        self.behaviour.lock().unwrap().log.clone()
    }

    /// Ranges under which the body of a file was asked for.
    pub fn ranges(&self, file: &str) -> Vec<String> {
        let body =
            |seen: &Seen| seen.path.ends_with(file) && seen.range.as_deref() != Some("bytes=0-0");
        self.log().into_iter().filter(body).filter_map(|seen| seen.range).collect()
    }
}

/// A model that passes every check: one tensor of 100,000 ones.
fn model_files() -> BTreeMap<String, Vec<u8>> {
    let mut header =
        br#"{"w":{"dtype":"F32","shape":[100000],"data_offsets":[0,400000]}}"#.to_vec();
    while !header.len().is_multiple_of(8) {
        header.push(b' ');
    }
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend(1.0_f32.to_le_bytes().repeat(100_000));
    let text = |content: &str| content.as_bytes().to_vec();
    BTreeMap::from([
        ("config.json".to_owned(), text("{\"model_type\": \"gpt2\"}\n")),
        ("model.safetensors".to_owned(), weights),
        ("vocab.json".to_owned(), text("{\"a\": 0}\n")),
        ("merges.txt".to_owned(), text("#version: 0.2\n")),
        ("README.md".to_owned(), text("not wanted\n")),
    ])
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// sha256 for weights (LFS), git's blob id for the rest: what the real hub sends.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    if name.ends_with(".safetensors") || name.ends_with(".bin") {
        return sha256(bytes);
    }
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn answer(stream: TcpStream, behaviour: &Mutex<Behaviour>, port: u16) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return Ok(()) };
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let header = |name: &str| {
        lines
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_owned())
    };
    let seen = Seen {
        path: path.clone(),
        host: header("host").unwrap_or_default(),
        range: header("range"),
        token: header("authorization"),
    };
    let mut stream = stream;
    let mut state = behaviour.lock().unwrap();
    state.log.push(seen.clone());
    if let Some((_, Fault::Status(status, code))) =
        state.always.iter().find(|(part, _)| path.contains(part.as_str()))
    {
        let text = format!(
            "HTTP/1.1 {status} X\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        drop(state);
        return stream.write_all(text.as_bytes());
    }
    if path.starts_with("/api/models/") {
        let body = if state.no_list { None } else { Some(list(&state)) };
        drop(state);
        return send_list(&mut stream, body);
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let Some(content) = state.files.get(&name).cloned() else {
        drop(state);
        return stream.write_all(b"HTTP/1.1 404 X\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let etag = etag(&name, &content);
    if state.redirect && name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        let text = format!(
            "HTTP/1.1 302 X\r\nLocation: http://localhost:{port}/cdn/{name}\r\nX-Repo-Commit: {COMMIT}\r\n\
             X-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            content.len()
        );
        drop(state);
        return stream.write_all(text.as_bytes());
    }
    let probe = seen.range.as_deref() == Some("bytes=0-0");
    let always = state
        .always
        .iter()
        .find(|(part, _)| path.contains(part.as_str()))
        .map(|(_, fault)| fault.clone());
    let next = if probe { None } else { state.faults.get_mut(&name).and_then(VecDeque::pop_front) };
    let fault = next.or(always.filter(|_| !probe));
    let bytes = state.forged.get(&name).cloned().unwrap_or(content);
    let ranges = !state.no_ranges;
    drop(state);

    let (start, end) = match seen
        .range
        .as_deref()
        .filter(|_| ranges)
        .and_then(|range| range.strip_prefix("bytes="))
    {
        Some(range) => {
            let (start, end) = range.split_once('-').unwrap_or((range, ""));
            let end = end.parse::<usize>().map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
            (start.parse::<usize>().unwrap_or(0).min(end), end)
        }
        None => (0, bytes.len()),
    };
    let status = if ranges && seen.range.is_some() { "206 Partial Content" } else { "200 OK" };
    let mut head = format!(
        "HTTP/1.1 {status}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n",
        end - start
    );
    if status.starts_with("206") {
        head.push_str(&format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len()));
    }
    head.push_str("Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let body = &bytes[start..end];
    match fault {
        Some(Fault::CutAfter(n)) => stream.write_all(&body[..n.min(body.len())]),
        Some(Fault::SilentAfter(n)) => {
            stream.write_all(&body[..n.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        _ => stream.write_all(body),
    }
}

fn list(state: &Behaviour) -> String {
    let size = |name: &str, bytes: &[u8]| {
        state.listed_sizes.get(name).copied().unwrap_or(bytes.len() as u64)
    };
    let files: Vec<String> = state
        .files
        .iter()
        .map(|(name, bytes)| format!("{{\"rfilename\":\"{name}\",\"size\":{}}}", size(name, bytes)))
        .collect();
    format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", files.join(","))
}

fn send_list(stream: &mut TcpStream, body: Option<String>) -> std::io::Result<()> {
    let (status, body) = body.map_or(("404 X", String::new()), |body| ("200 OK", body));
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
