//! Making references runnable: what is missing, half-made, contended for, out of date.
//!
//! The reference here is the fake adapter with an empty lock file, in a cache of its own, installed
//! by a stand-in for `uv` that makes the environment's interpreter a link. Real references are
//! installed by the live test of `llorch-diff run`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use llorch_diff::provision::prune::{self, Outcome};
use llorch_diff::provision::status::{Status, status};
use llorch_diff::provision::{ProvisionOptions, Provisioner, lock};
use llorch_diff::references::Reference;
use llorch_diff::supervise::{
    AdapterCommand, ExitState, Limits, Session, ToolFailureKind, on_interrupt, run_tool,
};

const QUIET: ProvisionOptions = ProvisionOptions { offline: false, quiet: true, allow: true };

/// A cache, a reference, a uv that notes its calls.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(uv: &str) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake_adapter/fake_adapter.py");
        world.write(
            "sources/adapters/python/fake/adapter.py",
            &std::fs::read_to_string(root).unwrap(),
        );
        world.write("sources/refs/fake/requirements.lock", "# nothing\n");
        world.write("sources/refs/fake/requirements.in", "");
        world.write("uv", uv);
        let uv = world.path("uv");
        std::fs::set_permissions(&uv, std::fs::Permissions::from_mode(0o755)).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn provisioner(&self, options: ProvisionOptions) -> Provisioner {
        provisioner_at(self.dir.path(), options)
    }

    /// How often uv installed something.
    fn installations(&self) -> usize {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with("pip install --require-hashes")).count()
    }

    fn env_dirs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("cache/envs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

fn provisioner_at(root: &Path, options: ProvisionOptions) -> Provisioner {
    Provisioner {
        cache: root.join("cache"),
        shared_cache: root.join("cache"),
        sources: Some(root.join("sources")),
        uv: Some(root.join("uv")),
        ..Provisioner::new(options)
    }
}

fn reference() -> Reference {
    toml::from_str(
        r#"
        name = "fake"
        worth = "semantics"
        kind = "python"
        licence = "none"
        variants = ["f64"]
        download_mb = 1
        disk_mb = 100
        entry = "fake/adapter.py"
        python = "3.8"
        requirements = "requirements.lock"
        summary = "a stand-in"
        "#,
    )
    .unwrap()
}

/// Notes its arguments beside itself; `venv` links the interpreter, `pip` has nothing to do.
const UV: &str = r#"#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
if [ "$1" = venv ]; then
    for last; do :; done
    mkdir -p "$last/bin"
    ln -s "$4" "$last/bin/python"
fi
"#;

/// Says hello through the command that provisioning gave.
fn greet(command: &AdapterCommand) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let session = Session::start(command, &Limits::default(), file.path()).unwrap();
    let name = session.hello().name.clone();
    assert_eq!(session.finish().exit, Some(ExitState::Exited(0)));
    name
}

#[test]
fn what_is_missing_is_installed_once_and_then_works_offline() {
    let world = World::new(UV);
    let command = world.provisioner(QUIET).ensure(&reference(), Some("f64")).unwrap();
    assert_eq!(command.name, "fake:f64");
    assert_eq!(command.args[command.args.len() - 2..], ["--variant", "f64"]);
    assert_eq!(greet(&command), "fake");

    let offline = ProvisionOptions { offline: true, ..QUIET };
    let again = world.provisioner(offline).ensure(&reference(), None).unwrap();
    assert_eq!((again.program, world.installations()), (command.program, 1));
    assert!(matches!(status(&world.provisioner(QUIET), &reference()), Status::Ready { .. }));
}

/// A processor's name in the place of this machine's.
fn built(world: &World, processor: fn() -> String) -> Provisioner {
    Provisioner { processor, ..world.provisioner(QUIET) }
}

