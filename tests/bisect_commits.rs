//! `llorch-diff bisect --commits` in a small repository whose engine gets a bug.
#![allow(clippy::disallowed_methods)] // a test starts the programs that it tests

mod run_support;

use run_support::seeded::{Short, bug_adapter};
use run_support::{diff, texts};

#[test]
fn the_first_bad_commit_is_found_without_touching_the_checkout() {
    let place = Short::new();
    let git = |words: &[&str]| git(&place, words);
    git(&["init", "--quiet"]);
    let engine = "import os, shlex, sys\n\
        words = shlex.split(os.environ['BUG_ADAPTER'])\n\
        while '=' in words[0]:\n    os.environ.update([words.pop(0).split('=', 1)])\n\
        os.execvp(words[0], words + open('built').read().split())\n";
    std::fs::write(place.path("engine.py"), engine).unwrap();
    let build = "import shutil, sys\nsys.exit('broken' in open('source').read() or shutil.copy('source', 'built') is None)\n";
    std::fs::write(place.path("build.py"), build).unwrap();
    let commits = [
        ("the first", ""),
        ("still right", " "),
        ("does not build", "broken"),
        ("right again", ""),
        ("faster projection", "--bug transposed:layer=1"),
        ("the last", "--bug transposed:layer=1 "),
    ];
    for (subject, source) in commits {
        std::fs::write(place.path("source"), source).unwrap();
        git(&["add", "engine.py", "build.py", "source"]);
        git(&["commit", "--quiet", "-m", subject]);
    }
    std::fs::write(place.path("source"), "not committed").unwrap();
    let bisect = |range: &str| {
        diff()
            .args([
                "bisect",
                "--quiet",
                "--no-heal",
                "--ref",
                "none",
                "--suite",
                place.suite().to_str().unwrap(),
            ])
            .args([
                "--subject",
                "python3 engine.py",
                "--commits",
                range,
                "--",
                "python3",
                "build.py",
            ])
            .env("BUG_ADAPTER", bug_adapter())
            .current_dir(place.path(""))
            .output()
            .unwrap()
    };
    let output = bisect("HEAD~5..HEAD");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    let mut lines = stdout.lines();
    let first = lines.next().unwrap();
    assert!(
        first.starts_with("FIRST BAD COMMIT ") && first.ends_with(" faster projection"),
        "{stdout}"
    );
    let second = lines.next().unwrap();
    assert!(
        second.starts_with("FIRST CAUSE h.1.attn.out · layer 1 ")
            && second.ends_with("matches after transpose"),
        "{stdout}"
    );

    let told = stdout.lines().find(|l| l.starts_with("reproduce with: ")).unwrap();
    let bad = git(&["rev-parse", "HEAD~1"]);
    let expected =
        format!("reproduce with: git checkout {bad} && python3 build.py && llorch-diff bisect ");
    assert!(told.starts_with(&expected), "{told}");

    // Ends that are not what they are said to be.
    for (range, said) in [("HEAD~5..HEAD~4", "said to be bad"), ("HEAD~1..HEAD", "said to be good")]
    {
        let output = bisect(range);
        assert_eq!(output.status.code(), Some(2), "{}", texts(&output).1);
        assert!(texts(&output).1.contains(said), "{}", texts(&output).1);
    }
    assert_eq!(std::fs::read_to_string(place.path("source")).unwrap(), "not committed");
    assert_eq!(git(&["worktree", "list"]).lines().count(), 1);
    assert_eq!(git(&["status", "--porcelain", "--untracked-files=no"]), "M source");
}

#[test]
fn an_interrupted_search_leaves_no_worktree() {
    let place = Short::new();
    let git = |words: &[&str]| git(&place, words);
    git(&["init", "--quiet"]);
    git(&["commit", "--quiet", "--allow-empty", "-m", "one"]);
    git(&["commit", "--quiet", "--allow-empty", "-m", "two"]);
    // The build tells that it runs, and then takes its time.
    let began = place.path("began");
    let build = format!("import pathlib, time\npathlib.Path({began:?}).touch()\ntime.sleep(300)\n");
    std::fs::write(place.path("build.py"), build).unwrap();
    let build = place.path("build.py");
    let mut search = diff()
        .args(["bisect", "--quiet", "--ref", "none", "--subject", "engine"])
        .args(["--commits", "HEAD~1..HEAD", "--", "python3", build.to_str().unwrap()])
        .current_dir(place.path(""))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !began.exists() {
        assert!(search.try_wait().unwrap().is_none(), "ended before it built");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(git(&["worktree", "list"]).lines().count(), 2);
    let id = search.id().to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert_eq!(search.wait().unwrap().code(), Some(130));
    assert_eq!(git(&["worktree", "list"]).lines().count(), 1);
}

/// What git prints in the folder.
fn git(place: &Short, words: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
        .args(words)
        .current_dir(place.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", texts(&output).1);
    texts(&output).0.trim().to_string()
}
