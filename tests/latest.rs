//! References at their newest release: resolved by the real `uv` and `cargo`, from registries that are
//! folders of the test. Nothing here needs a network (but to install `uv` where a machine has none).

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llorch_diff::provision::prune::{self, Outcome};
use llorch_diff::provision::{Missing, ProvisionOptions, Provisioner, newest};
use llorch_diff::references::{Reference, Release};
use llorch_diff::supervise::{
    AdapterCommand, ExitState, Limits, Session, ToolFailureKind, run_tool,
};
use llorch_trace::hash::sha256_bytes;

const QUIET: ProvisionOptions = ProvisionOptions { offline: false, quiet: true, allow: true };
const OFFLINE: ProvisionOptions = ProvisionOptions { offline: true, ..QUIET };

/// A cache, a reference that is `tiny==1.0.0`, and registries of its own.
struct World {
    dir: tempfile::TempDir,
}

/// Says hello with the version of the package that it was installed with.
const ADAPTER: &str = r#"
import json, sys
import tiny
for line in sys.stdin:
    print(json.dumps({"type": "hello", "protocol": 1, "name": "fake", "version": "tiny " + tiny.VERSION,
        "worth": "kernels", "capabilities": [], "unsupported": [], "recipes": {}}), flush=True)
"#;

impl World {
    /// The index `index` has these releases of the package; `1.0.0` is pinned.
    fn new(index: &str, releases: &[Wheel]) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        world.write("sources/adapters/python/fake/adapter.py", ADAPTER);
        world.write("sources/refs/fake/requirements.in", "tiny==1.0.0\n");
        world.index(index, releases);
        let wheel = std::fs::read(world.path(&format!("{index}.d/{}", wheel("1.0.0").file())));
        let hash = sha256_bytes(&wheel.unwrap());
        let lock =
            format!("tiny==1.0.0 \\\n    --hash=sha256:{hash}\n    # via -r requirements.in\n");
        world.write("sources/refs/fake/requirements.lock", &lock);
        world
    }

    /// A folder of wheels, and `uv` as it is where that folder is the package index.
    fn index(&self, name: &str, releases: &[Wheel]) {
        for release in releases {
            let file = self.path(&format!("{name}.d/{}", release.file()));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            release.write(&file);
        }
        let uv = Provisioner::new(QUIET).uv_program().unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> '{calls}'\nexport UV_NO_INDEX=1 UV_OFFLINE=1 UV_FIND_LINKS='{wheels}' UV_CACHE_DIR='{cache}'\nexec '{uv}' \"$@\"\n",
            calls = self.path("calls").display(),
            wheels = self.path(&format!("{name}.d")).display(),
            cache = self.path("uv-cache").display(),
            uv = uv.display(),
        );
        self.write(name, &script);
        self.executable(name);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn executable(&self, name: &str) {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    /// Where `index` is the package index.
    fn provisioner(&self, index: &str, options: ProvisionOptions) -> Provisioner {
        Provisioner {
            cache: self.path("cache"),
            shared_cache: self.path("cache"),
            sources: Some(self.path("sources")),
            uv: Some(self.path(index)),
            ..Provisioner::new(options)
        }
    }

    fn latest(&self, index: &str, options: ProvisionOptions) -> Result<AdapterCommand, Missing> {
        let provisioner = self.provisioner(index, options);
        provisioner.ensure_release(&reference(), None, Some(&Release::Latest))
    }

    fn pinned(&self, index: &str) -> Result<AdapterCommand, Missing> {
        self.provisioner(index, QUIET).ensure_release(&reference(), None, None)
    }

    /// How often uv was called with a line that begins so.
    fn calls(&self, begin: &str) -> usize {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(begin)).count()
    }
}

/// One release of the package.
struct Wheel {
    version: &'static str,
    requires_python: &'static str,
    code: String,
}

fn wheel(version: &'static str) -> Wheel {
    Wheel { version, requires_python: ">=3.8", code: format!("VERSION = '{version}'\n") }
}