#[test]
fn what_is_compiled_for_one_processor_is_never_used_on_another() {
    let world = World::new(UV);
    world.write("sources/refs/fake/build.lock", "ninja==1\n");
    world.write("sources/refs/fake/build.cmake", "set(X ON)\n");
    let mut reference = reference();
    reference.build = toml::from_str(
        r#"
        package = "thing"
        project = "the_thing"
        constraints = "build.lock"
        cmake = "build.cmake"
        minutes = 1
        "#,
    )
    .unwrap();
    let first = built(&world, || "avx512".into()).ensure(&reference, None).unwrap();
    let env = first.program.parent().unwrap().parent().unwrap().to_owned();
    let again = built(&world, || "avx512".into()).ensure(&reference, None).unwrap();
    assert_eq!((&again.program, world.installations()), (&first.program, 1));
    let name = env.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("fake-") && name.contains("-cpu-"), "{name}");

    let other = built(&world, || "avx2".into());
    assert_eq!(status(&other, &reference), Status::Missing);
    let second = other.ensure(&reference, None).unwrap();
    assert_ne!(second.program, first.program);
    assert_eq!(world.env_dirs().len(), 2);
    // Both are of the current pins: a cache may be shared.
    assert_eq!(prune::candidates(&other, &[reference.clone()], false), []);

    // What it is built with is pinned, and told apart by processor in uv's own cache too.
    let calls = std::fs::read_to_string(world.path("calls")).unwrap();
    let installs: Vec<&str> = calls.lines().filter(|l| l.starts_with("pip install")).collect();
    for part in [
        "--require-hashes",
        "--no-binary thing",
        "/build.lock",
        "thing:cmake.define.CMAKE_PROJECT_the_thing_INCLUDE=",
    ] {
        assert!(installs.iter().all(|call| call.contains(part)), "{part}: {calls}");
    }
    let key = |call: &str| {
        let (_, rest) = call.split_once("thing:cmake.define.LLORCH_PROCESSOR=").unwrap();
        rest.split(' ').next().unwrap().to_owned()
    };
    assert_ne!(key(installs[0]), key(installs[1]));
    assert_eq!(std::fs::read_to_string(env.join("build.cmake")).unwrap(), "set(X ON)\n");

    // Other settings are another build.
    world.write("sources/refs/fake/build.cmake", "set(X OFF)\n");
    assert_eq!(status(&built(&world, || "avx512".into()), &reference), Status::Missing);
}

