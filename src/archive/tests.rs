//! Archives are built by hand here, byte by byte, so that the reader is not
//! tested against the writer alone.

mod build;
mod damage;
mod metadata;
mod plan;
mod round_trip;
mod shelf;
