//! The flag by which a run is remembered.

use super::record::Record;
use super::store::{self, Store, StoreError};
use crate::result::RunResult;
use crate::run::RunError;
use crate::saved::Collected;

/// What turns it off.
const NONE: &str = "none";

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// The history: a folder, or a URL; `none` keeps none [default: history in the data folder]
    #[arg(long = "history", value_name = "PATH_OR_URL", env = "LLORCH_HISTORY")]
    place: Option<String>,
}

impl Place {
    /// What it says; the default one where nothing is said. None for `none`.
    pub fn store(&self) -> Result<Option<Box<dyn Store>>, StoreError> {
        match self.place.as_deref() {
            Some(place) if place.eq_ignore_ascii_case(NONE) => Ok(None),
            Some(place) => store::open(place).map(Some),
            None => {
                let folder = llorch_models::data_dir().join("history");
                store::open(&folder.to_string_lossy()).map(Some)
            }
        }
    }

    /// The same, known to be writable before a run of minutes is made for it. What nobody asked for
    /// may be missing: then there is none.
    pub fn to_record(&self) -> Result<Option<Box<dyn Store>>, RunError> {
        let store = self.store()?;
        match store.as_ref().map_or(Ok(()), |store| store.check()) {
            Ok(()) => Ok(store),
            Err(error) if self.place.is_none() => {
                llorch_models::errln!("this run will not be recorded: {error}");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Appends a run, if there is a history. Whether it was not lost: where it was, stderr says why.
pub fn remember(store: Option<&dyn Store>, result: &RunResult, collected: &Collected) -> bool {
    let Some(store) = store else { return true };
    let record = Record::new(result, &collected.evidence);
    match append(store, &record) {
        Ok(()) => true,
        Err(error) => {
            llorch_models::errln!("error: this run is not recorded: {error}");
            false
        }
    }
}

pub fn append(store: &dyn Store, record: &Record) -> Result<(), StoreError> {
    let line = serde_json::to_string(record).map_err(|error| StoreError::Io {
        action: "write to",
        place: store.place(),
        message: error.to_string(),
    })?;
    store.append(record.day(), &line)
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> RunError {
        match error {
            StoreError::Place { .. } => RunError::Usage(error.to_string()),
            StoreError::Io { .. } => RunError::Environment(error.to_string()),
        }
    }
}