#[test]
fn offline_names_the_command_that_mends_it_and_tries_nothing() {
    let world = World::new(UV);
    for (options, reason) in [
        (
            ProvisionOptions { offline: true, ..QUIET },
            "fake isn't installed, and --offline forbids to fetch it",
        ),
        (ProvisionOptions { allow: false, ..QUIET }, "fake isn't installed"),
    ] {
        let missing = world.provisioner(options).ensure(&reference(), None).unwrap_err();
        assert_eq!(missing.reason, reason);
        assert_eq!(missing.mend, "llorch-diff adapters setup fake");
    }
    assert!(!world.path("calls").exists(), "uv was called");
    assert_eq!(status(&world.provisioner(QUIET), &reference()), Status::Missing);
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_fetched() {
    let world = World::new(UV);
    let provisioner = Provisioner { free_space: |_| Ok(99_000_000), ..world.provisioner(QUIET) };
    let missing = provisioner.ensure(&reference(), None).unwrap_err();
    assert!(
        missing.reason.contains("100 MB") && missing.reason.contains("99 MB free"),
        "{missing}"
    );
    assert!(missing.mend.contains("LLORCH_CACHE"), "{missing}");
    assert!(!world.path("calls").exists(), "uv was called");
    let enough = Provisioner { free_space: |_| Ok(100_000_000), ..provisioner };
    enough.ensure(&reference(), None).unwrap();
}

#[test]
fn a_half_made_environment_is_made_anew() {
    let world = World::new(UV);
    let installed = world.provisioner(QUIET).ensure(&reference(), None).unwrap();
    let env = installed.program.parent().unwrap().parent().unwrap().to_owned();
    // What Ctrl-C or a power cut leaves: files, but not the stamp, which is written last.
    std::fs::remove_file(env.join(".complete")).unwrap();
    std::fs::write(env.join("junk"), "half of a wheel").unwrap();
    let provisioner = world.provisioner(QUIET);
    assert_eq!(status(&provisioner, &reference()), Status::HalfMade { path: env.clone() });
    let command = provisioner.ensure(&reference(), None).unwrap();
    assert_eq!(greet(&command), "fake");
    assert!(!env.join("junk").exists());
    assert_eq!(world.installations(), 2);
}

#[test]
fn an_environment_whose_interpreter_is_gone_is_made_anew() {
    let world = World::new(UV);
    let installed = world.provisioner(QUIET).ensure(&reference(), None).unwrap();
    std::fs::remove_file(&installed.program).unwrap();
    std::os::unix::fs::symlink("/no/such/python", &installed.program).unwrap();
    let command = world.provisioner(QUIET).ensure(&reference(), None).unwrap();
    assert_eq!(greet(&command), "fake");
    assert_eq!(world.installations(), 2);
}

#[test]
fn a_failed_installation_quotes_the_tool_and_leaves_nothing() {
    let world = World::new(
        "#!/bin/sh\n[ \"$1\" = venv ] && exit 0\necho 'error: no route to host' >&2\nexit 2\n",
    );
    // The environment of a uv that makes none: pip fails all the same.
    let missing = world.provisioner(QUIET).ensure(&reference(), None).unwrap_err();
    assert!(missing.reason.starts_with("fake can't be installed"), "{missing}");
    assert_eq!(missing.mend, "llorch-diff adapters setup fake");
    assert_eq!(world.env_dirs(), Vec::<PathBuf>::new());

    let world = World::new(&format!(
        "{UV}[ \"$1\" = pip ] && {{ echo 'error: no route to host' >&2; exit 2; }}\nexit 0\n"
    ));
    let missing = world.provisioner(QUIET).ensure(&reference(), None).unwrap_err();
    assert!(missing.reason.contains("no route to host"), "{missing}");
    assert_eq!(world.env_dirs(), Vec::<PathBuf>::new());
    assert_eq!(status(&world.provisioner(QUIET), &reference()), Status::Missing);
}

#[test]
fn an_adapter_that_does_not_start_is_not_called_installed() {
    let world = World::new(UV);
    world.write("sources/adapters/python/fake/adapter.py", "import no_such_module\n");
    let missing = world.provisioner(QUIET).ensure(&reference(), None).unwrap_err();
    assert!(missing.reason.contains("No module named 'no_such_module'"), "{missing}");
    assert!(missing.mend.contains("doctor"), "{missing}");
}

#[test]
fn two_processes_at_once_make_one_environment() {
    let world = World::new(&UV.replace("if [", "[ \"$1\" = pip ] && sleep 1\nif ["));
    let logs = [world.path("a.log"), world.path("b.log")];
    std::thread::scope(|scope| {
        for log in &logs {
            let world = &world;
            scope.spawn(move || {
                run_tool(&inner("inner_ensure", world), Duration::from_secs(60), Some(log))
                    .unwrap();
            });
        }
    });
    assert_eq!(world.installations(), 1);
    let told = logs.map(|log| std::fs::read_to_string(log).unwrap()).join("\n");
    assert_eq!(told.matches("fake: installing").count(), 1, "{told}");
    assert_eq!(
        told.matches("fake: waiting for another llorch-diff that installs it").count(),
        1,
        "{told}"
    );
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing_half_made_and_exits_130() {
    let world = World::new(&UV.replace(
        "if [",
        "[ \"$1\" = pip ] && { touch \"$(dirname \"$0\")/now\"; sleep 60; }\nif [",
    ));
    let failure =
        run_tool(&inner("inner_interrupted", &world), Duration::from_secs(60), None).unwrap_err();
    assert_eq!(failure.kind, ToolFailureKind::Exit(ExitState::Exited(130)), "{failure}");
    assert!(world.path("now").exists(), "it was interrupted before the installation began");
    assert_eq!(world.env_dirs(), Vec::<PathBuf>::new());
}

#[test]
fn prune_removes_what_no_pin_names_and_nothing_in_use() {
    let world = World::new(UV);
    let provisioner = world.provisioner(QUIET);
    let used = provisioner.ensure(&reference(), None).unwrap();
    let old = world.path("cache/envs/fake-0000000000000000-py3.11");
    for path in [
        "cache/envs/fake-0000000000000000-py3.11/lib/x.py",
        "cache/envs/fake-0000000000000000-py3.11.log",
        "cache/build/candle-00/y",
        "cache/models/gpt2/model.safetensors",
    ] {
        world.write(path, "old");
    }
    let names = |all| {
        let found = prune::candidates(&provisioner, &[reference()], all);
        found
            .iter()
            .map(|c| c.path.strip_prefix(world.path("cache")).unwrap().display().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(false),
        [
            "build/candle-00",
            "envs/fake-0000000000000000-py3.11",
            "envs/fake-0000000000000000-py3.11.log"
        ]
    );
    assert!(names(true).iter().all(|name| !name.starts_with("models")), "models are the user's");

    let mut freed = 0;
    for candidate in prune::candidates(&provisioner, &[reference()], false) {
        assert!(matches!(prune::remove(&candidate), Outcome::Removed), "{candidate:?}");
        freed += candidate.bytes;
    }
    assert!(freed > 0 && !old.exists());
    assert_eq!(names(false), Vec::<String>::new());

    // The environment that this process got above is in use, whatever is asked for.
    let env = used.program.parent().unwrap().parent().unwrap();
    let in_use = prune::candidates(&provisioner, &[reference()], true);
    let in_use = in_use.iter().find(|candidate| candidate.path == env).expect("--all names it");
    assert!(matches!(prune::remove(in_use), Outcome::InUse));
    assert_eq!(greet(&used), "fake");
}

#[test]
fn other_pins_are_another_environment() {
    let world = World::new(UV);
    let first = world.provisioner(QUIET).ensure(&reference(), None).unwrap();
    world.write("sources/refs/fake/requirements.lock", "# nothing, newer\n");
    let second = world.provisioner(QUIET).ensure(&reference(), None).unwrap();
    assert_ne!(first.program, second.program);
    assert_eq!(world.env_dirs().len(), 2);
}

#[test]
fn a_lock_is_waited_for_across_threads() {
    let world = World::new(UV);
    let dir = world.path("cache/envs/x");
    let first = lock::BuildLock::acquire(&dir, || panic!("nobody has it")).unwrap();
    let waited = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lock::BuildLock::acquire(&dir, || {
                waited.store(true, std::sync::atomic::Ordering::SeqCst)
            })
            .unwrap();
        });
        while !waited.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(first);
    });
}

