//! Git as engine: object database, refs and index; never the hand on the disk.
//!
//! Objects, trees and the index are read and written here, in this process; porcelain is the git program,
//! started from [`command`] only. Nothing in this module writes a managed work tree.

pub mod check;
pub mod command;
mod config;
mod delta;
mod elsewhere;
mod heal;
pub mod index;
mod inflate;
mod init;
mod locks;
mod loose;
pub mod merge;
pub mod mirror;
pub mod moving;
pub mod name;
pub mod object;
pub mod objects;
pub mod pack;
mod packed;
mod packindex;
mod plain;
pub mod quarantine;
mod reflist;
mod reflog;
pub mod refs;
pub mod roots;
pub mod staging;
mod tree;
pub mod verify;

pub use command::{Git, Identity};
pub use config::Config;
pub use index::{CachedStat, Index, IndexBuilder, IndexEntry, IndexStamp};
pub use mirror::{Deviation, Mirror};
pub use object::{CommitData, ObjectKind, Signature, TreeEntry};
pub use objects::Objects;
pub use pack::{Kept, PackWriter};
pub use staging::{IndexLock, NewIndex, Staging, Written};
pub use tree::{write_tree, write_tree_after};

/// The name of an object in git: its SHA-1.
pub type Oid = gix_hash::ObjectId;

/// Returns the name of the tree that holds nothing, which git knows without having it.
pub fn empty_tree() -> Oid {
    Oid::empty_tree(gix_hash::Kind::Sha1)
}

/// Runs what decodes git's and our own small files beside the objects, and is not public, on `data`.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    let log = reflog::Log::decode(data);
    assert!(log.last().is_none_or(|last| log.mentions(&last)));
    let _ = refs::decode_loose(data);
    let _ = refs::find_packed(data, b"refs/heads/main");
    let sealed = [data, format!("end {}\n", blake3::hash(data).to_hex()).as_bytes()].concat();
    for bytes in [data, &sealed] {
        if let Some(moving) = moving::Moving::decode(bytes) {
            assert_eq!(moving.encode(), bytes);
        }
    }
}
