//! Owned by the store layer.
