//! `bisect --commits GOOD..BAD -- BUILD_COMMAND`: the first bad commit, by `git bisect run`.
//!
//! Git works in a worktree of its own, so that the user's checkout stays as it is. It runs this
//! program once more for each commit ([`one`]), which builds, searches as it would without
//! `--commits`, leaves its answer in a file, and tells git with its exit code: 0 good, 1 bad, 125 for
//! what can't be tested (it doesn't build, nothing could run, only an interval is known).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use llorch_models::progress::{Bar, Progress, is_quiet};

use super::{Args, Form, tell};
use crate::run::RunError;
use crate::supervise::{
    AdapterCommand, Cleanup, ExitState, ToolEvent, ToolFailure, ToolFailureKind,
    remove_on_interrupt, run_tool, run_tool_with,
};
use crate::text::{print, shell_word};

/// A build that takes longer hangs.
const BUILD: Duration = Duration::from_secs(2 * 60 * 60);
/// All commits together.
const ALL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What git itself needs for one command on a large repository.
const GIT: Duration = Duration::from_secs(10 * 60);

/// Tells `git bisect run` that a commit can't be tested.
const SKIP: u8 = 125;
/// Tells it to stop.
const STOP: u8 = 255;

/// Searches the history.
pub fn run(args: &Args, range: &str) -> anyhow::Result<ExitCode> {
    let (good, bad) = ends(range)?;
    if args.common.subject.as_deref().is_none_or(|s| s.starts_with("http")) {
        return Err(usage(
            "failed to bisect commits: say with --subject how the engine that each commit builds is started, for \
             instance --subject 'target/release/llorch-cpud trace'",
        ));
    }
    let here = Repository::here()?;
    let (good, bad) = (here.commit(good)?, here.commit(bad)?);
    let worktree = Worktree::add(&here, &bad)?;
    let answers = tempfile::Builder::new().prefix("llorch-commits-").tempdir()?;
    let _cleanup = remove_on_interrupt(answers.path());
    let between: usize = worktree
        .git(&["rev-list", "--count", &format!("{good}..{bad}")])?
        .parse()
        .unwrap_or_default();
    // Both ends, and between them half of what is left with each.
    let steps = 2 + between.checked_ilog2().map_or(0, |halvings| halvings as usize);
    let bar = Progress::new(false).steps("bisect of commits", "commit", steps);
    let mut search = Search { args, worktree: &worktree, answers: answers.path(), bar: Some(bar) };

    // The ends first: git takes the user's word for them.
    search.tell(0);
    match search.one()? {
        1 => {}
        code => return Err(unlike("bad", &here.told(&bad)?, code, args)),
    }
    worktree.git(&["checkout", "--quiet", "--detach", &good])?;
    search.tell(1);
    match search.one()? {
        0 => {}
        code => return Err(unlike("good", &here.told(&good)?, code, args)),
    }
    worktree.git(&["bisect", "start", &bad, &good])?;
    search.tell(2);
    let ended = search.all();
    search.bar = None;
    let first = worktree.git(&["rev-parse", "refs/bisect/bad"])?;
    if let Err(failure) = ended {
        return search.open(&here, &failure, &first);
    }
    let text = match args.format {
        Form::Text => {
            format!("FIRST BAD COMMIT {}\n{}", here.told(&first)?, search.text(&first)?)
        }
        Form::Json => {
            let mut answer = search.json(&first)?;
            answer["commit"] = first.into();
            serde_json::to_string_pretty(&answer)?
        }
    };
    print(&text)?;
    Ok(ExitCode::from(1))
}

/// One commit, as `git bisect run` asks for it: builds what is checked out here and searches it.
pub fn one(args: &Args, answers: &Path) -> ExitCode {
    if let Some((program, words)) = args.build.split_first() {
        let build = AdapterCommand::new("the build command", program).args(words.iter().cloned());
        if let Err(failure) = run_tool(&build, BUILD, None) {
            llorch_models::errln!("{failure}");
            return ExitCode::from(SKIP);
        }
    }
    let commit = match git(Path::new("."), &["rev-parse", "HEAD"]) {
        Ok(commit) => commit,
        Err(error) => return stop(&error),
    };
    match super::search(args) {
        Ok((text, code)) => match fs::write(answers.join(answer_name(&commit, args)), text) {
            Ok(()) => ExitCode::from(if code <= 1 { code } else { SKIP }),
            Err(error) => stop(&error.into()),
        },
        Err(error) => {
            llorch_models::errln!("error: {error:#}");
            // A mistake of usage is one in every commit.
            let usage = matches!(error.downcast_ref(), Some(RunError::Usage(_)));
            ExitCode::from(if usage { STOP } else { SKIP })
        }
    }
}

fn stop(error: &anyhow::Error) -> ExitCode {
    llorch_models::errln!("error: {error:#}");
    ExitCode::from(STOP)
}

fn answer_name(commit: &str, args: &Args) -> String {
    let form = if args.format == Form::Json { "json" } else { "txt" };
    format!("{commit}.{form}")
}

