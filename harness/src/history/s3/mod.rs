//! A bucket, `s3://BUCKET/PREFIX`: an object a day, `PREFIX/2026-01-31.jsonl`.
//!
//! S3 appends to nothing: an object is read and written anew, on the condition that nobody else has
//! written it meanwhile (`If-None-Match` for the first record of a day, `If-Match` with the ETag for later
//! ones). Whoever comes second reads again. A store that doesn't honour the conditions would lose
//! records in silence, so that is found out first ([`Store::check`]).

mod errors;
mod place;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig, UpdateVersion,
};

use super::store::{EXTENSION, Store, StoreError, day_of};
use errors::{Explain, is_transient, names_no_bucket};
use place::{Url, endpoint, has_credentials};

/// One request, whatever becomes of it.
const REQUEST: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
/// Where nothing in the environment says who we are, the machine itself may be asked, but not for long.
const CREDENTIALS_OF_THE_MACHINE: Duration = Duration::from_secs(10);
/// One record, with all that others write before it.
const APPEND: Duration = Duration::from_secs(120);
/// Longest wait for those who came first.
const MOST_WAIT: Duration = Duration::from_secs(2);

/// Says of a store whether it honours conditions.
const PROBE: &str = ".conditions";
const PROBE_TEXT: &str = "llorch-diff tries on this object whether the store honours If-Match.\n";
/// What no object's ETag is.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

pub struct S3 {
    url: Url,
    store: AmazonS3,
    runtime: tokio::runtime::Runtime,
    /// Known to honour conditions.
    checked: Cell<bool>,
}

/// An object as it was read.
struct Day {
    bytes: Vec<u8>,
    version: UpdateVersion,
}

