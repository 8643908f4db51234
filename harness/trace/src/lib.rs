//! Shared forms.
