//! Large files: a text index in git, the content in the chunk store.
//!
//! [`index`] is the text, [`write`] cuts a file into chunks, [`read`] puts it together again.

pub mod index;
pub mod read;
pub mod write;