impl S3 {
    /// Reads the environment; no request is made yet.
    pub fn open(url: &str) -> Result<S3, StoreError> {
        let url = Url::parse(url)?;
        let failed =
            |message: String| StoreError::Io { action: "open", place: url.to_string(), message };
        endpoint().map_err(&failed)?;
        // Who else uses TLS in this process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_timeout(REQUEST)
            // A run lies between two requests; by then the other side has closed.
            .with_pool_idle_timeout(Duration::from_secs(5));
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: MOST_WAIT, ..BackoffConfig::default() },
            max_retries: 3,
            retry_timeout: REQUEST,
        };
        // Options first: what the environment says of them (AWS_ALLOW_HTTP) holds.
        let mut builder = AmazonS3Builder::new().with_client_options(client);
        for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder
            .with_bucket_name(&url.bucket)
            .with_retry(retry)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .build()
            .map_err(|error| failed(Explain::new(&url).words(&error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(S3 { url, store, runtime, checked: Cell::new(false) })
    }

    fn object(&self, name: &str) -> Path {
        Path::from_iter(self.url.prefix.split('/').chain([name]).filter(|part| !part.is_empty()))
    }

    fn of_day(&self, day: &str) -> Path {
        self.object(&format!("{day}{EXTENSION}"))
    }

    /// Waits for one request, and never for ever.
    fn wait<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let most = if has_credentials() { 2 * REQUEST } else { CREDENTIALS_OF_THE_MACHINE };
        let answer = self.runtime.block_on(async { tokio::time::timeout(most, request).await });
        answer.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", most.as_secs());
            Err(Error::Generic { store: "S3", source: message.into() })
        })
    }

    fn failed(&self, action: &'static str) -> impl Fn(Error) -> StoreError + '_ {
        move |error| self.io(action, Explain::new(&self.url).words(&error))
    }

    fn io(&self, action: &'static str, message: String) -> StoreError {
        StoreError::Io { action, place: self.place(), message }
    }

    fn get(&self, path: &Path) -> object_store::Result<Option<Day>> {
        let answer = self.wait(async {
            let found = self.store.get(path).await?;
            let version = UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            };
            Ok(Day { bytes: found.bytes().await?.to_vec(), version })
        });
        match answer {
            Ok(day) => Ok(Some(day)),
            Err(Error::NotFound { path, source }) => {
                let error = Error::NotFound { path, source };
                if names_no_bucket(&error) { Err(error) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }

    fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> object_store::Result<()> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.wait(async { self.store.put_opts(path, bytes.into(), options).await.map(|_| ()) })
    }

    fn no_conditions(&self, which: &str) -> StoreError {
        self.io(
            "write to",
            format!(
                "the store doesn't honour {which}, so that two writers would overwrite each other; expected a \
                 store with conditional writes, such as S3 itself, or a folder"
            ),
        )
    }

    fn try_conditions(&self) -> Result<(), StoreError> {
        let probe = self.object(PROBE);
        let create = || self.put(&probe, PROBE_TEXT.into(), PutMode::Create);
        let is_there = match create() {
            // It was not there; now it is, and must not be made again.
            Ok(()) => create(),
            other => other,
        };
        match is_there {
            Err(Error::AlreadyExists { .. }) => {}
            Ok(()) | Err(Error::NotImplemented { .. }) => {
                return Err(self.no_conditions("If-None-Match"));
            }
            Err(error) => return Err(self.failed("write to")(error)),
        }
        let other = UpdateVersion { e_tag: Some(NO_ETAG.into()), version: None };
        match self.put(&probe, PROBE_TEXT.into(), PutMode::Update(other)) {
            Err(Error::Precondition { .. }) => Ok(()),
            Ok(()) | Err(Error::NotImplemented { .. }) => Err(self.no_conditions("If-Match")),
            Err(error) => Err(self.failed("write to")(error)),
        }
    }
}

impl Store for S3 {
    fn place(&self) -> String {
        self.url.to_string()
    }

    fn append(&self, day: &str, line: &str) -> Result<(), StoreError> {
        self.check()?;
        let failed = self.failed("write to");
        let (path, began) = (self.of_day(day), Instant::now());
        let mut tries = 0;
        loop {
            let before = self.get(&path).map_err(&failed)?;
            // The answer to a write may have been lost on its way, while the line has arrived.
            if tries > 0 && before.as_ref().is_some_and(|day| has_line(&day.bytes, line)) {
                return Ok(());
            }
            let (bytes, mode) = match before {
                None => (Vec::new(), PutMode::Create),
                Some(Day { version: UpdateVersion { e_tag: None, .. }, .. }) => {
                    return Err(self.no_conditions("ETags"));
                }
                Some(day) => (day.bytes, PutMode::Update(day.version)),
            };
            let error = match self.put(&path, with_line(bytes, line), mode) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let lost = matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. });
            if !lost && !is_transient(&error) {
                return Err(failed(error));
            }
            if began.elapsed() >= APPEND {
                let what = format!("after {tries} more tries: ");
                return Err(self.io("write to", what + &Explain::new(&self.url).words(&error)));
            }
            std::thread::sleep(wait_before(tries));
            tries += 1;
        }
    }

    fn days(&self) -> Result<Vec<String>, StoreError> {
        let prefix = Path::from_iter(self.url.prefix.split('/').filter(|part| !part.is_empty()));
        let listed = self.wait(self.store.list_with_delimiter(Some(&prefix)));
        let listed = listed.map_err(self.failed("read"))?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename());
        let mut days: Vec<String> = names.filter_map(day_of).map(String::from).collect();
        days.sort();
        Ok(days)
    }

    fn read(&self, day: &str) -> Result<Vec<u8>, StoreError> {
        let found = self.get(&self.of_day(day)).map_err(self.failed("read"))?;
        found.map(|day| day.bytes).ok_or_else(|| {
            self.io("read", format!("{day}{EXTENSION} was there a moment ago and is gone"))
        })
    }

    fn check(&self) -> Result<(), StoreError> {
        if !self.checked.get() {
            self.try_conditions()?;
            self.checked.set(true);
        }
        Ok(())
    }
}

impl fmt::Debug for S3 {
    /// The place alone: what the client knows besides is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.url)
    }
}

/// What is there and one more line. A torn last line becomes a line of its own, which readers report
/// and skip.
fn with_line(mut bytes: Vec<u8>, line: &str) -> Vec<u8> {
    if bytes.last().is_some_and(|last| *last != b'\n') {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    bytes
}

fn has_line(bytes: &[u8], line: &str) -> bool {
    bytes.split(|b| *b == b'\n').any(|other| other == line.as_bytes())
}

/// Longer and longer, and never the same for two writers.
fn wait_before(tries: u32) -> Duration {
    let most = MOST_WAIT.min(Duration::from_millis(20 << tries.min(10)));
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), tries);
    most.mul_f64((random % 1000) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_stays_alone() {
        assert_eq!(with_line(Vec::new(), "a"), b"a\n");
        assert_eq!(with_line(b"a\n".to_vec(), "b"), b"a\nb\n");
        assert_eq!(with_line(b"a\n{\"half".to_vec(), "b"), b"a\n{\"half\nb\n");
    }

    #[test]
    fn only_a_whole_line_has_arrived() {
        assert!(has_line(b"a\nb\n", "b"));
        assert!(!has_line(b"a\nbb\n", "b"));
        assert!(!has_line(b"", "b"));
    }

    #[test]
    fn waits_grow_to_a_limit() {
        for tries in [0, 5, 40] {
            assert!(wait_before(tries) <= MOST_WAIT);
        }
    }
}
