//! What the environment and a URL say of a bucket.

use std::fmt;

use crate::history::store::StoreError;

/// `s3://BUCKET/PREFIX`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub bucket: String,
    pub prefix: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, StoreError> {
        let rest = text.strip_prefix("s3://").unwrap_or(text);
        // It may be a key and its secret.
        let shown = match rest.rsplit_once('@') {
            Some((_, behind)) => format!("s3://…@{behind}"),
            None => text.to_string(),
        };
        let wrong = |message: &str| StoreError::Place {
            place: shown.clone(),
            message: format!("{message}; expected s3://BUCKET/PREFIX"),
        };
        if rest.contains('@') {
            return Err(wrong(
                "found something in front of an @; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(wrong("found a query; the endpoint comes from AWS_ENDPOINT"));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong("found no bucket"));
        }
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !bucket.bytes().all(known) {
            return Err(wrong(&format!(
                "found the bucket {bucket:?}, which can't be a bucket's name"
            )));
        }
        let prefix = prefix.trim_matches('/');
        if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
            return Err(wrong(&format!("found the prefix {prefix:?}")));
        }
        Ok(Url { bucket: bucket.into(), prefix: prefix.into() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where requests go, if not to Amazon; checked for what would never work.
pub fn endpoint() -> Result<Option<String>, String> {
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let Some((name, value)) = names.iter().find_map(|name| Some((name, set(name)?))) else {
        return Ok(None);
    };
    let scheme = value.split_once("://").map_or("", |(scheme, _)| scheme);
    let shown = without_user(&value);
    let http_allowed = set("AWS_ALLOW_HTTP").is_some_and(|v| matches!(v.as_str(), "true" | "1"));
    match scheme {
        "https" => Ok(Some(shown)),
        "http" if http_allowed => Ok(Some(shown)),
        "http" => Err(format!(
            "{name} is {shown}, which is not encrypted; set AWS_ALLOW_HTTP=true to use it all the same"
        )),
        _ => Err(format!("{name} is {shown:?}; expected an https:// address")),
    }
}

/// An address without the name and the password that may stand in it.
fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, behind))) => format!("{scheme}://{behind}"),
        _ => url.to_string(),
    }
}

/// Whether the environment says who we are, so that the machine need not be asked.
pub fn has_credentials() -> bool {
    let names = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    names.iter().any(|name| set(name).is_some())
        || set("AWS_SKIP_SIGNATURE").is_some_and(|v| v == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_and_a_prefix() {
        let url = Url::parse("s3://runs/llorch/main/").unwrap();
        assert_eq!((url.bucket.as_str(), url.prefix.as_str()), ("runs", "llorch/main"));
        assert_eq!(url.to_string(), "s3://runs/llorch/main");
        assert_eq!(Url::parse("s3://runs").unwrap().to_string(), "s3://runs");
    }

    #[test]
    fn what_cannot_be_meant_is_told_and_no_secret_with_it() {
        let cases = [
            ("s3://", "no bucket"),
            ("s3:///prefix", "no bucket"),
            ("s3://my bucket/x", "can't be a bucket's name"),
            ("s3://b/x?region=eu", "query"),
            ("s3://b/../x", "prefix"),
            ("s3://KEY:SECRET@b/x", "AWS_SECRET_ACCESS_KEY"),
        ];
        for (url, found) in cases {
            let error = Url::parse(url).unwrap_err().to_string();
            assert!(error.contains(found) && error.contains("s3://BUCKET/PREFIX"), "{error}");
            assert!(!error.contains("KEY:SECRET"), "{error}");
        }
        assert_eq!(without_user("https://me:word@host:9000/x"), "https://host:9000/x");
        assert_eq!(without_user("https://host"), "https://host");
    }
}
