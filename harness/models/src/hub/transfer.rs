//! Bringing one file into the cache: resumed when the connection breaks, verified before it counts.

use super::client::{Client, Failure, Remote};
use crate::error::ModelError;
use crate::hash::{hex, sha256_shown};
use crate::progress::Bar;
use hf_hub::Repo;
use sha1::{Digest, Sha1};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Downloads `remote` to `blob`. What arrives before a failure stays beside it, `.incomplete`, and
/// the next attempt, of this command or a later one, goes on from there.
pub(super) fn download(
    client: &Client,
    repo: &Repo,
    remote: &Remote,
    blob: &Path,
    bar: &Bar,
) -> Result<(), ModelError> {
    // The Python library's name for it: either can go on with what the other began.
    let partial = blob.with_file_name(format!("{}.incomplete", remote.etag));
    let inherited = fs::metadata(&partial).map_or(0, |found| found.len());
    receive(client, repo, remote, &partial, bar)?;
    let mut verified = verify(client, remote, &partial);
    if inherited > 0 && matches!(verified, Err(ModelError::WrongHash { .. })) {
        // The fault may lie in what an earlier command left.
        bar.say(&format!(
            "{}: what an earlier download left is damaged; starting over",
            remote.name
        ));
        receive(client, repo, remote, &partial, bar)?;
        verified = verify(client, remote, &partial);
    }
    verified?;
    fs::rename(&partial, blob).map_err(ModelError::hub_cache(blob))
}

/// Fills `partial` up to the size that the hub states.
fn receive(
    client: &Client,
    repo: &Repo,
    remote: &Remote,
    partial: &Path,
    bar: &Bar,
) -> Result<(), ModelError> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(partial)
        .map_err(ModelError::hub_cache(partial))?;
    let mut have = file.metadata().map_err(ModelError::hub_cache(partial))?.len();
    if have > remote.bytes {
        truncate(&mut file, 0).map_err(ModelError::hub_cache(partial))?;
        have = 0;
    }
    let (mut furthest, mut failures) = (have, 0);
    bar.set(have);
    while have < remote.bytes {
        let outcome = receive_once(client, repo, remote, &mut file, have, bar);
        have = file.metadata().map_err(ModelError::hub_cache(partial))?.len();
        let reason = match outcome {
            Ok(()) if have == remote.bytes => break,
            Ok(()) => None,
            Err(Interrupted::Connection(reason)) => Some(reason),
            Err(Interrupted::Disk(source)) => {
                return Err(ModelError::HubCache { path: partial.to_owned(), source });
            }
            Err(Interrupted::Final(error)) => return Err(error),
        };
        failures = if have > furthest { 1 } else { failures + 1 };
        furthest = furthest.max(have);
        if failures >= client.attempts() {
            return Err(gave_up(client, remote, have, reason));
        }
        bar.say(&format!(
            "{}: {} after {have} of {} bytes; going on from there",
            remote.name,
            reason.as_deref().unwrap_or("the connection ended"),
            remote.bytes
        ));
        std::thread::sleep(client.wait(failures));
    }
    file.sync_all().map_err(ModelError::hub_cache(partial))
}

fn gave_up(client: &Client, remote: &Remote, have: u64, reason: Option<String>) -> ModelError {
    let kept = "what has arrived is kept, and the same command goes on from there";
    match reason {
        Some(reason) => ModelError::Network {
            endpoint: client.endpoint().to_owned(),
            reason: format!(
                "{reason} ({} at {have} of {} bytes: {kept})",
                remote.name, remote.bytes
            ),
        },
        None => ModelError::Truncated {
            what: remote.name.clone(),
            endpoint: client.endpoint().to_owned(),
            found: have,
            expected: remote.bytes,
            remedy: format!("the server ends the file early; {kept}"),
        },
    }
}

enum Interrupted {
    Connection(String),
    Disk(io::Error),
    Final(ModelError),
}

/// One connection's worth.
fn receive_once(
    client: &Client,
    repo: &Repo,
    remote: &Remote,
    file: &mut File,
    have: u64,
    bar: &Bar,
) -> Result<(), Interrupted> {
    let incoming = client.open(repo, remote, have).map_err(|failure| match failure {
        Failure::Passing(reason) => Interrupted::Connection(reason),
        Failure::Final(error) => Interrupted::Final(error),
    })?;
    if incoming.start != have {
        // A server that knows no ranges sends the file from its start.
        truncate(file, 0).map_err(Interrupted::Disk)?;
        bar.set(0);
        if incoming.start != 0 {
            return Err(Interrupted::Connection(format!(
                "bytes from {} on, not from {have}",
                incoming.start
            )));
        }
    }
    let expected = remote.bytes - if incoming.start == have { have } else { 0 };
    // Never more than was announced, whatever is sent.
    let mut body = incoming.body.into_reader().take(expected);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(Interrupted::Disk)?;
                bar.add(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Cut short: what a server that ends early looks like, too.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(Interrupted::Connection(error.to_string())),
        }
    }
}

fn truncate(file: &mut File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    file.seek(SeekFrom::End(0)).map(|_| ())
}

/// Compares the content with the hash that is its ETag: sha256 for large files (LFS), git's blob id for
/// small ones. Wrong content is removed.
fn verify(client: &Client, remote: &Remote, partial: &Path) -> Result<(), ModelError> {
    let is_hex = remote.etag.bytes().all(|b| b.is_ascii_hexdigit());
    let (name, found) = match remote.etag.len() {
        64 if is_hex => ("sha256", sha256_shown(partial)),
        40 if is_hex => ("git blob id", git_blob_id(partial)),
        // No hash of the content: only the size could be checked.
        _ => return Ok(()),
    };
    let found = found.map_err(ModelError::io("read", partial))?;
    if found == remote.etag.to_ascii_lowercase() {
        return Ok(());
    }
    fs::remove_file(partial).map_err(ModelError::hub_cache(partial))?;
    Err(ModelError::WrongHash {
        path: PathBuf::from(&remote.name),
        found,
        expected: remote.etag.clone(),
        origin: format!(
            "the {name} that {} states; the download was removed, try again",
            client.endpoint()
        ),
    })
}

/// sha1 of `blob SIZE\0` and the content.
fn git_blob_id(path: &Path) -> io::Result<String> {
    let content = fs::read(path)?;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(&content);
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blob_id_is_gits() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hello\n").unwrap();
        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(git_blob_id(file.path()).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
