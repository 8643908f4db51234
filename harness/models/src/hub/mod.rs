//! Models of the Hugging Face hub, in the hub's own cache.
//!
//! `env` reads its variables, `client` asks and understands, `transfer` brings a file; here is the cache: which
//! snapshot serves a name, what it lacks, and how what is downloaded gets into it. The layout
//! is the Python library's (`models--org--name/{blobs,refs,snapshots}`), so either uses what the other has.

mod client;
mod env;
mod transfer;

pub use env::{HubEnv, OFFICIAL_ENDPOINT, Patience};

use crate::cache::{check_free_space, lock};
use crate::error::ModelError;
use crate::name::is_revision;
use crate::progress::Progress;
use crate::{ModelKind, ResolveOptions, ResolvedModel, folder, published, synth};
use client::{Client, Listing, Remote};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs;
use std::path::{Path, PathBuf};

/// Without these there is no model; the weights come last, so that a snapshot that has them is whole.
const NEEDED: [&str; 2] = ["config.json", "model.safetensors"];
/// Wanted where the repository has them.
const WELCOME: [&str; 4] = ["tokenizer.json", "vocab.json", "merges.txt", "generation_config.json"];
/// Looked for only to say why a repository without `model.safetensors` is refused.
const OTHER_FORMATS: [&str; 5] = [
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
];

