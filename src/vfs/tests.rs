//! The filesystem without a kernel: random histories beside a plain model, and
//! what a change costs.

mod access;
mod asides;
mod errors;
mod hashing;
mod log_engine;
mod model;
mod policies;
mod quotas;
mod random;
mod recovery;
mod syncing;
mod walk;
mod world;
