//! `POST /v1/checkpoints`: one prompt with the hooks on; the tensors of the points that are asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{StreamExt, stream};
use llorch_trace::bundle::{Bundle, BundleWriter, CaseRecord, MANIFEST, Manifest, TENSORS};
use llorch_trace::{Dtype, Point, PointSet, Tensor, all_points};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::App;
use super::body::Body;
use super::error::{ApiError, ErrorBody};
use super::request::{
    REPETITION, SEED, TOP_K, WHOLE, check_ids, check_length, check_model, encode, top_k,
};
use super::schemas::{ids_or_null_schema, prompt_schema};
use crate::error::Error;
use crate::generate::Options;
use crate::sampler::Sampling;
use crate::server::access::RequestId;
use crate::server::engine::{Capture, Ready};

/// Numbers that a JSON answer may have: as text they are several times as long.
const MOST_NUMBERS: usize = 4 << 20;
/// More than there are points in any GPT-2.
const MOST_GLOBS: usize = 1024;
const NAME: &str =
    "1 to 64 letters, digits, dots, dashes and underscores, a letter, digit or underscore first";

/// One prompt, and what is to be seen of it.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"prompt": "Hello.", "points": ["h.0.attn.probs"], "format": "json"}))]
pub struct CheckpointsRequest {
    /// The name that the daemon was started with; any other is refused.
    model: Option<String>,
    #[schema(schema_with = prompt_schema)]
    prompt: OnePrompt,
    /// Names of points, `*` for any part of one, across dots too; `llorch-diff points` lists them.
    #[schema(min_items = 1, max_items = 1024)]
    points: Vec<String>,
    /// 0, if absent, runs the prompt alone; N gives max(N, 1) steps, of which step 0 is the prompt.
    #[schema(minimum = 0)]
    max_new_tokens: Option<usize>,
    /// Tokens to go on with in place of those that are chosen: `max_new_tokens` of them.
    #[schema(schema_with = ids_or_null_schema)]
    forced_ids: Option<Vec<u32>>,
    /// 0, if absent, takes the most likely token.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Draw from the k most likely tokens; 0, if absent, or -1 for all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Draw from the fewest tokens that together have this probability; 1 if absent.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Of Keskar et al. 2019; 1, if absent, is none.
    #[schema(minimum = 0.01, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// The same seed draws the same tokens; 0 if absent.
    seed: Option<i64>,
    /// The name of the case in the bundle; `prompt` if absent.
    #[schema(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
    case: Option<String>,
    /// `tar`, if absent: an archive that unpacks to a bundle. `json`: numbers as text, up to 4 Mi of them.
    format: Option<CaptureFormat>,
    /// Keep the bundle under this name in the folder that the daemon was started with, and answer where it is.
    #[schema(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$")]
    store: Option<String>,
}

