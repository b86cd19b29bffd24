//! Other hosts: what is said between them, the side that answers, the side that asks.
//!
//! Formats and limits: `docs/formats/serve.md`. Hosts only pull: no request changes anything on the side that answers.

pub mod address;
pub mod ask;
pub mod client;
pub mod fetch;
pub mod hosts;
pub mod serve;
pub mod sign;
pub mod ssh;
mod window;
pub mod wire;
