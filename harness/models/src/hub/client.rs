//! What is asked of the hub, and what its answers mean.
//!
//! The crate hf-hub knows the hub's addresses and its list of a repository's files. Files themselves are
//! asked for here: hf-hub sends the token on to whatever host it is redirected to, waits for ever on
//! a silent connection, and can neither resume safely nor verify.

use super::env::HubEnv;
use crate::error::ModelError;
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// Redirects that are followed for one file.
const HOPS: usize = 10;

/// A repository at one commit: each file and what the hub says of it.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: BTreeMap<String, Option<u64>>,
}

/// One file as the hub describes it before it is downloaded.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub name: String,
    pub url: String,
    pub commit: String,
    /// sha256 of the content (LFS), or its git blob id: the name of the file in the cache.
    pub etag: String,
    pub bytes: u64,
}

/// A file on its way.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Where in the file it begins: what was asked for, or 0 from a server that knows no ranges.
    pub start: u64,
    pub body: Body,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another attempt: the connection, or a server that is overloaded.
    Passing(String),
    Final(ModelError),
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    api: Api,
    env: HubEnv,
}

impl Client {
    pub fn new(env: &HubEnv) -> Result<Client, ModelError> {
        let silence = Some(env.patience.silence);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding("identity")
            .user_agent(concat!("llorch/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(silence)
            .timeout_connect(silence)
            .timeout_recv_response(silence)
            .timeout_per_read(silence);
        if is_loopback(&env.endpoint) {
            // No proxy stands between a machine and itself.
            config = config.proxy(None);
        }
        let api = ApiBuilder::from_cache(Cache::new(env.cache.clone()))
            .with_endpoint(env.endpoint.clone())
            .with_token(env.token.clone())
            .with_progress(false)
            .with_user_agent("llorch", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| ModelError::Network {
                endpoint: env.endpoint.clone(),
                reason: error.to_string(),
            })?;
        Ok(Client { agent: config.build().into(), api, env: env.clone() })
    }

    pub fn endpoint(&self) -> &str {
        &self.env.endpoint
    }

    /// The repository's files, or None from an endpoint that serves files but no lists.
    pub fn listing(&self, repo: &Repo, id: &str) -> Result<Option<Listing>, ModelError> {
        self.with_patience(|| {
            let silence = Some(self.env.patience.silence);
            let request = self.api.repo(repo.clone()).info_request().query("blobs", "true");
            let mut config = request.config().http_status_as_error(false);
            config = config
                .timeout_resolve(silence)
                .timeout_connect(silence)
                .timeout_recv_response(silence);
            if is_loopback(&self.env.endpoint) {
                config = config.proxy(None);
            }
            let mut response = config
                .timeout_per_read(silence)
                .build()
                .call()
                .map_err(|error| self.failure(&error))?;
            if response.status().as_u16() == 404 && error_code(response.headers()).is_none() {
                return Ok(None);
            }
            self.check_status(&response, &format!("repository {id}"), repo)?;
            let text =
                response.body_mut().read_to_string().map_err(|error| self.failure(&error))?;
            let Ok(info) = serde_json::from_str::<Info>(&text) else { return Ok(None) };
            let files = info.siblings.into_iter().map(|file| (file.rfilename, file.size)).collect();
            Ok(Some(Listing { commit: info.sha, files }))
        })
    }

    /// What the hub says of one file, or None where there is no such file.
    pub fn describe(
        &self,
        repo: &Repo,
        id: &str,
        name: &str,
    ) -> Result<Option<Remote>, ModelError> {
        let url = self.api.repo(repo.clone()).url(name);
        self.with_patience(|| {
            // One byte: the answer's headers say all, and unlike HEAD every server knows GET.
            let (response, first) = self.get(&url, "bytes=0-0")?;
            if response.status().as_u16() == 404
                && !matches!(error_code(&first), Some("RepoNotFound" | "RevisionNotFound"))
            {
                return Ok(None);
            }
            self.check_status(&response, &format!("{name} of {id}"), repo)?;
            let header = |name: &str| text(&first, name).or_else(|| text(response.headers(), name));
            let etag = header("x-linked-etag")
                .or_else(|| header("etag"))
                .map(clean_etag)
                .unwrap_or_default();
            let commit = header("x-repo-commit").unwrap_or_default().to_owned();
            let whole = if response.status().as_u16() == 206 {
                None
            } else {
                text(response.headers(), "content-length")
            };
            let bytes = text(response.headers(), "content-range")
                .and_then(|range| range.rsplit('/').next())
                .or_else(|| header("x-linked-size"))
                .or(whole)
                .and_then(|size| size.parse().ok());
            let (Some(bytes), true, true) = (bytes, is_safe_name(&etag), is_safe_name(&commit))
            else {
                return Err(Failure::Final(ModelError::Answer {
                    endpoint: url.clone(),
                    found: format!("ETag `{etag}`, X-Repo-Commit `{commit}`, size {bytes:?}"),
                    expected:
                        "the headers of a Hugging Face hub (ETag, X-Repo-Commit, Content-Range)"
                            .to_owned(),
                }));
            };
            Ok(Some(Remote { name: name.to_owned(), url: url.clone(), commit, etag, bytes }))
        })
    }

    /// Asks for a file from `start` on. One attempt.
    pub fn open(&self, repo: &Repo, remote: &Remote, start: u64) -> Result<Incoming, Failure> {
        let (response, _) = self.get(&remote.url, &format!("bytes={start}-"))?;
        self.check_status(&response, &remote.name, repo)?;
        let from = text(response.headers(), "content-range")
            .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
        let start = if response.status().as_u16() == 206 { from.unwrap_or(start) } else { 0 };
        Ok(Incoming { start, body: response.into_body() })
    }

    /// Repeats what fails in passing, then gives up with the last reason.
    fn with_patience<T>(&self, attempt: impl Fn() -> Result<T, Failure>) -> Result<T, ModelError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => {
                    failures += 1;
                    if failures >= self.env.patience.attempts.min(3) {
                        return Err(ModelError::Network {
                            endpoint: self.env.endpoint.clone(),
                            reason,
                        });
                    }
                    std::thread::sleep(self.wait(failures));
                }
            }
        }
    }

    /// How long to wait after so many failures in a row.
    pub fn wait(&self, failures: u32) -> Duration {
        self.env.patience.first_wait * 2_u32.saturating_pow(failures.saturating_sub(1)).min(32)
    }

    pub fn attempts(&self) -> u32 {
        self.env.patience.attempts
    }

    /// GET with redirects followed by hand: the token goes to the hub alone, and the first answer's headers,
    /// which describe the file, are kept.
    fn get(&self, url: &str, range: &str) -> Result<(Response<Body>, HeaderMap), Failure> {
        let mut url = url.to_owned();
        let mut first: Option<HeaderMap> = None;
        for _ in 0..HOPS {
            let mut request = self.agent.get(&url).header("Range", range);
            if let Some(token) =
                self.env.token.as_ref().filter(|_| origin(&url) == origin(&self.env.endpoint))
            {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| self.failure(&error))?;
            let headers = first.get_or_insert_with(|| response.headers().clone());
            // A relative redirect (a renamed repository) only points to the answer that describes the file.
            if text(headers, "x-repo-commit").is_none() {
                *headers = response.headers().clone();
            }
            match text(response.headers(), "location") {
                Some(location) if response.status().is_redirection() => url = join(&url, location),
                _ => return Ok((response, first.unwrap_or_default())),
            }
        }
        Err(Failure::Final(ModelError::Answer {
            endpoint: url,
            found: format!("more than {HOPS} redirects"),
            expected: "a file".to_owned(),
        }))
    }

    fn failure(&self, error: &ureq::Error) -> Failure {
        let endpoint = self.env.endpoint.clone();
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Final(ModelError::Answer {
                endpoint,
                found: error.to_string(),
                expected: "HF_ENDPOINT as http://HOST or https://HOST".to_owned(),
            }),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                Failure::Final(ModelError::Network { endpoint, reason: error.to_string() })
            }
            _ => Failure::Passing(error.to_string()),
        }
    }

    fn check_status(
        &self,
        response: &Response<Body>,
        what: &str,
        repo: &Repo,
    ) -> Result<(), Failure> {
        let status = response.status().as_u16();
        let (what, endpoint) = (what.to_owned(), self.env.endpoint.clone());
        let missing = |what: String, expected: &str| {
            let found = format!("HTTP {status}");
            Failure::Final(ModelError::NotFound {
                what,
                endpoint: endpoint.clone(),
                found,
                expected: expected.to_owned(),
            })
        };
        match (status, error_code(response.headers())) {
            (200..=299, _) => Ok(()),
            (_, Some("RevisionNotFound")) => Err(missing(
                format!("revision {} ({what})", repo.revision()),
                "an existing branch, tag or commit",
            )),
            (401 | 404, Some("RepoNotFound")) if self.env.token.is_none() => Err(missing(
                what,
                "an existing public repository (for a private one, set HF_TOKEN)",
            )),
            (_, Some("RepoNotFound")) => {
                Err(missing(what, "an existing repository that HF_TOKEN may read"))
            }
            (404 | 410, _) => Err(missing(what, "an existing repository and file")),
            (401 | 403, code) => Err(Failure::Final(ModelError::Refused {
                what,
                endpoint,
                status,
                remedy: match (code, &self.env.token) {
                    (Some("GatedRepo"), _) => {
                        "accept its terms on its page, and set HF_TOKEN to a token of that account"
                            .to_owned()
                    }
                    (_, None) => {
                        "it is private or doesn't exist: check the name, or set HF_TOKEN".to_owned()
                    }
                    (_, Some(_)) => {
                        "the token (HF_TOKEN, or the file `token` in HF_HOME) has no access to it"
                            .to_owned()
                    }
                },
            })),
            (408 | 425 | 429 | 500..=599, _) => Err(Failure::Passing(format!("HTTP {status}"))),
            (status, _) => Err(Failure::Final(ModelError::Answer {
                endpoint,
                found: format!("HTTP {status} for {what}"),
                expected: "200, 206 or 404".to_owned(),
            })),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The hub says in this header what its status codes leave open.
fn error_code(headers: &HeaderMap) -> Option<&str> {
    text(headers, "x-error-code").filter(|code| !code.is_empty())
}

fn clean_etag(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// ETags and commits become file names.
fn is_safe_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=128).contains(&text.len()) && text.chars().all(good) && !text.starts_with('.')
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find(['/', '?', '#']).map_or(url.len(), |at| after_scheme + at);
    &url[..end]
}

fn join(base: &str, location: &str) -> String {
    if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.split("://").next().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        let folder = base.rfind('/').map_or(base, |at| &base[..at]);
        format!("{folder}/{location}")
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let host = origin(endpoint).rsplit("//").next().unwrap_or_default();
    host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_as_a_browser_would() {
        assert_eq!(origin("http://h:1/a/b?c"), "http://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert_eq!(join("http://h:1/a/b", "https://x/y"), "https://x/y");
        assert_eq!(join("http://h:1/a/b", "/y?z"), "http://h:1/y?z");
        assert_eq!(join("http://h:1/a/b", "//x/y"), "http://x/y");
        assert_eq!(join("http://h:1/a/b", "c"), "http://h:1/a/c");
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        assert!(is_safe_name("0a1b") && is_safe_name("etag-1.x"));
        for bad in ["", "..", "../x", "a/b", ".hidden", "a\\b"] {
            assert!(!is_safe_name(bad), "{bad}");
        }
        assert_eq!(clean_etag("W/\"abc\""), "abc");
    }
}
