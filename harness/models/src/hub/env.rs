//! The environment variables of the Hugging Face hub, all of them, as its own Python library reads them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the weights of unknown hash must come from to be vouched for.
pub const OFFICIAL_ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, where its cache is, who asks, and whether it may be asked at all.
#[derive(Clone)]
pub struct HubEnv {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the content of `HF_TOKEN_PATH`, else of `HF_HOME/token`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    pub patience: Patience,
}

/// How long a bad connection is put up with.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts in a row that may bring nothing new.
    pub attempts: u32,
    /// Wait after the first of them; doubled after each.
    pub first_wait: Duration,
    /// How long a connection may stay silent.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            attempts: 5,
            first_wait: Duration::from_millis(300),
            silence: Duration::from_secs(30),
        }
    }
}

impl HubEnv {
    /// What the process's environment says.
    pub fn from_env() -> HubEnv {
        HubEnv::from_vars(|name| std::env::var(name).ok())
    }

    /// The same from any set of variables.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> HubEnv {
        let set = |name: &str| {
            get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let user = set("HOME")
            .or_else(|| set("USERPROFILE"))
            .map(PathBuf::from)
            .or_else(std::env::home_dir);
        let path = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => user.join(rest),
            _ => std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(&text)),
        };
        let home = set("HF_HOME").map(path).unwrap_or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
            let caches = caches.or_else(|| user.as_ref().map(|user| user.join(".cache")));
            caches.unwrap_or_else(std::env::temp_dir).join("huggingface")
        });
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(path);
        let token_file = set("HF_TOKEN_PATH").map(path).unwrap_or_else(|| home.join("token"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| OFFICIAL_ENDPOINT.to_owned());
        HubEnv {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| read_token(&token_file)),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            patience: Patience::default(),
        }
    }
}

fn read_token(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

impl fmt::Debug for HubEnv {
    /// Without the token: what is printed ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubEnv")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> HubEnv {
        HubEnv::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_variable_is_honoured_in_its_order() {
        let plain = env(&[("HOME", "/u")]);
        assert_eq!(plain.endpoint, OFFICIAL_ENDPOINT);
        assert_eq!(plain.cache, Path::new("/u/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());

        assert_eq!(
            env(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]).cache,
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(env(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/h/hub"));
        assert_eq!(env(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
        assert_eq!(env(&[("HOME", "/u"), ("HF_HOME", "~/h")]).cache, Path::new("/u/h/hub"));
        assert_eq!(env(&[("HF_ENDPOINT", "http://mirror:8000/")]).endpoint, "http://mirror:8000");
        for (value, offline) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false), ("no", false)]
        {
            assert_eq!(
                env(&[("HF_HUB_OFFLINE", value)]).offline,
                offline,
                "HF_HUB_OFFLINE={value}"
            );
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file_and_is_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let from_file = env(&[("HF_HOME", home)]);
        assert_eq!(from_file.token.as_deref(), Some("hf_file"));
        let both = env(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]);
        assert_eq!(both.token.as_deref(), Some("hf_variable"));
        assert!(!format!("{both:?}").contains("hf_"), "{both:?}");
    }
}
