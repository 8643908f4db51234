//! Dumps: tensors that programs left in files, compared and written without running anything.
//!
//! Reading order: [`compare`] is the command; [`source`] finds tensors in files, [`npz`] in NumPy's
//! zips; [`names`] and [`alias`] say what a tensor's name means, [`recipe`] how its layout becomes
//! ours, [`sizes`] what the layouts depend on; [`side`] is one source under our names, [`pairing`]
//! two of them compared, [`diagnose`] says whether a label fits its content, [`show`] prints.
//! [`export`] writes loose files that `compare` reads back.

pub mod alias;
pub mod compare;
pub mod diagnose;
pub mod export;
pub mod names;
pub mod npz;
pub mod pairing;
pub mod recipe;
pub mod show;
pub mod side;
pub mod sizes;
pub mod source;