/// A text or token ids.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OnePrompt {
    Text(String),
    Ids(Vec<u32>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CaptureFormat {
    /// An archive that unpacks to a bundle: `tensors.safetensors` and `manifest.json`. This is the default.
    Tar,
    /// Numbers as text, up to 4 Mi of them.
    Json,
}

/// A capture as JSON.
#[derive(Debug, Serialize, ToSchema)]
pub struct Captured {
    /// The name that was given, or `prompt`.
    pub case: String,
    /// The prompt's tokens.
    pub ids: Vec<u32>,
    /// The new tokens.
    pub generated: Vec<u32>,
    /// Of what was generated.
    pub text: String,
    pub tensors: Vec<CapturedTensor>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CapturedTensor {
    /// Its name: `h.0.attn.probs`.
    pub point: String,
    /// 0 is the prompt, n the n-th new token that was fed.
    pub step: usize,
    /// f32 or i64
    pub dtype: &'static str,
    /// Without a batch axis; empty for a single number.
    pub shape: Vec<usize>,
    /// Row by row; null where it is not finite, as masked scores are.
    #[schema(value_type = Vec<Option<f64>>)]
    pub data: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Stored {
    /// The bundle's folder, on the daemon's machine.
    pub path: String,
    /// How many there are.
    pub tensors: usize,
    /// The prompt's tokens.
    pub ids: Vec<u32>,
    /// The new tokens.
    pub generated: Vec<u32>,
    /// Of what was generated.
    pub text: String,
}

/// Runs one prompt with the hooks on.
///
/// The tensors have the names, shapes and units of the checkpoints. What other requests get does not change, and does not
/// change these.
#[utoipa::path(
    post, path = "/v1/checkpoints", operation_id = "capture_checkpoints", tag = "llorch",
    request_body = CheckpointsRequest,
    responses(
        (status = 200, description = "The tensors, or where they are kept", content(
            (String = "application/x-tar"), (CheckpointsAnswer = "application/json")
        )),
        (status = 400, description = "A field is not what it may be", body = ErrorBody),
        (status = 404, description = "Another model is asked for", body = ErrorBody),
        (status = 408, description = "Not done within the time allowed", body = ErrorBody),
        (status = 409, description = "There is a bundle of that name", body = ErrorBody),
        (status = 422, description = "More than may be captured, or nowhere to keep it", body = ErrorBody),
        (status = 429, description = "The queue is full", body = ErrorBody),
        (status = 503, description = "The model is still loading", body = ErrorBody),
    )
)]
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    body: Body,
) -> Result<Response, ApiError> {
    let ready = app.engine.ready()?;
    let check = || CheckpointsRequest::read(body)?.check(&app.model, ready);
    let asked = tokio::task::block_in_place(check)?;
    let Asked { ids, options, points, case, format, store } = asked;
    if app.log_text {
        let prompt = ready.tokenizer.decode(&ids)?;
        tracing::info!(id = id.as_str(), prompts = ?[prompt], "prompts");
    }
    let place = Place::new(app.store.as_deref(), store.as_deref())?;
    let (ticket, deadline) = app.engine.ticket(1)?;
    let most = Most {
        bytes: app.max_capture,
        numbers: if format == CaptureFormat::Json { MOST_NUMBERS } else { usize::MAX },
    };
    let kept = Kept::new(place.dir(), &case, most)?;
    let (theirs, prompt) = (kept.clone(), ids.clone());
    let keep = Box::new(move |step, point: Point, tensor| theirs.keep(step, point, &tensor));
    let (reply, answer) = oneshot::channel();
    app.engine.capture(Capture { ids, options, points, keep, deadline, ticket, reply })?;
    let stopped = |_| ApiError::internal("the engine stopped before it answered");
    let done = answer.await.map_err(stopped)?;
    if let Some(too_much) = kept.too_much() {
        let message = format!("{too_much}, or for fewer points or steps");
        return Err(ApiError::unsupported("points", message));
    }
    let done = done?;
    let text = ready.tokenizer.decode(&done.ids)?;
    if app.log_text {
        tracing::info!(id = id.as_str(), texts = ?[&text], "texts");
    }
    let record = CaseRecord { ids: prompt, generated: Some(done.ids), text: Some(text) };
    let model = json!({"name": *app.model, "sha256": ready.sha256, "dtype": app.dtype.to_string()});
    // The bundle is hashed and closed: of gigabytes, that takes seconds.
    let (bundle, record, case) = tokio::task::spawn_blocking(move || {
        kept.finish(record, model).map(|(bundle, record)| (bundle, record, case))
    })
    .await
    .map_err(|e| ApiError::internal(format!("failed to write the bundle: {e}")))??;
    let CaseRecord { ids, generated, text } = record;
    let (generated, text) = (generated.unwrap_or_default(), text.unwrap_or_default());
    match (place, format) {
        (Place::Stored { dir, done }, _) => {
            done.keep();
            let dir = std::path::absolute(&dir).unwrap_or(dir);
            let (path, tensors) = (dir.display().to_string(), bundle.manifest.tensors.len());
            let stored = Stored { path, tensors, ids, generated, text };
            Ok(Json(CheckpointsAnswer::Stored(stored)).into_response())
        }
        (Place::Passing(_dir), CaptureFormat::Json) => {
            let read = || numbers(&bundle);
            let tensors = tokio::task::block_in_place(read).map_err(Error::from)?;
            let captured = Captured { case, ids, generated, text, tensors };
            Ok(Json(CheckpointsAnswer::Captured(captured)).into_response())
        }
        (Place::Passing(dir), CaptureFormat::Tar) => archive(dir.path())
            .await
            .map_err(|e| ApiError::internal(format!("failed to read back the bundle: {e}"))),
    }
}

/// Either of two forms.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CheckpointsAnswer {
    Captured(Captured),
    Stored(Stored),
}

/// A request that can be run.
struct Asked {
    ids: Vec<u32>,
    options: Options,
    points: PointSet,
    case: String,
    format: CaptureFormat,
    store: Option<String>,
}

impl CheckpointsRequest {
    fn read(mut body: Body) -> Result<CheckpointsRequest, ApiError> {
        Ok(CheckpointsRequest {
            model: body.take("model", "the name of a model")?,
            prompt: body.need("prompt", "a text or a list of token ids")?,
            points: body.need("points", "a list of names of points")?,
            max_new_tokens: body.take("max_new_tokens", WHOLE)?,
            forced_ids: body.take("forced_ids", "a list of token ids")?,
            temperature: Some(body.number("temperature", 0.0, 0.0..=2.0)?),
            top_k: body.take("top_k", TOP_K)?,
            top_p: Some(body.number("top_p", 1.0, 0.0..=1.0)?),
            repetition_penalty: Some(body.number("repetition_penalty", 1.0, REPETITION)?),
            seed: body.take("seed", SEED)?,
            case: name(&mut body, "case")?,
            format: body.take("format", "\"tar\" or \"json\"")?,
            store: name(&mut body, "store")?,
        })
    }

