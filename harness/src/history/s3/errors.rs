//! What went wrong with a bucket, in words that say what to do; never the request, which is signed.

use std::error::Error as _;

use object_store::Error;

use super::place::{Url, endpoint, has_credentials};

/// The bucket itself, and not an object in it, is missing.
pub fn names_no_bucket(error: &Error) -> bool {
    code(error).is_some_and(|code| code == "NoSuchBucket")
}

/// What may go well when it is tried again: the connection broke, or the server is busy.
pub fn is_transient(error: &Error) -> bool {
    matches!(error, Error::Generic { .. })
        && code(error).is_none_or(|code| {
            matches!(
                code.as_str(),
                "InternalError"
                    | "SlowDown"
                    | "ServiceUnavailable"
                    | "RequestTimeout"
                    | "OperationAborted"
                    | "ConditionalRequestConflict"
            )
        })
}

/// `<Code>NoSuchBucket</Code>` of the answer that a server gave, wherever it stands among the causes.
fn code(error: &Error) -> Option<String> {
    chain(error).iter().find_map(|text| {
        let (_, rest) = text.split_once("<Code>")?;
        rest.split_once("</Code>").map(|(code, _)| code.to_string())
    })
}

fn chain(error: &Error) -> Vec<String> {
    let mut all = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        all.push(source.to_string());
        next = source.source();
    }
    all
}

/// Says what went wrong at a place.
pub struct Explain<'a> {
    url: &'a Url,
    server: String,
}

impl Explain<'_> {
    pub fn new(url: &Url) -> Explain<'_> {
        let server = endpoint().ok().flatten().unwrap_or_else(|| "Amazon S3".into());
        Explain { url, server }
    }

    pub fn words(&self, error: &Error) -> String {
        let Explain { url, server } = self;
        let found = code(error);
        let bucket = &url.bucket;
        match found.as_deref() {
            Some("NoSuchBucket") => {
                return format!("{server} has no bucket {bucket}; make it first, or name another");
            }
            Some(
                code @ ("InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"),
            ) => {
                return format!(
                    "{server} doesn't know these credentials ({code}); check AWS_ACCESS_KEY_ID, \
                     AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
                );
            }
            Some("AccessDenied") => {
                return format!(
                    "{server} refuses access (AccessDenied); the credentials need s3:GetObject, s3:PutObject and \
                     s3:ListBucket on {bucket}"
                );
            }
            Some(
                code @ ("PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"),
            ) => {
                return format!("{bucket} is in another region ({code}); set AWS_REGION to it");
            }
            _ => {}
        }
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                let code = found.map(|code| format!(" ({code})")).unwrap_or_default();
                return format!(
                    "{server} refuses access{code}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                );
            }
            Error::AlreadyExists { .. } | Error::Precondition { .. } => {
                return "others always wrote first; try again when fewer do".into();
            }
            _ => {}
        }
        if let Some(code) = found {
            return format!("{server} answered {code}");
        }
        if !has_credentials() {
            return format!(
                "found no credentials, and this machine gives none; set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY ({})",
                self.cause(error)
            );
        }
        format!(
            "failed to reach {server}: {}; check AWS_ENDPOINT and AWS_REGION",
            self.cause(error)
        )
    }

    /// The last of the causes, which is the system's own word.
    fn cause(&self, error: &Error) -> String {
        let last = chain(error).pop().unwrap_or_default();
        crate::text::shorten(last.lines().next().unwrap_or_default().trim(), 200)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.to_string().into() }
    }

    #[test]
    fn a_servers_code_is_found_and_its_answer_is_not_shown() {
        let answer = "Client error: <Error><Code>SignatureDoesNotMatch</Code><StringToSign>x</StringToSign></Error>";
        let url = Url::parse("s3://b/p").unwrap();
        let words = Explain::new(&url).words(&generic(answer));
        assert!(
            words.contains("SignatureDoesNotMatch") && !words.contains("StringToSign"),
            "{words}"
        );
        assert!(!is_transient(&generic(answer)));
        assert!(names_no_bucket(&generic("<Code>NoSuchBucket</Code>")));
    }

    #[test]
    fn a_broken_connection_and_a_busy_server_may_go_well_next_time() {
        assert!(is_transient(&generic("connection reset by peer")));
        assert!(is_transient(&generic("<Code>SlowDown</Code>")));
        assert!(!is_transient(&generic("<Code>NoSuchBucket</Code>")));
    }
}
