//! Large files: a text index in git, the content in the chunk store.
//!
//! [`index`] is the text, [`mod@write`] cuts a file into chunks, [`mod@read`] puts it together again.

pub mod index;
pub mod read;
pub mod source;
pub mod write;
