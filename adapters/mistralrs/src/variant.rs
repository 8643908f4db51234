//! This reference has one form.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant;
