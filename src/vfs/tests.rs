//! The filesystem without a kernel: random histories beside a plain model, and
//! what a change costs.

mod access;
mod ahead;
mod asides;
mod errors;
mod hashing;
mod last_read;
mod log_engine;
mod making;
mod model;
mod policies;
mod quotas;
mod random;
mod recovery;
mod syncing;
mod walk;
mod world;
