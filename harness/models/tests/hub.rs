//! Downloads from a stand-in hub on this machine, as they go well and as they go wrong.

mod stand_in;

use llorch_models::hub::{HubEnv, Patience};
use llorch_models::{ModelError, ModelKind, ResolveOptions, ResolvedModel, resolve_in};
use stand_in::{COMMIT, Fault, StandIn, sha256};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const REPO: &str = "org/name";

/// A hub, a user's home, and the variables that lead from one to the other.
struct World {
    hub: StandIn,
    home: tempfile::TempDir,
    vars: Vec<(String, String)>,
}

impl World {
    fn new() -> World {
        let (hub, home) = (StandIn::start(), tempfile::tempdir().unwrap());
        let mut world = World { hub, home, vars: Vec::new() };
        world.set("HF_ENDPOINT", &format!("http://{}", world.hub.address));
        world.set("HF_HOME", &world.path("hf").display().to_string());
        world
    }

    fn set(&mut self, name: &str, value: &str) {
        self.vars.retain(|(key, _)| key != name);
        self.vars.push((name.to_owned(), value.to_owned()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn repo_dir(&self) -> PathBuf {
        self.path("hf/hub/models--org--name")
    }

    fn env(&self) -> HubEnv {
        let mut env = HubEnv::from_vars(|name| {
            self.vars.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        });
        env.patience = Patience {
            attempts: 3,
            first_wait: Duration::from_millis(5),
            silence: Duration::from_millis(400),
        };
        env
    }

    fn resolve_as(
        &self,
        name: &str,
        options: &ResolveOptions,
    ) -> Result<ResolvedModel, ModelError> {
        resolve_in(
            name,
            &ResolveOptions { quiet: true, ..options.clone() },
            &self.path("llorch"),
            &self.env(),
        )
    }

    fn resolve(&self) -> Result<ResolvedModel, ModelError> {
        self.resolve_as(REPO, &ResolveOptions::default())
    }

    /// The refusal, which must say `expected` and be the environment's fault.
    fn refusal(&self, expected: &str) -> ModelError {
        let error = self.resolve().expect_err("resolved");
        let text = error.to_string();
        assert!(text.starts_with("failed to ") && text.contains(expected), "{text}");
        assert_eq!(error.exit_code(), 3, "{text}");
        error
    }

    fn weights(&self) -> Vec<u8> {
        self.hub.behaviour.lock().unwrap().files["model.safetensors"].clone()
    }
}

#[test]
fn a_download_lands_in_the_hubs_own_layout_and_serves_offline_from_then_on() {
    let mut world = World::new();
    let model = world.resolve().unwrap();
    assert_eq!((model.kind, model.revision.as_deref()), (ModelKind::Trained, Some(COMMIT)));
    assert_eq!(model.weights_sha256(), sha256(&world.weights()));
    assert!(model.has_tokenizer() && model.dir.is_absolute());
    assert!(model.source.starts_with("hub org/name from http://127.0.0.1:"), "{}", model.source);

    let root = world.repo_dir();
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(model.dir, root.join("snapshots").join(COMMIT));
    let blob = root.join("blobs").join(sha256(&world.weights()));
    assert_eq!(
        model.dir.join("model.safetensors").canonicalize().unwrap(),
        blob.canonicalize().unwrap()
    );
    assert_eq!(fs::read(&blob).unwrap(), world.weights());
    assert!(!model.dir.join("README.md").exists(), "what nobody reads is not downloaded");

    let requests = world.hub.log().len();
    world.set("HF_HUB_OFFLINE", "1");
    assert_eq!(world.resolve().unwrap().files, model.files);
    world.set("HF_HUB_OFFLINE", "0");
    assert_eq!(world.resolve().unwrap().files, model.files);
    let offline = ResolveOptions { offline: true, ..ResolveOptions::default() };
    assert_eq!(world.resolve_as(&format!("{REPO}@{COMMIT}"), &offline).unwrap().files, model.files);
    assert_eq!(world.hub.log().len(), requests, "the hub was asked for what is in the cache");
}

#[test]
fn a_cut_connection_is_resumed_within_the_command() {
    let world = World::new();
    world.hub.change(|hub| {
        let cuts = [Fault::CutAfter(100_000), Fault::CutAfter(50_000)];
        hub.faults.insert("model.safetensors".to_owned(), VecDeque::from(cuts));
    });
    let model = world.resolve().unwrap();
    assert_eq!(model.weights_sha256(), sha256(&world.weights()));
    assert_eq!(
        world.hub.ranges("model.safetensors"),
        ["bytes=0-", "bytes=100000-", "bytes=150000-"]
    );
}

#[test]
fn a_silent_connection_and_an_overloaded_server_are_outlived() {
    let world = World::new();
    world.hub.change(|hub| {
        hub.faults.insert("model.safetensors".to_owned(), VecDeque::from([Fault::SilentAfter(7)]));
    });
    world.resolve().unwrap();
    assert_eq!(world.hub.ranges("model.safetensors"), ["bytes=0-", "bytes=7-"]);

    let world = World::new();
    world.hub.change(|hub| hub.always.push(("/api/".to_owned(), Fault::Status(503, ""))));
    let error = world.refusal("HTTP 503");
    assert!(matches!(error, ModelError::Network { .. }), "{error:?}");
    assert_eq!(world.hub.log().len(), 3, "a passing failure deserves three attempts");
}

#[test]
fn what_has_arrived_is_kept_for_the_next_command() {
    let world = World::new();
    world.hub.change(|hub| hub.always.push(("model.safetensors".to_owned(), Fault::CutAfter(0))));
    world.hub.change(|hub| {
        hub.faults
            .insert("model.safetensors".to_owned(), VecDeque::from([Fault::CutAfter(123_456)]));
    });
    let error = world.refusal("found 123456 bytes, expected 400072");
    assert!(error.to_string().contains("goes on from there"), "{error}");
    let snapshot = world.repo_dir().join("snapshots").join(COMMIT);
    assert!(
        !snapshot.join("model.safetensors").exists(),
        "half a file must never look like a whole one"
    );
    assert!(!world.repo_dir().join("refs/main").exists());

    world.hub.change(|hub| hub.always.clear());
    world.resolve().unwrap();
    assert_eq!(world.hub.ranges("model.safetensors").last().unwrap(), "bytes=123456-");
}

#[test]
fn a_truncated_file_is_told_from_a_lost_network() {
    // Ends early every time, from a server without ranges: no attempt gets further than the first.
    let world = World::new();
    world.hub.change(|hub| {
        hub.no_ranges = true;
        hub.always.push(("resolve/main/model.safetensors".to_owned(), Fault::CutAfter(1000)));
    });
    let error = world.refusal("found 1000 bytes, expected 400072");
    assert!(matches!(error, ModelError::Truncated { .. }), "{error:?}");

    // Truncated on the server itself: the list knows better.
    let world = World::new();
    world.hub.change(|hub| {
        hub.listed_sizes.insert("model.safetensors".to_owned(), 500_000);
    });
    let error = world.refusal("found 400072 bytes, expected 500000");
    assert!(matches!(error, ModelError::Truncated { .. }), "{error:?}");
}

#[test]
fn wrong_content_is_removed_and_reported_with_both_hashes() {
    for file in ["model.safetensors", "config.json"] {
        let world = World::new();
        let mut forged = world.hub.behaviour.lock().unwrap().files[file].clone();
        *forged.last_mut().unwrap() ^= 1;
        let (good, bad) = (world.hub.behaviour.lock().unwrap().files[file].clone(), forged.clone());
        world.hub.change(|hub| {
            hub.forged.insert(file.to_owned(), forged);
        });
        let error = world.refusal(&stand_in::etag(file, &good));
        assert!(matches!(error, ModelError::WrongHash { .. }), "{error:?}");
        assert!(error.to_string().contains(&stand_in::etag(file, &bad)), "{error}");
        let blobs = fs::read_dir(world.repo_dir().join("blobs")).unwrap();
        let names: Vec<String> =
            blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect();
        assert!(
            !names.iter().any(|name| name.starts_with(&stand_in::etag(file, &good))),
            "{names:?}"
        );

        world.hub.change(|hub| hub.forged.clear());
        world.resolve().unwrap();
    }
}

#[test]
fn a_damaged_leftover_is_thrown_away_and_downloaded_anew() {
    let world = World::new();
    let blobs = world.repo_dir().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&world.weights()))), "not what was sent")
        .unwrap();
    let model = world.resolve().unwrap();
    assert_eq!(model.weights_sha256(), sha256(&world.weights()));
    assert_eq!(world.hub.ranges("model.safetensors"), ["bytes=17-", "bytes=0-"]);
}