fn ends(range: &str) -> anyhow::Result<(&str, &str)> {
    if range.contains("...") {
        return Err(usage(&format!(
            "failed to read --commits {range:?}: three dots are another set of commits to git; expected GOOD..BAD"
        )));
    }
    match range.split_once("..").map(|(a, b)| (a.trim(), b.trim())) {
        Some((good, "")) if !good.is_empty() => Ok((good, "HEAD")),
        Some((good, bad)) if !good.is_empty() => Ok((good, bad)),
        _ => Err(usage(&format!("failed to read --commits {range:?}; expected GOOD..BAD"))),
    }
}

fn usage(what: &str) -> anyhow::Error {
    RunError::Usage(what.to_string()).into()
}

/// An end of the range that isn't what it was said to be.
fn unlike(said: &str, commit: &str, code: u8, args: &Args) -> anyhow::Error {
    let found = match code {
        0 => "no divergence was found there".to_string(),
        1 => "a cause was found there already".to_string(),
        STOP => return usage("failed to bisect commits: see the message above"),
        _ if args.build.is_empty() => "it could not be tested; see above".to_string(),
        _ => "it does not build, or could not be tested; see above".to_string(),
    };
    usage(&format!("failed to bisect commits: {commit} is said to be {said}, and {found}"))
}

/// The repository of the current folder.
struct Repository {
    top: PathBuf,
    /// The current folder below it.
    prefix: String,
}

impl Repository {
    fn here() -> anyhow::Result<Repository> {
        let here = Path::new(".");
        let top = git(here, &["rev-parse", "--show-toplevel"]).map_err(|error| {
            usage(&format!("failed to bisect commits: no git repository here: {error}"))
        })?;
        Ok(Repository { top: top.into(), prefix: git(here, &["rev-parse", "--show-prefix"])? })
    }

    fn commit(&self, name: &str) -> anyhow::Result<String> {
        git(&self.top, &["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")])
            .map_err(|_| {
                usage(&format!("failed to find commit {name:?} in {}", self.top.display()))
            })
    }

    /// Short hash, date and subject.
    fn told(&self, commit: &str) -> anyhow::Result<String> {
        git(&self.top, &["show", "--no-patch", "--date=short", "--format=%h %ad %s", commit])
    }
}

/// A checkout for git to move about in.
struct Worktree<'a> {
    repository: &'a Repository,
    dir: tempfile::TempDir,
    /// Of the checkout, and of git's record of it.
    _cleanup: [Cleanup; 2],
}

impl<'a> Worktree<'a> {
    fn add(repository: &'a Repository, commit: &str) -> anyhow::Result<Worktree<'a>> {
        let dir = tempfile::Builder::new().prefix("llorch-worktree-").tempdir()?;
        let cleanup = remove_on_interrupt(dir.path());
        let path = dir.path().join("tree").to_string_lossy().into_owned();
        git(&repository.top, &["worktree", "add", "--quiet", "--detach", &path, commit])?;
        let record = git(Path::new(&path), &["rev-parse", "--absolute-git-dir"])?;
        let record = remove_on_interrupt(Path::new(&record));
        Ok(Worktree { repository, dir, _cleanup: [cleanup, record] })
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn git(&self, args: &[&str]) -> anyhow::Result<String> {
        git(&self.tree(), args)
    }
}

impl Drop for Worktree<'_> {
    fn drop(&mut self) {
        let path = self.tree().to_string_lossy().into_owned();
        // What is left of it says git's own `worktree prune`.
        let _ = git(&self.repository.top, &["worktree", "remove", "--force", &path]);
    }
}

struct Search<'a> {
    args: &'a Args,
    worktree: &'a Worktree<'a>,
    answers: &'a Path,
    /// While it goes on.
    bar: Option<Bar>,
}