/// Finds `id` in the hub's cache, or downloads what is missing of it.
///
/// A snapshot that is complete is used as it is, without asking the hub; name a revision to have another.
pub fn resolve(
    name: &str,
    id: &str,
    revision: Option<&str>,
    options: &ResolveOptions,
    env: &HubEnv,
    cache: &Path,
) -> Result<ResolvedModel, ModelError> {
    let revision = options.revision.as_deref().or(revision).unwrap_or("main");
    if !is_revision(revision) {
        let reason = format!("`{revision}` is not a branch, tag or commit");
        return Err(ModelError::Name { name: name.to_owned(), reason });
    }
    let store = Store::new(env, id, revision);
    // Repositories that were renamed are still found under their old ids.
    let old_id = published::by_repo(id).map(|known| known.name);
    let cached = store.snapshot().or_else(|| Store::new(env, old_id?, revision).snapshot());

    let whole =
        cached.as_ref().is_some_and(|snapshot| NEEDED.iter().all(|file| snapshot.has(file)));
    let usable = cached.clone().filter(|_| whole);
    if let Some(snapshot) = usable
        .as_ref()
        .filter(|snapshot| options.offline || env.offline || snapshot.has_tokenizer())
    {
        return finish(name, id, snapshot, None, cache);
    }
    if options.offline || env.offline {
        return Err(offline(id, revision, &store, cached.as_ref()));
    }
    match store.download(&Progress::new(options.quiet)) {
        Ok(snapshot) => finish(name, id, &snapshot, Some(&env.endpoint), cache),
        // All but a tokenizer is there, and the hub can't be asked for one: good enough.
        Err(error @ ModelError::Network { .. }) => match &usable {
            Some(snapshot) => finish(name, id, snapshot, None, cache),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

fn offline(id: &str, revision: &str, store: &Store<'_>, cached: Option<&Snapshot>) -> ModelError {
    let found = match cached {
        None => format!("no snapshot of revision {revision}"),
        Some(snapshot) => {
            let missing: Vec<&str> =
                NEEDED.into_iter().filter(|file| !snapshot.has(file)).collect();
            format!("a snapshot without {}", missing.join(" and "))
        }
    };
    ModelError::Offline {
        what: format!("{id} at {revision}"),
        cache: store.root.clone(),
        found,
        expected: NEEDED.join(" and "),
    }
}

/// Checks a snapshot's files and says what they are.
fn finish(
    name: &str,
    id: &str,
    snapshot: &Snapshot,
    endpoint: Option<&str>,
    cache: &Path,
) -> Result<ResolvedModel, ModelError> {
    let weights = folder::check(&snapshot.dir)?;
    let mut model = ResolvedModel {
        name: name.to_owned(),
        kind: ModelKind::Trained,
        source: format!("hub {id}"),
        revision: Some(snapshot.commit.clone()),
        dir: snapshot.dir.clone(),
        files: folder::hash_files(&snapshot.dir, cache)?,
    };
    let proven = folder::weights_match_their_blob(&model)?;
    if let Some(endpoint) = endpoint.filter(|endpoint| *endpoint != OFFICIAL_ENDPOINT) {
        model.source = format!("hub {id} from {endpoint}");
    }
    if let Some(identity) = synth::identity(&weights) {
        model.kind = ModelKind::Synthetic;
        model.source.push_str(&format!(", computed: {identity}"));
        return Ok(model);
    }
    // Another endpoint may serve anything under any name: there only a known hash counts.
    let vouches = proven && endpoint.is_none_or(|endpoint| endpoint == OFFICIAL_ENDPOINT);
    model.kind = published::kind(model.weights_sha256(), vouches.then_some(id));
    if published::by_repo(id).is_some() && model.kind != ModelKind::Real {
        model.source.push_str(", whose weights are not known to be the published ones");
    }
    Ok(model)
}

/// One commit of a repository as far as it is on disk.
#[derive(Debug, Clone)]
struct Snapshot {
    commit: String,
    dir: PathBuf,
}

impl Snapshot {
    fn has(&self, file: &str) -> bool {
        self.dir.join(file).is_file()
    }

    fn has_tokenizer(&self) -> bool {
        self.has("tokenizer.json") || (self.has("vocab.json") && self.has("merges.txt"))
    }
}

/// One repository in the hub's cache.
#[derive(Debug)]
struct Store<'a> {
    env: &'a HubEnv,
    id: &'a str,
    repo: Repo,
    cached: CacheRepo,
    /// `…/models--org--name`
    root: PathBuf,
}

impl<'a> Store<'a> {
    fn new(env: &'a HubEnv, id: &'a str, revision: &str) -> Store<'a> {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let cached = Cache::new(env.cache.clone()).repo(repo.clone());
        let root = env.cache.join(repo.folder_name());
        Store { env, id, repo, cached, root }
    }

    /// The snapshot that the revision (a branch or tag by its ref, or a commit) stands for here.
    fn snapshot(&self) -> Option<Snapshot> {
        let revision = self.repo.revision();
        let of = |commit: &str| Snapshot {
            commit: commit.to_owned(),
            dir: self.cached.pointer_path(commit),
        };
        let by_ref = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let by_ref = by_ref
            .map(|text| text.trim().to_owned())
            .filter(|commit| !commit.is_empty() && is_revision(commit));
        by_ref
            .map(|commit| of(&commit))
            .or_else(|| Some(of(revision)))
            .filter(|snapshot| snapshot.dir.is_dir())
    }

    /// Brings what the repository has of the files that matter.
    fn download(&self, progress: &Progress) -> Result<Snapshot, ModelError> {
        let client = Client::new(self.env)?;
        let listing = client.listing(&self.repo, self.id)?;
        let remotes = self.describe_all(&client, listing.as_ref())?;
        let commit = remotes[0].commit.clone();
        let missing: Vec<&Remote> =
            remotes.iter().filter(|remote| !self.has_blob(remote)).collect();
        let bytes: u64 =
            missing.iter().map(|remote| remote.bytes - self.already_there(remote)).sum();
        if !missing.is_empty() {
            check_free_space(&format!("{} ({} files)", self.id, missing.len()), &self.root, bytes)?;
            let megabytes = bytes as f64 / 1e6;
            let (files, root) = (missing.len(), self.root.display());
            progress.say(&format!(
                "{} at {commit}: {megabytes:.1} MB to download in {files} files, into {root}",
                self.id
            ));
        }
        for remote in &remotes {
            self.bring(&client, remote, progress)?;
        }
        if self.repo.revision() != commit {
            self.cached.create_ref(&commit).map_err(ModelError::hub_cache(&self.root))?;
        }
        Ok(Snapshot { dir: self.cached.pointer_path(&commit), commit })
    }

    /// Every file to have, the weights last, all of one commit.
    fn describe_all(
        &self,
        client: &Client,
        listing: Option<&Listing>,
    ) -> Result<Vec<Remote>, ModelError> {
        let listed = |file: &str| listing.is_none_or(|listing| listing.files.contains_key(file));
        let describe = |file: &str| match listed(file) {
            true => client.describe(&self.repo, self.id, file),
            false => Ok(None),
        };
        let weights = describe("model.safetensors")?;
        let mut remotes = Vec::new();
        for file in WELCOME {
            remotes.extend(describe(file)?);
        }
        let config = describe("config.json")?;
        if weights.is_none() {
            self.explain_missing_weights(&describe)?;
        }
        let not_there = |file: &str| ModelError::NotFound {
            what: format!("{file} of {}", self.id),
            endpoint: client.endpoint().to_owned(),
            found: "no such file or repository".to_owned(),
            expected: "a repository with config.json and model.safetensors".to_owned(),
        };
        remotes.push(config.ok_or_else(|| not_there("config.json"))?);
        remotes.push(weights.ok_or_else(|| not_there("model.safetensors"))?);

        let commit = listing.map_or(&remotes[0].commit, |listing| &listing.commit);
        for remote in &remotes {
            let size =
                listing.and_then(|listing| listing.files.get(&remote.name).copied().flatten());
            if remote.commit != *commit {
                return Err(ModelError::Answer {
                    endpoint: remote.url.clone(),
                    found: format!("commit {}", remote.commit),
                    expected: format!(
                        "{commit}, as of the other files (was the repository changed just now?)"
                    ),
                });
            }
            if let Some(expected) = size.filter(|size| *size != remote.bytes) {
                return Err(ModelError::Truncated {
                    what: remote.name.clone(),
                    endpoint: client.endpoint().to_owned(),
                    found: remote.bytes,
                    expected,
                    remedy: "the repository's list and the file disagree; try again later or another HF_ENDPOINT".to_owned(),
                });
            }
        }
        Ok(remotes)
    }

    fn explain_missing_weights(
        &self,
        describe: &dyn Fn(&str) -> Result<Option<Remote>, ModelError>,
    ) -> Result<(), ModelError> {
        let mut there = Vec::new();
        for file in OTHER_FORMATS {
            if describe(file)?.is_some() {
                there.push(file);
            }
        }
        folder::check_weight_format(self.id, |file| there.contains(&file))
    }

    fn has_blob(&self, remote: &Remote) -> bool {
        fs::metadata(self.cached.blob_path(&remote.etag))
            .is_ok_and(|blob| blob.len() == remote.bytes)
    }

    fn already_there(&self, remote: &Remote) -> u64 {
        let partial = self.cached.blob_path(&format!("{}.incomplete", remote.etag));
        fs::metadata(partial).map_or(0, |partial| partial.len().min(remote.bytes))
    }

    /// Downloads one file, unless its content is there, and links it into the snapshot.
    fn bring(
        &self,
        client: &Client,
        remote: &Remote,
        progress: &Progress,
    ) -> Result<(), ModelError> {
        let blob = self.cached.blob_path(&remote.etag);
        let pointer = self.cached.pointer_path(&remote.commit).join(&remote.name);
        // Where the Python library locks, too: neither writes into the other's download.
        let lock_file = self
            .env
            .cache
            .join(".locks")
            .join(self.repo.folder_name())
            .join(format!("{}.lock", remote.etag));
        for path in [&blob, &pointer, &lock_file] {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder).map_err(ModelError::hub_cache(folder))?;
        }
        let _lock = lock(&lock_file).map_err(ModelError::hub_cache(&lock_file))?;
        if !self.has_blob(remote) {
            let bar = progress.bytes(&format!("downloading {}", remote.name), remote.bytes);
            transfer::download(client, &self.repo, remote, &blob, &bar)?;
        }
        link(&blob, &remote.etag, &pointer)
    }
}

/// Makes `pointer` lead to the blob: a relative link, or a copy where there are no links.
fn link(blob: &Path, etag: &str, pointer: &Path) -> Result<(), ModelError> {
    if fs::read_link(pointer).is_ok_and(|target| target.ends_with(Path::new("blobs").join(etag))) {
        return Ok(());
    }
    if pointer.symlink_metadata().is_ok() {
        fs::remove_file(pointer).map_err(ModelError::hub_cache(pointer))?;
    }
    let target = Path::new("..").join("..").join("blobs").join(etag);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, pointer);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, pointer);
    #[cfg(not(any(unix, windows)))]
    let linked: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
    linked.or_else(|_| fs::copy(blob, pointer).map(|_| ())).map_err(ModelError::hub_cache(pointer))
}