    fn check(self, model: &str, ready: &Ready) -> Result<Asked, ApiError> {
        check_model(self.model.as_deref(), model)?;
        let ids = match self.prompt {
            OnePrompt::Text(text) => encode(&text, ready)?,
            OnePrompt::Ids(ids) => ids,
        };
        check_ids(&ids, "prompt", ready)?;
        let points = self::points(&self.points, ready)?;
        let max_new_tokens = self.max_new_tokens.unwrap_or(0);
        check_length(&ids, max_new_tokens, "max_new_tokens", ready)?;
        if let Some(forced) = &self.forced_ids {
            if forced.len() != max_new_tokens {
                let n = forced.len();
                let message = format!(
                    "forced_ids has {n}; expected max_new_tokens of them, {max_new_tokens}"
                );
                return Err(ApiError::invalid(Some("forced_ids"), message));
            }
            if !forced.is_empty() {
                check_ids(forced, "forced_ids", ready)?;
            }
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(0.0),
            top_k: top_k(self.top_k)?,
            top_p: self.top_p.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            seed: self.seed.unwrap_or(0) as u64,
            ..Sampling::default()
        };
        sampling.check()?;
        let forced_ids = self.forced_ids;
        Ok(Asked {
            ids,
            options: Options { max_new_tokens, sampling, stop_ids: vec![], forced_ids },
            points,
            case: self.case.unwrap_or_else(|| "prompt".into()),
            format: self.format.unwrap_or(CaptureFormat::Tar),
            store: self.store,
        })
    }
}

/// The points that are meant: each name matches some.
fn points(globs: &[String], ready: &Ready) -> Result<PointSet, ApiError> {
    let refuse = |message: String| Err(ApiError::invalid(Some("points"), message));
    if globs.is_empty() || globs.len() > MOST_GLOBS {
        let n = globs.len();
        return refuse(format!("points has {n} names; expected 1 to {MOST_GLOBS}"));
    }
    let all = all_points(ready.config.n_layer);
    for glob in globs {
        let one = PointSet::new(std::slice::from_ref(glob));
        if !all.iter().any(|point| one.contains_point(*point)) {
            let glob: String = glob.chars().take(80).collect();
            return refuse(format!("points: {glob:?} matches none; llorch-diff points lists them"));
        }
    }
    Ok(PointSet::new(globs))
}

/// A name that is a file's too.
fn name(body: &mut Body, field: &'static str) -> Result<Option<String>, ApiError> {
    let Some(name) = body.take::<String>(field, NAME)? else { return Ok(None) };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > 64 || name.starts_with(['.', '-']) || !name.chars().all(good)
    {
        let found: String = name.chars().take(80).collect();
        let message = format!("{field} is {found:?}; expected {NAME}");
        return Err(ApiError::invalid(Some(field), message));
    }
    Ok(Some(name))
}

/// Where a bundle is written.
enum Place {
    /// Until it has been sent.
    Passing(TempDir),
    Stored {
        dir: PathBuf,
        done: Unfinished,
    },
}

/// A folder that is removed unless what was to be in it came to its end.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take() {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

impl Place {
    fn new(store: Option<&Path>, name: Option<&str>) -> Result<Place, ApiError> {
        let failed =
            |what: &str, e: io::Error| ApiError::internal(format!("failed to {what}: {e}"));
        let Some(name) = name else {
            let dir = tempfile::tempdir().map_err(|e| failed("make a temporary folder", e))?;
            return Ok(Place::Passing(dir));
        };
        let Some(store) = store else {
            let message =
                "store: this daemon keeps no bundles; start it with --store DIR, or leave it out";
            return Err(ApiError::unsupported("store", message));
        };
        let dir = store.join(name);
        match std::fs::create_dir(&dir) {
            Ok(()) => Ok(Place::Stored { done: Unfinished(Some(dir.clone())), dir }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let message = format!("store: there is a {name:?} already; expected another name");
                let error = ApiError::invalid(Some("store"), message);
                Err(error.with(StatusCode::CONFLICT, "exists"))
            }
            Err(e) => Err(failed(&format!("make {}", dir.display()), e)),
        }
    }

    fn dir(&self) -> &Path {
        match self {
            Place::Passing(dir) => dir.path(),
            Place::Stored { dir, .. } => dir,
        }
    }
}

/// The tensors that have come, in a bundle that is being written.
#[derive(Clone)]
struct Kept(Arc<Mutex<Writing>>);