impl Search<'_> {
    /// This program again, for the commit that is checked out.
    fn again(&self) -> anyhow::Result<Vec<String>> {
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        let mut words = vec![program, "bisect".to_string()];
        words.push(format!("--as-commit={}", self.answers.display()));
        let mine = std::env::args().skip_while(|word| word != "bisect").skip(1);
        words.extend(is_quiet().then(|| "--quiet".to_string()));
        words.extend(passed_on(mine));
        words.push("--".into());
        words.extend(self.args.build.iter().cloned());
        Ok(words)
    }

    fn command(&self, name: &str, words: Vec<String>) -> AdapterCommand {
        let mut words = words.into_iter();
        let program = words.next().unwrap_or_default();
        let folder = self.worktree.tree().join(&self.worktree.repository.prefix);
        AdapterCommand::new(name, program).args(words).cwd(folder)
    }

    fn tell(&self, tested: u64) {
        if let Some(bar) = &self.bar {
            bar.set(tested);
        }
    }

    /// The exit code for the commit that is checked out.
    fn one(&self) -> anyhow::Result<u8> {
        let command = self.command("bisect of one commit", self.again()?);
        match self.tool(&command) {
            Ok(()) => Ok(0),
            Err(ToolFailure { kind: ToolFailureKind::Exit(ExitState::Exited(code)), .. }) => {
                Ok(u8::try_from(code).unwrap_or(STOP))
            }
            Err(failure) => Err(RunError::Environment(failure.to_string()).into()),
        }
    }

    /// All that lies between.
    fn all(&self) -> Result<(), ToolFailure> {
        let again = self.again().unwrap_or_default();
        let words = ["git", "bisect", "run"].map(String::from).into_iter().chain(again);
        self.tool(&self.command("git bisect run", words.collect()))
    }

    fn tool(&self, command: &AdapterCommand) -> Result<(), ToolFailure> {
        let mut say = |event: ToolEvent<'_>| {
            let ToolEvent::Line(line) = event else { return };
            let Some(bar) = &self.bar else { return };
            bar.say(line.trim_end());
            // Git's word when it has chosen the next commit.
            if line.starts_with("Bisecting: ") {
                bar.add(1);
            }
        };
        run_tool_with(command, ALL, None, &mut say).map(|_| ())
    }

    /// As the search of that commit left it.
    fn saved(&self, commit: &str) -> std::io::Result<String> {
        fs::read_to_string(self.answers.join(answer_name(commit, self.args)))
    }

    /// What was found at a commit. The command that finds it again starts at that commit.
    fn text(&self, commit: &str) -> anyhow::Result<String> {
        let answer = self.saved(commit)?;
        let lines = answer.lines().map(|line| match line.strip_prefix(tell::REPRODUCE) {
            Some(command) => format!("{}{}", tell::REPRODUCE, self.reproduce(commit, command)),
            None => line.to_string(),
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// The same as JSON.
    fn json(&self, commit: &str) -> anyhow::Result<serde_json::Value> {
        let mut answer: serde_json::Value = serde_json::from_str(&self.saved(commit)?)?;
        if let Some(command) = answer["reproduce"].as_str() {
            answer["reproduce"] = self.reproduce(commit, command).into();
        }
        Ok(answer)
    }

    fn reproduce(&self, commit: &str, command: &str) -> String {
        let build: Vec<String> = self.args.build.iter().map(|word| shell_word(word)).collect();
        format!("git checkout {commit} && {} && {command}", build.join(" "))
    }

    /// Git could not come to one commit.
    fn open(
        &self,
        here: &Repository,
        failure: &ToolFailure,
        bad: &str,
    ) -> anyhow::Result<ExitCode> {
        let log = self.worktree.git(&["bisect", "log"]).unwrap_or_default();
        let skipped = log.lines().filter(|l| l.starts_with("git bisect skip")).count();
        if skipped == 0 {
            return Err(
                RunError::Environment(format!("failed to bisect commits: {failure}")).into()
            );
        }
        // What was found at the last commit that could be tested.
        print(&match self.args.format {
            Form::Text => format!(
                "FIRST BAD COMMIT {}, or one of the {skipped} before it that could not be tested\n{}",
                here.told(bad)?,
                self.text(bad)?
            ),
            Form::Json => {
                let mut answer = self.json(bad)?;
                answer["commit"] = serde_json::Value::Null;
                answer["commit_or_before"] = bad.into();
                answer["commits_untested"] = skipped.into();
                serde_json::to_string_pretty(&answer)?
            }
        })?;
        Ok(ExitCode::from(4))
    }
}

/// The options of this run without those that are about commits; paths of the user's files become
/// absolute, since each commit is tested in another folder.
fn passed_on(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut words = words.take_while(|word| word != "--");
    let mut passed = Vec::new();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                (name.to_string(), Some(value.to_string()))
            }
            _ => (word.clone(), None),
        };
        match name.as_str() {
            // Passed on once, wherever it stood.
            "--quiet" | "-q" => {}
            "--commits" | "--out" => {
                if value.is_none() {
                    words.next();
                }
            }
            "--suite" | "--model" => {
                let value = value.or_else(|| words.next()).unwrap_or_default();
                // A model may be a name as well as a folder.
                let absolute = Path::new(&value)
                    .canonicalize()
                    .ok()
                    .filter(|p| name == "--suite" || p.is_dir());
                let value = absolute.map_or(value, |p| p.to_string_lossy().into_owned());
                passed.push(format!("{name}={value}"));
            }
            _ => passed.push(word),
        }
    }
    passed
}

/// What git prints, trimmed.
fn git(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let command = AdapterCommand::new("git", "git").args(args.iter().copied()).cwd(dir);
    let output = run_tool(&command, GIT, None)
        .map_err(|failure| anyhow::Error::new(RunError::Environment(failure.brief())))?;
    Ok(output.stdout.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_ends() {
        assert_eq!(ends("v1..main").unwrap(), ("v1", "main"));
        assert_eq!(ends("v1..").unwrap(), ("v1", "HEAD"));
        for wrong in ["v1", "..main", "v1...main", ""] {
            assert!(ends(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_about_commits_stay_behind() {
        let words = ["--commits", "a..b", "--ref=hf", "--out", "x", "--prompt", "Hi", "--", "make"];
        let passed = passed_on(words.map(String::from).into_iter());
        assert_eq!(passed, ["--ref=hf", "--prompt", "Hi"]);
        let suite = passed_on(["--suite", "."].map(String::from).into_iter());
        assert!(Path::new(suite[0].trim_start_matches("--suite=")).is_absolute());
    }
}