impl Wheel {
    fn file(&self) -> String {
        format!("tiny-{}-py3-none-any.whl", self.version)
    }

    fn write(&self, file: &Path) {
        let (version, python) = (self.version, self.requires_python);
        let info = format!("tiny-{version}.dist-info");
        let metadata = format!(
            "Metadata-Version: 2.1\nName: tiny\nVersion: {version}\nRequires-Python: {python}\n"
        );
        let kind =
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
        let record = format!("tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(file).unwrap());
        for (name, text) in [
            ("tiny.py".into(), self.code.as_str()),
            (format!("{info}/METADATA"), &metadata),
            (format!("{info}/WHEEL"), kind),
            (format!("{info}/RECORD"), &record),
        ] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }
}

fn reference() -> Reference {
    let text = r#"
        name = "fake"
        worth = "kernels"
        kind = "python"
        licence = "none"
        download_mb = 1
        disk_mb = 1
        entry = "fake/adapter.py"
        python = "3.8"
        requirements = "requirements.lock"
        summary = "a stand-in"
        "#;
    toml::from_str(text).unwrap()
}

/// The version that an adapter says.
fn greet(command: &AdapterCommand) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let session = Session::start(command, &Limits::default(), file.path()).unwrap();
    let version = session.hello().version.clone();
    session.finish();
    version
}

#[test]
fn the_newest_release_is_another_environment_beside_the_pinned_one() {
    let releases = [wheel("1.0.0"), wheel("1.1.0"), wheel("1.2.0"), wheel("2.0.0rc1")];
    let world = World::new("index", &releases);
    let latest = world.latest("index", QUIET).unwrap();
    assert_eq!(greet(&latest), "tiny 1.2.0", "the newest that is no prerelease");
    let pinned = world.pinned("index").unwrap();
    assert_eq!(greet(&pinned), "tiny 1.0.0");
    assert_ne!(latest.program, pinned.program);

    // Each says what it was installed from, and the pins are as they were.
    let lock = std::fs::read(world.path("sources/refs/fake/requirements.lock")).unwrap();
    assert_eq!(pinned.lock_sha256, Some(sha256_bytes(&lock)));
    let other = latest.lock_sha256.clone().unwrap();
    assert_ne!(latest.lock_sha256, pinned.lock_sha256);
    let kept =
        world.path(&format!("cache/latest/fake-{}/refs/fake/requirements.lock", &other[..16]));
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(kept.starts_with("tiny==1.2.0 \\\n    --hash=sha256:"), "{kept}");
    assert_eq!(sha256_bytes(kept.as_bytes()), other);

    // It is asked for once in a process, and afterwards there without a network.
    let asked = world.calls("pip compile");
    assert_eq!(world.latest("index", QUIET).unwrap().program, latest.program);
    let offline = world.latest("index", OFFLINE).unwrap();
    assert_eq!((offline.program, world.calls("pip compile")), (latest.program, asked));
    assert_eq!(world.calls("pip install"), 2);
}

#[test]
fn where_the_newest_is_the_pinned_one_its_environment_serves() {
    let world = World::new("index", &[wheel("1.0.0"), wheel("1.1.0b2")]);
    let pinned = world.pinned("index").unwrap();
    let latest = world.latest("index", QUIET).unwrap();
    assert_eq!((latest.program, world.calls("pip install")), (pinned.program, 1));
    assert_eq!(latest.lock_sha256, pinned.lock_sha256);
    let offline = world.latest("index", OFFLINE).unwrap();
    assert_eq!(offline.lock_sha256, pinned.lock_sha256);

    // Other pins since then: what was newest is not known.
    world.write("sources/refs/fake/requirements.lock", "# nothing\n");
    let missing = world.latest("index", OFFLINE).unwrap_err();
    assert!(missing.reason.contains("fake@latest was never resolved"), "{missing}");
}

