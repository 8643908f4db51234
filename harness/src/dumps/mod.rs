//! Dumps: tensors that programs left in files, compared and written without running anything.
//!
//! Reading order: [`compare`] is the command; [`source`] finds tensors in folders, [`file`] in single
//! files, [`npz`] in NumPy's zips, [`torch`] in PyTorch's, [`printed`] in what llama.cpp prints; [`raw`]
//! is what they find; [`names`] and [`alias`] say what a tensor's name means, [`recipe`] how its layout becomes
//! ours, [`sizes`] what the layouts depend on; [`side`] is one source under our names, [`pairing`]
//! two of them compared, [`partial`] where only some elements are there, [`diagnose`] says whether a label fits its content, [`show`] prints.
//! [`export`] writes loose files that `compare` reads back.

pub mod alias;
pub mod compare;
pub mod diagnose;
pub mod export;
pub mod file;
pub mod names;
pub mod npz;
pub mod pairing;
pub mod partial;
pub mod printed;
pub mod raw;
pub mod recipe;
pub mod show;
pub mod side;
pub mod sizes;
pub mod source;
pub mod torch;
mod zipped;
