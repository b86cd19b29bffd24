//! Other hosts: what is said between them, the side that answers, the side that asks.
//!
//! Formats and limits: `docs/formats/serve.md`. Hosts only pull: no request changes anything on the side that answers.

pub mod address;
pub mod client;
pub mod fetch;
pub mod hosts;
pub mod serve;
pub mod ssh;
pub mod wire;