#[test]
fn a_release_for_another_python_and_what_the_pins_rule_out_are_passed_over() {
    let elsewhere = Wheel { requires_python: ">=9", ..wheel("1.5.0") };
    let releases = [wheel("1.0.0"), wheel("1.4.0"), elsewhere, wheel("2.0.0")];
    let world = World::new("index", &releases);
    world
        .write("sources/refs/fake/requirements.in", "# why\ntiny==1.0.0,<2  # until it is fixed\n");
    let told = world.path("told");
    let inner = AdapterCommand::new("inner", std::env::current_exe().unwrap())
        .args(["--exact", "inner_latest", "--ignored", "--nocapture"])
        .env(WORLD, world.dir.path().to_string_lossy());
    run_tool(&inner, Duration::from_secs(120), Some(&told)).unwrap();
    let told = std::fs::read_to_string(told).unwrap();
    for line in [
        "fake@latest: asking the package index for its newest release",
        "fake@latest: its newest releases are tiny 1.4.0 (pinned: tiny 1.0.0)",
        "fake@latest: ready: tiny 1.4.0",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(told.contains("tiny 1.5.0 is out, but tiny 1.4.0 is the newest for Python"), "{told}");
}

#[test]
fn a_release_of_tomorrow_is_yet_another_and_offline_remembers_the_last() {
    let world = World::new("today", &[wheel("1.0.0"), wheel("1.1.0")]);
    let today = world.latest("today", QUIET).unwrap();
    world.index("tomorrow", &[wheel("1.0.0"), wheel("1.1.0"), wheel("1.2.0")]);
    let tomorrow = world.latest("tomorrow", QUIET).unwrap();
    assert_eq!((greet(&today), greet(&tomorrow)), ("tiny 1.1.0".into(), "tiny 1.2.0".into()));
    assert_eq!(world.latest("today", OFFLINE).unwrap().program, tomorrow.program);
}

#[test]
fn what_was_never_resolved_is_missing_without_a_network_and_nothing_is_tried() {
    let world = World::new("index", &[wheel("1.0.0")]);
    for (options, why) in [
        (OFFLINE, "--offline forbids to ask for its newest release"),
        (ProvisionOptions { allow: false, ..QUIET }, "it may not be installed here"),
    ] {
        let missing = world.latest("index", options).unwrap_err();
        assert!(missing.reason.contains("fake@latest was never resolved"), "{missing}");
        assert!(missing.reason.contains(why), "{missing}");
        assert_eq!(missing.mend, "llorch-diff adapters setup fake@latest");
    }
    assert_eq!(world.calls(""), 0, "uv was called");
}

#[test]
fn an_index_that_has_no_answer_leaves_it_missing_with_the_reason() {
    let world = World::new("index", &[wheel("1.0.0")]);
    let before = world.latest("index", QUIET).unwrap();
    world.index("empty", &[]);
    std::fs::create_dir_all(world.path("empty.d")).unwrap();
    let missing = world.latest("empty", QUIET).unwrap_err();
    assert!(missing.reason.starts_with("fake@latest can't be resolved: error: "), "{missing}");
    assert!(missing.reason.contains("tiny was not found"), "{missing}");
    assert!(missing.reason.contains("; --offline takes what it was on 2"), "{missing}");
    assert_eq!(missing.mend, "llorch-diff adapters setup fake@latest");
    // What was known before still is, and nothing half-made is left.
    assert_eq!(world.latest("empty", OFFLINE).unwrap().program, before.program);
    let entries = std::fs::read_dir(world.path("cache/latest")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let left: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_newest_release_that_does_not_run_is_missing_and_the_pinned_one_is_not() {
    let broken = Wheel { code: "import no_such_module\n".into(), ..wheel("1.1.0") };
    let world = World::new("index", &[wheel("1.0.0"), broken]);
    let missing = world.latest("index", QUIET).unwrap_err();
    assert!(missing.reason.starts_with("fake@latest was installed but doesn't start"), "{missing}");
    assert!(missing.reason.contains("No module named 'no_such_module'"), "{missing}");
    assert_eq!(greet(&world.pinned("index").unwrap()), "tiny 1.0.0");
}

#[test]
fn prune_takes_newest_releases_first_and_says_so() {
    let world = World::new("index", &[wheel("1.0.0"), wheel("1.1.0")]);
    let pinned = world.pinned("index").unwrap();
    // By another process, so that this one doesn't use it.
    let inner = AdapterCommand::new("inner", std::env::current_exe().unwrap())
        .args(["--exact", "inner_latest", "--ignored", "--nocapture"])
        .env(WORLD, world.dir.path().to_string_lossy());
    run_tool(&inner, Duration::from_secs(120), None).unwrap();
    world.write("cache/adapters/0000000000000000/old.py", "");

    let provisioner = world.provisioner("index", QUIET);
    let candidates = prune::candidates(&provisioner, &[reference()], false);
    let (newest, old): (Vec<_>, Vec<_>) = candidates.iter().partition(|c| c.throw_away);
    assert!(candidates.is_sorted_by_key(|c| !c.throw_away), "{candidates:?}");
    assert!(old.iter().any(|c| c.path.ends_with("adapters/0000000000000000")), "{old:?}");
    let environment = |c: &&&prune::Candidate| c.path.parent().unwrap().ends_with("envs");
    assert!(newest.iter().any(|c| environment(&c) && c.path.is_dir()), "{newest:?}");
    assert_eq!(newest::known(&provisioner).len(), 0, "`fake` is no reference of this program");

    for candidate in &candidates {
        assert!(matches!(prune::remove(candidate), Outcome::Removed), "{candidate:?}");
    }
    assert_eq!(greet(&pinned), "tiny 1.0.0");
    assert!(world.latest("index", OFFLINE).is_err());
}

// By cargo ---------------------------------------------------------------------------------------------

/// A reference in Rust on the crate `tiny`, of which a local registry has these releases.
fn cargo_world(releases: &[(&str, &str)]) -> (World, Reference) {
    let world = World { dir: tempfile::tempdir().unwrap() };
    let manifest = "[workspace]\n[package]\nname = \"llorch-adapter-fakecargo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
        rust-version = \"1.60\"\n[dependencies]\ntiny = \"=0.1.0\"\n[profile.release]\nopt-level = 0\n";
    world.write("sources/adapters/fakecargo/Cargo.toml", manifest);
    let main = r##"fn main() {
    let hello = r#"{"type":"hello","protocol":1,"name":"fakecargo","version":"tiny VERSION","worth":"kernels","capabilities":[],"unsupported":[],"recipes":{}}"#;
    for _ in std::io::stdin().lines() {
        println!("{}", hello.replace("VERSION", tiny::version()));
    }
}
"##;
    world.write("sources/adapters/fakecargo/src/main.rs", main);
    world.write("sources/harness/trace/Cargo.toml", "");
    let mut index = String::new();
    for (version, code) in releases {
        let crate_manifest =
            format!("[package]\nname = \"tiny\"\nversion = \"{version}\"\nedition = \"2021\"\n");
        let folder = format!("crates/tiny-{version}");
        world.write(&format!("{folder}/Cargo.toml"), &crate_manifest);
        world.write(&format!("{folder}/src/lib.rs"), code);
        std::fs::create_dir_all(world.path("registry")).unwrap();
        let packed = world.path(&format!("registry/tiny-{version}.crate"));
        let tar = AdapterCommand::new("tar", "tar")
            .args(["-czf", packed.to_str().unwrap(), "-C", world.path("crates").to_str().unwrap()])
            .arg(format!("tiny-{version}"));
        run_tool(&tar, Duration::from_secs(60), None).unwrap();
        let hash = sha256_bytes(&std::fs::read(packed).unwrap());
        index.push_str(&format!(
            "{{\"name\":\"tiny\",\"vers\":\"{version}\",\"deps\":[],\"cksum\":\"{hash}\",\"features\":{{}},\"yanked\":false}}\n"
        ));
    }
    world.write("registry/index/ti/ny/tiny", &index);
    let settings = format!(
        "[source.crates-io]\nreplace-with = \"here\"\n[source.here]\nlocal-registry = \"{}\"\n",
        world.path("registry").display()
    );
    world.write(".cargo/config.toml", &settings);
    let lock = AdapterCommand::new("cargo generate-lockfile", "cargo")
        .args(["generate-lockfile", "--offline"])
        .cwd(world.path("sources/adapters/fakecargo"));
    run_tool(&lock, Duration::from_secs(60), None).unwrap();
    let reference = toml::from_str(
        r#"
        name = "fakecargo"
        worth = "kernels"
        kind = "cargo"
        licence = "none"
        download_mb = 1
        disk_mb = 1
        entry = "fakecargo"
        shows = ["tiny"]
        summary = "a stand-in"
        "#,
    );
    (world, reference.unwrap())
}

fn latest_crate(world: &World, reference: &Reference) -> Result<AdapterCommand, Missing> {
    // No uv takes part.
    let provisioner = world.provisioner("no-uv", QUIET);
    provisioner.ensure_release(reference, None, Some(&Release::Latest))
}

#[test]
fn the_newest_crate_is_built_with_the_same_adapter() {
    let code = |version: &str| format!("pub fn version() -> &'static str {{ \"{version}\" }}\n");
    let (one, two) = (code("0.1.0"), code("0.2.0"));
    let (world, reference) = cargo_world(&[("0.1.0", &one), ("0.2.0", &two), ("0.3.0-rc.1", "")]);
    let latest = latest_crate(&world, &reference).unwrap();
    assert_eq!(greet(&latest), "tiny 0.2.0", "the newest that is no prerelease");
    let pinned = world.provisioner("no-uv", QUIET).ensure(&reference, None).unwrap();
    assert_eq!(greet(&pinned), "tiny 0.1.0");
    let manifest = std::fs::read_to_string(world.path("sources/adapters/fakecargo/Cargo.toml"));
    assert!(manifest.unwrap().contains("tiny = \"=0.1.0\""), "the sources were touched");
}

#[test]
fn a_newest_crate_that_the_adapter_does_not_fit_is_missing_with_the_first_error() {
    let one = "pub fn version() -> &'static str { \"0.1.0\" }\n";
    let (world, reference) = cargo_world(&[("0.1.0", one), ("0.2.0", "pub fn release() {}\n")]);
    let missing = latest_crate(&world, &reference).unwrap_err();
    let begin =
        "tiny 0.2.0 can't be built with the adapter: error[E0425]: cannot find function `version`";
    assert!(missing.reason.starts_with(begin), "{missing}");
    assert!(missing.reason.contains("--> src/main.rs:4:"), "{missing}");
    assert_eq!(missing.mend, "", "nothing mends it here");
    let pinned = world.provisioner("no-uv", QUIET).ensure(&reference, None).unwrap();
    assert_eq!(greet(&pinned), "tiny 0.1.0");
}

/// Puts a script before rustc that is killed when it is to compile `tiny`: `times` times.
fn kill_the_compiler(world: &World, times: usize) {
    let (script, count) = (world.path("rustc.sh"), world.path("deaths"));
    let code = format!(
        "#!/bin/sh\ncase \"$*\" in *'--crate-name tiny'*)\n  echo died >> '{0}'\n  \
         [ $(wc -l < '{0}') -gt {times} ] || kill -9 $$;;\nesac\nexec \"$@\"\n",
        count.display()
    );
    world.write("rustc.sh", &code);
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = std::fs::read_to_string(world.path(".cargo/config.toml")).unwrap();
    let wrapper = format!("[build]\nrustc-wrapper = \"{}\"\n", script.display());
    world.write(".cargo/config.toml", &(settings + &wrapper));
}

#[test]
fn a_compiler_that_was_killed_gets_another_try() {
    let code = "pub fn version() -> &'static str { \"0.2.0\" }\n";
    let (world, reference) = cargo_world(&[("0.1.0", code), ("0.2.0", code)]);
    kill_the_compiler(&world, 1);
    assert_eq!(greet(&latest_crate(&world, &reference).unwrap()), "tiny 0.2.0");
    let deaths = std::fs::read_to_string(world.path("deaths")).unwrap();
    assert_eq!(deaths.lines().count(), 2, "the compiler was asked once more");
}

#[test]
fn a_compiler_that_is_always_killed_is_not_taken_for_code_that_does_not_fit() {
    let code = "pub fn version() -> &'static str { \"0.2.0\" }\n";
    let (world, reference) = cargo_world(&[("0.1.0", code), ("0.2.0", code)]);
    kill_the_compiler(&world, usize::MAX);
    let missing = latest_crate(&world, &reference).unwrap_err();
    assert!(missing.reason.contains("signal: 9"), "{missing}");
    assert!(!missing.reason.contains("with the adapter"), "{missing}");
    assert!(missing.mend.starts_with("llorch-diff adapters setup"), "{missing}");
}

// The commands -----------------------------------------------------------------------------------------

/// Runs `llorch-diff` in a cache of its own and returns its exit code and both outputs.
fn diff(args: &[&str]) -> (i32, String) {
    let cache = tempfile::tempdir().unwrap();
    let log = cache.path().join("output.log");
    let command = AdapterCommand::new("llorch-diff", env!("CARGO_BIN_EXE_llorch-diff"))
        .args(args.iter().copied())
        .env("LLORCH_CACHE", cache.path().to_string_lossy());
    let code = match run_tool(&command, Duration::from_secs(60), Some(&log)) {
        Ok(_) => 0,
        Err(failure) => match failure.kind {
            ToolFailureKind::Exit(ExitState::Exited(code)) => code,
            other => panic!("{other:?}: {failure}"),
        },
    };
    (code, std::fs::read_to_string(&log).unwrap())
}

#[test]
fn releases_that_mean_nothing_are_usage_errors_that_name_those_that_do() {
    for (args, expected) in [
        (&["run", "--ref", "hf@newest"][..], "known are @latest"),
        (&["bisect", "--ref", "hf:f64@5.22.0"], "failed to find release `5.22.0` of hf:f64"),
        (&["adapters", "setup", "candle@2026-10-01"], "expected @latest"),
        (&["run", "--ref", "hf@latest", "--ref", "hf@latest"], "hf@latest is named twice"),
    ] {
        let (code, output) = diff(args);
        assert_eq!(code, 2, "{args:?}: {output}");
        assert!(output.contains(expected), "{args:?}: {output}");
    }
}

#[test]
fn setup_of_a_newest_release_offline_says_what_is_missing_and_exits_3() {
    let (code, output) = diff(&["adapters", "setup", "numpy@latest", "--offline"]);
    assert_eq!(code, 3, "{output}");
    assert!(output.contains("numpy@latest was never resolved"), "{output}");
    assert!(output.contains("llorch-diff adapters setup numpy@latest"), "{output}");
}

// Another process: this program again, running the ignored test below. ---------------------------------

const WORLD: &str = "LLORCH_TEST_LATEST";

#[test]
#[ignore = "run by another test, in a process of its own"]
fn inner_latest() {
    let root = PathBuf::from(std::env::var_os(WORLD).expect("run by another test"));
    let provisioner = Provisioner {
        cache: root.join("cache"),
        shared_cache: root.join("cache"),
        sources: Some(root.join("sources")),
        uv: Some(root.join("index")),
        ..Provisioner::new(ProvisionOptions { quiet: false, ..QUIET })
    };
    provisioner.ensure_release(&reference(), None, Some(&Release::Latest)).unwrap();
}