struct Writing {
    bundle: Option<BundleWriter>,
    case: String,
    left: Most,
    too_much: Option<String>,
}

/// What may still come.
#[derive(Debug, Clone, Copy)]
struct Most {
    bytes: u64,
    numbers: usize,
}

impl Most {
    /// # Errors
    /// There is more in it than may be.
    fn take(&mut self, tensor: &Tensor) -> Result<(), String> {
        let bytes = (tensor.len() * tensor.dtype().size()) as u64;
        self.numbers = self.numbers.checked_sub(tensor.len()).ok_or_else(|| {
            format!("the tensors have more than the {MOST_NUMBERS} numbers that JSON may have; ask for tar")
        })?;
        let too_long =
            "the tensors take more than --max-capture of this daemon; ask for a shorter prompt";
        self.bytes = self.bytes.checked_sub(bytes).ok_or(too_long)?;
        Ok(())
    }
}

impl Kept {
    fn new(dir: &Path, case: &str, most: Most) -> Result<Kept, ApiError> {
        let bundle = Some(BundleWriter::create(dir).map_err(Error::from)?);
        let case = case.to_string();
        Ok(Kept(Arc::new(Mutex::new(Writing { bundle, case, left: most, too_much: None }))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, step: usize, point: Point, tensor: &Tensor) -> crate::Result<()> {
        let mut writing = self.lock();
        let Writing { bundle, case, left, too_much } = &mut *writing;
        if let Err(what) = left.take(tensor) {
            *too_much = Some(what.clone());
            return Err(Error::input("capture", what));
        }
        match bundle {
            Some(bundle) => Ok(bundle.add(case, step, &point.to_string(), tensor)?),
            None => Err(Error::internal("capture", "the bundle is closed")),
        }
    }

    fn too_much(&self) -> Option<String> {
        self.lock().too_much.take()
    }

    fn finish(
        &self,
        record: CaseRecord,
        model: serde_json::Value,
    ) -> Result<(Bundle, CaseRecord), ApiError> {
        let mut writing = self.lock();
        let case = writing.case.clone();
        let bundle = writing.bundle.take();
        let bundle = bundle.ok_or_else(|| ApiError::internal("the bundle is closed"))?;
        let manifest = Manifest {
            implementation: "llorch-cpud".into(),
            model,
            cases: [(case, record.clone())].into(),
            provenance: json!({"version": env!("CARGO_PKG_VERSION"), "through": "POST /v1/checkpoints"}),
            ..Manifest::default()
        };
        Ok((bundle.finish(manifest).map_err(Error::from)?, record))
    }
}

fn numbers(bundle: &Bundle) -> llorch_trace::Result<Vec<CapturedTensor>> {
    let one = |entry: &llorch_trace::bundle::Entry| {
        let tensor = bundle.get(&entry.case, entry.step, &entry.point)?;
        let is_whole = entry.dtype == Dtype::I64;
        // What isn't finite becomes null.
        let number = |x: f64| if is_whole { (x as i64).into() } else { x.into() };
        Ok(CapturedTensor {
            point: entry.point.clone(),
            step: entry.step,
            dtype: Dtype::name(entry.dtype),
            shape: entry.shape.clone(),
            data: tensor.to_f64().into_iter().map(number).collect(),
        })
    };
    bundle.manifest.tensors.iter().map(one).collect()
}

/// The bundle as a tar archive, which is sent as it is read.
async fn archive(dir: &Path) -> io::Result<Response> {
    const BLOCK: u64 = 512;
    let manifest = tokio::fs::read(dir.join(MANIFEST)).await?;
    // The folder is removed when this function ends; the file stays as long as it is open.
    let tensors = tokio::fs::File::open(dir.join(TENSORS)).await?;
    let size = tensors.metadata().await?.len();
    let head = |name: &str, size: u64| -> io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        Ok(header.as_bytes().to_vec())
    };
    let padding = |size: u64| vec![0; (size.next_multiple_of(BLOCK) - size) as usize];
    let mut front = head(MANIFEST, manifest.len() as u64)?;
    front.extend(&manifest);
    front.extend(padding(manifest.len() as u64));
    front.extend(head(TENSORS, size)?);
    let mut back = padding(size);
    // Two empty blocks end an archive.
    back.resize(back.len() + 2 * BLOCK as usize, 0);
    let length = front.len() as u64 + size + back.len() as u64;
    let once = |bytes: Vec<u8>| stream::once(async move { io::Result::Ok(bytes.into()) });
    let middle = tokio_util::io::ReaderStream::with_capacity(tensors, 1 << 18);
    let body = HttpBody::from_stream(once(front).chain(middle).chain(once(back)));
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_string()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}
