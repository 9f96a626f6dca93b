//! Owned by the command-line layer.
