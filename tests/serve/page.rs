//! The daemon's pages in a browser: what they show is what the API says, and what they show as text stays text.

use std::process::Command;

use crate::browser::{chromium, python};
use crate::daemon::Daemon;
use crate::repository;

const KEY: &str = "sesame";

#[test]
fn the_pages_show_what_the_api_says() {
    // They may still be loading: the page says so.
    let open = Daemon::start_without_waiting(&[]);
    let keyed = Daemon::start_in(&[], &[("LLORCH_API_KEY", KEY)]);
    // Kept, for people to look at.
    let shots = repository().join("target/reports/serve");
    let output = Command::new(python())
        .arg(repository().join("tests/browser/serve.py"))
        .arg(chromium())
        .args([&open.url, &keyed.url, KEY])
        .arg(&shots)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
