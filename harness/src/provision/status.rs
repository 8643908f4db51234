//! What is installed.

use std::path::PathBuf;

use super::{Provisioner, cargo, disk, pins, python};
use crate::references::{Kind, Reference};

/// Where a reference stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Ready {
        path: PathBuf,
        bytes: u64,
    },
    /// Begun by a process that didn't finish; the next one starts over.
    HalfMade {
        path: PathBuf,
    },
    Missing,
}

impl Status {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::HalfMade { .. } => "half-made",
            Self::Missing => "not installed",
        }
    }
}

pub fn status(provisioner: &Provisioner, reference: &Reference) -> Status {
    let prefix = match reference.kind {
        Kind::Python => {
            if let Some(path) = python::ready(provisioner, reference) {
                return Status::Ready { bytes: disk::size(&path), path };
            }
            python::env_prefix(provisioner, reference)
        }
        Kind::Cargo => {
            let name = cargo::env_name(provisioner, reference);
            let path = provisioner.envs().join(&name);
            if cargo::is_whole(&path, reference) {
                let build = provisioner
                    .cache
                    .join("build")
                    .join(cargo::target_name(provisioner, reference));
                return Status::Ready { bytes: disk::size(&path) + disk::size(&build), path };
            }
            Some(name)
        }
    };
    let entries = std::fs::read_dir(provisioner.envs()).into_iter().flatten().flatten();
    let half_made = prefix.and_then(|prefix| {
        entries
            .filter(|entry| entry.path().is_dir())
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
    });
    half_made.map_or(Status::Missing, |entry| Status::HalfMade { path: entry.path() })
}

/// The versions that tell what a reference is: `torch 2.13.0, transformers 5.23.0`.
pub fn versions(provisioner: &Provisioner, reference: &Reference) -> String {
    let pins = pins::telling(reference, &|path| provisioner.text(path));
    pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
