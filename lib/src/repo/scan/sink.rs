//! Where what is read goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::file::write::{ChunkSink, Note, Take};
use crate::git::pack::PackWriter;
use crate::git::{ObjectKind, Oid};
use crate::repo::hand_over::HandOver;
use crate::repo::stage::Referencing;
use crate::store::{FileReferences, Writer};

/// Where content goes.
#[derive(Clone, Copy)]
pub enum Sink<'a> {
    /// Into git and the chunk store.
    Store {
        /// Takes small files, chunk indexes and metadata.
        pack: &'a PackWriter<'a>,
        /// Takes chunks.
        chunks: &'a Writer,
        /// Where chunks stay in their files, takes where they lie.
        references: Option<&'a Referencing>,
        /// Where chunks are handed over to other hosts, takes them in the place of `chunks`.
        hand_over: Option<&'a HandOver<'a>>,
        /// Raised when one of them fails: that ends the run, where a source that fails does not.
        has_failed: &'a AtomicBool,
    },
    /// Small files and indexes into git, to be shown; chunks nowhere.
    Preview {
        /// Takes small files, chunk indexes and metadata.
        pack: &'a PackWriter<'a>,
        /// Raised when it fails.
        has_failed: &'a AtomicBool,
    },
    /// Nowhere: only its ids are wanted, to compare.
    Compare,
    /// Nowhere, but for the metadata of directories, which is handed out by its id.
    Look {
        /// Takes it.
        metadata: &'a Mutex<HashMap<Oid, Vec<u8>>>,
    },
}

impl Sink<'_> {
    pub(in crate::repo) fn blob(&self, bytes: &[u8]) -> Result<Oid> {
        match self {
            Self::Store { pack, has_failed, .. } | Self::Preview { pack, has_failed } => {
                pack.blob(bytes).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))
            }
            Self::Compare | Self::Look { .. } => crate::git::object::object_id(ObjectKind::Blob, bytes),
        }
    }

    /// Takes the metadata of a directory.
    pub(super) fn metadata(&self, text: &[u8]) -> Result<Oid> {
        let oid = self.blob(text)?;
        if let Self::Look { metadata } = self {
            metadata.lock().unwrap_or_else(PoisonError::into_inner).insert(oid, text.to_vec());
        }
        Ok(oid)
    }

    /// Returns who notes that the chunks of the file at `path` stay in it, if they do.
    pub(super) fn references(&self, path: &[u8]) -> Option<FileReferences<'_>> {
        match self {
            Self::Store { references: Some(references), .. } => references.of_file(path),
            _ => None,
        }
    }

    /// Returns who hands chunks over, if they are.
    pub(super) fn hand_over(&self) -> Option<&HandOver<'_>> {
        match self {
            Self::Store { hand_over, .. } => *hand_over,
            _ => None,
        }
    }

    pub(super) fn chunks<'s>(&'s self, note: Option<&'s Note<'s>>, take: Option<&'s Take<'s>>) -> ChunkSink<'s> {
        match self {
            Self::Store { chunks, has_failed, .. } => match (note, take) {
                (Some(note), _) => ChunkSink::Stay { writer: chunks, note, has_failed },
                (None, Some(take)) => ChunkSink::Passed { writer: chunks, take, has_failed },
                (None, None) => ChunkSink::Store { writer: chunks, has_failed },
            },
            Self::Preview { .. } | Self::Compare | Self::Look { .. } => ChunkSink::Discard,
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self, Self::Store { has_failed, .. } | Self::Preview { has_failed, .. } if has_failed.load(Ordering::Relaxed))
    }
}
