//! Owned by the content layer.
