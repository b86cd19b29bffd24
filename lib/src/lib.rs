//! Whole machines in an ordinary git repository.
//!
//! The order of the `mod` lines is the order of the layers: a module uses only the modules listed above it
//! (`tests/layers.rs` keeps that). `ARCHITECTURE.md` tells what each of them is for.
//!
//! Nothing in this library prints, prompts, exits or reads the environment: the caller passes in what it read.
#![deny(unsafe_code)]
// The list is in `clippy.toml`.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod error;
pub mod id;
pub mod endline;
pub mod strings;
pub mod progress;
pub mod threads;
pub mod safepath;
pub mod durable;
pub mod child;
pub mod process;
pub mod chunk;
pub mod store;
pub mod placement;
pub mod remote;
pub mod metadata;
pub mod git;
pub mod trust;
pub mod file;
pub mod journal;
pub mod repo;
pub mod host;