// The commands, in a cache of their own ---------------------------------------------------------------

/// Runs `llorch-diff adapters …` and returns its exit code and both outputs.
fn adapters(cache: &Path, args: &[&str]) -> (i32, String) {
    let log = cache.join("output.log");
    let _ = std::fs::remove_file(&log);
    let command = AdapterCommand::new("llorch-diff", env!("CARGO_BIN_EXE_llorch-diff"))
        .arg("adapters")
        .args(args.iter().copied())
        .env("LLORCH_CACHE", cache.to_string_lossy());
    let code = match run_tool(&command, Duration::from_secs(60), Some(&log)) {
        Ok(_) => 0,
        Err(failure) => match failure.kind {
            ToolFailureKind::Exit(ExitState::Exited(code)) => code,
            other => panic!("{other:?}: {failure}"),
        },
    };
    let output = std::fs::read_to_string(&log).unwrap();
    (code, output.lines().skip(1).collect::<Vec<_>>().join("\n"))
}

#[test]
fn list_names_every_reference_with_its_worth_and_its_pins() {
    let cache = tempfile::tempdir().unwrap();
    let (code, output) = adapters(cache.path(), &["list"]);
    assert_eq!(code, 0, "{output}");
    for (name, worth, pin) in [
        ("hf", "semantics", "torch "),
        ("tinygrad", "kernels", "tinygrad "),
        ("candle", "kernels", "candle-core "),
        ("onnxruntime", "kernels", "onnxruntime "),
        ("openvino", "kernels", "openvino "),
        ("ctranslate2", "semantics", "ctranslate2 "),
        ("flax", "semantics", "jax "),
    ] {
        let line =
            output.lines().find(|line| line.split_whitespace().next() == Some(name)).expect(name);
        assert!(
            line.contains(worth) && line.contains(pin) && line.contains("not installed"),
            "{line}"
        );
    }
}

#[test]
fn setup_offline_says_what_is_missing_and_exits_3() {
    let cache = tempfile::tempdir().unwrap();
    let (code, output) = adapters(cache.path(), &["setup", "hf", "--offline"]);
    assert_eq!(code, 3, "{output}");
    assert!(output.contains("hf isn't installed, and --offline forbids to fetch it"), "{output}");
    assert!(output.contains("llorch-diff adapters setup hf"), "{output}");
    assert!(!cache.path().join("envs").exists() && !cache.path().join("uv").exists());
}

#[test]
fn names_that_mean_nothing_are_usage_errors() {
    let cache = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (["setup", "nosuch"], "known are ctranslate2, flax, hf"),
        (["command", "hf:f8"], "it has f64"),
        (["command", "a b"], "NAME or NAME:VARIANT"),
    ] {
        let (code, output) = adapters(cache.path(), &args);
        assert_eq!(code, 2, "{output}");
        assert!(output.contains(expected), "{output}");
    }
}

#[test]
fn command_of_what_is_not_installed_exits_3_and_prune_of_nothing_0() {
    let cache = tempfile::tempdir().unwrap();
    let (code, output) = adapters(cache.path(), &["command", "candle:upstream"]);
    assert_eq!(code, 3, "{output}");
    assert!(output.contains("llorch-diff adapters setup candle"), "{output}");
    let (code, output) = adapters(cache.path(), &["prune"]);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("nothing to remove"), "{output}");
}

// Other processes: this program again, running one of the ignored tests below. -----------------------

const WORLD: &str = "LLORCH_TEST_WORLD";

fn inner(test: &str, world: &World) -> AdapterCommand {
    AdapterCommand::new(test, std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(WORLD, world.dir.path().to_string_lossy())
}

fn inner_ensure_here() {
    let root = PathBuf::from(std::env::var_os(WORLD).expect("run by another test"));
    let options = ProvisionOptions { quiet: false, ..QUIET };
    let command = provisioner_at(&root, options).ensure(&reference(), None).unwrap();
    assert_eq!(greet(&command), "fake");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn inner_ensure() {
    inner_ensure_here();
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn inner_interrupted() {
    on_interrupt();
    let root = PathBuf::from(std::env::var_os(WORLD).expect("run by another test"));
    std::thread::spawn(move || {
        while !root.join("now").exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT)
            .unwrap();
    });
    inner_ensure_here();
}
