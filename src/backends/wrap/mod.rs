//! Wrappers that implement the trait over another backend.