#[test]
fn a_damaged_cache_is_not_believed() {
    let world = World::new();
    let model = world.resolve().unwrap();
    let mut bytes = world.weights();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(model.dir.join("model.safetensors"), bytes).unwrap();
    let error = world.refusal("the name of the blob in the hub cache");
    assert!(matches!(error, ModelError::WrongHash { .. }), "{error:?}");
}

#[test]
fn what_is_not_there_is_named() {
    let status = |part: &str, code: u16, reason: &'static str| {
        let world = World::new();
        world.hub.change(|hub| hub.always.push((part.to_owned(), Fault::Status(code, reason))));
        world
    };
    status("/", 404, "RepoNotFound").refusal("failed to find repository org/name");
    status("/", 401, "RepoNotFound").refusal("for a private one, set HF_TOKEN");
    status("/", 404, "RevisionNotFound").refusal("failed to find revision main");
    status("/", 404, "").refusal("a repository with config.json and model.safetensors");
    status("/", 401, "").refusal("private or doesn't exist");
    status("resolve", 403, "GatedRepo").refusal("accept its terms");

    let world = World::new();
    world.hub.change(|hub| {
        hub.files.remove("config.json");
    });
    world.refusal("failed to find config.json of org/name");
}

#[test]
fn a_repository_in_another_format_is_refused_with_the_way_out() {
    for (file, expected) in [
        ("pytorch_model.bin", "only pytorch_model.bin"),
        ("model.safetensors.index.json", "split over several files"),
    ] {
        let world = World::new();
        world.hub.change(|hub| {
            hub.files.remove("model.safetensors");
            hub.files.insert(file.to_owned(), b"x".to_vec());
        });
        let error = world.resolve().unwrap_err();
        assert!(
            error.to_string().contains(expected) && error.to_string().contains("save_pretrained"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
        assert_eq!(world.hub.ranges(file), [""; 0], "what is refused is not downloaded");
    }
}

#[test]
fn no_network_is_said_at_once() {
    let mut world = World::new();
    // Bound and dropped: a port that nobody listens on.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.set("HF_ENDPOINT", &format!("http://{closed}"));
    let begin = Instant::now();
    let error = world.refusal(&format!("failed to reach http://{closed}"));
    assert!(matches!(error, ModelError::Network { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(3));

    world.set("HF_ENDPOINT", "not an address");
    world.refusal("HF_ENDPOINT");
}

#[test]
fn offline_says_what_is_missing_and_asks_nobody() {
    let mut world = World::new();
    world.set("HF_HUB_OFFLINE", "yes");
    world.refusal("found no snapshot of revision main");
    let snapshot = world.repo_dir().join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(world.repo_dir().join("refs")).unwrap();
    fs::write(world.repo_dir().join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let error = world.refusal("found a snapshot without model.safetensors");
    assert!(matches!(error, ModelError::Offline { .. }), "{error:?}");
    assert!(world.hub.log().is_empty());
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects() {
    let mut world = World::new();
    world.hub.change(|hub| hub.redirect = true);
    world.set("HF_TOKEN", "hf_secret");
    let model = world.resolve().unwrap();
    assert_eq!(model.weights_sha256(), sha256(&world.weights()));
    let log = world.hub.log();
    let (elsewhere, hub): (Vec<_>, Vec<_>) =
        log.iter().partition(|seen| seen.host.starts_with("localhost"));
    assert!(
        !elsewhere.is_empty() && elsewhere.iter().all(|seen| seen.token.is_none()),
        "{elsewhere:?}"
    );
    assert!(hub.iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
}

#[test]
fn a_token_file_and_a_cache_elsewhere_are_honoured() {
    let mut world = World::new();
    let elsewhere = world.path("elsewhere");
    world.set("HF_HUB_CACHE", &elsewhere.display().to_string());
    fs::create_dir_all(world.path("hf")).unwrap();
    fs::write(world.path("hf/token"), "hf_from_file\n").unwrap();
    let model = world.resolve().unwrap();
    assert!(model.dir.starts_with(&elsewhere), "{}", model.dir.display());
    assert!(!world.path("hf/hub").exists());
    assert!(
        world.hub.log().iter().all(|seen| seen.token.as_deref() == Some("Bearer hf_from_file"))
    );
}

#[test]
fn a_plain_file_server_will_do() {
    let world = World::new();
    world.hub.change(|hub| {
        hub.no_list = true;
        hub.no_ranges = true;
    });
    assert_eq!(world.resolve().unwrap().weights_sha256(), sha256(&world.weights()));
}

#[test]
fn weights_that_are_not_gpt2s_are_not_called_real_under_its_name() {
    let world = World::new();
    let model = world.resolve_as("gpt2", &ResolveOptions::default()).unwrap();
    assert_eq!(model.kind, ModelKind::Trained);
    assert!(
        model.source.contains("openai-community/gpt2") && model.source.contains("not known to be"),
        "{}",
        model.source
    );
    // Nothing is known of gpt2-xl's hash, but this is not the hub that could vouch for it.
    assert_eq!(
        world.resolve_as("gpt2-xl", &ResolveOptions::default()).unwrap().kind,
        ModelKind::Trained
    );
}

#[test]
fn an_old_cache_under_the_short_id_is_found() {
    let mut world = World::new();
    let model = world.resolve().unwrap();
    let hub = world.path("hf/hub");
    fs::rename(hub.join("models--org--name"), hub.join("models--distilgpt2")).unwrap();
    world.set("HF_HUB_OFFLINE", "1");
    let old = world.resolve_as("distilgpt2", &ResolveOptions::default()).unwrap();
    assert_eq!(old.files, model.files);
}

#[test]
fn four_at_once_download_once() {
    let world = World::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.resolve().unwrap());
        }
    });
    assert_eq!(world.hub.ranges("model.safetensors"), ["bytes=0-"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut world = World::new();
    let file = world.path("file");
    fs::write(&file, "").unwrap();
    world.set("HF_HUB_CACHE", &file.display().to_string());
    let error = world.refusal("set HF_HUB_CACHE");
    assert!(matches!(error, ModelError::HubCache { .. }), "{error:?}");
}

#[test]
fn a_revision_cannot_climb_out_of_the_cache() {
    let world = World::new();
    let options =
        ResolveOptions { revision: Some("../../x".to_owned()), ..ResolveOptions::default() };
    let error = world.resolve_as(REPO, &options).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!Path::new(&world.path("hf")).exists());
}

#[test]
fn computed_weights_are_called_synthetic_whatever_repository_serves_them() {
    let world = World::new();
    let options = ResolveOptions { quiet: true, ..ResolveOptions::default() };
    let synth = resolve_in("synth:tiny", &options, &world.path("llorch"), &world.env()).unwrap();
    world.hub.change(|hub| {
        let weights = fs::read(synth.dir.join("model.safetensors")).unwrap();
        hub.files.insert("model.safetensors".to_owned(), weights);
    });
    let model = world.resolve_as("gpt2-xl", &ResolveOptions::default()).unwrap();
    assert_eq!(model.kind, ModelKind::Synthetic);
    assert_eq!(model.weights_sha256(), synth.weights_sha256());
    assert!(model.source.ends_with("computed: tiny, seed 0, recipe 1"), "{}", model.source);
}
