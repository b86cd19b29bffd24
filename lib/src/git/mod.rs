//! Git as engine: object database, refs and index; never the hand on the disk.
//!
//! Objects, trees and the index are read and written here, in this process; porcelain is the git program,
//! started from [`command`] only. Nothing in this module writes a managed work tree.

pub mod check;
#[doc(hidden)]
pub mod codec;
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
pub mod packhash;
mod packindex;
mod plain;
pub mod quarantine;
mod reflist;
mod reflog;
pub mod refs;
pub mod roots;
pub mod salvage;
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
    for bytes in [data, &crate::endline::add(data)] {
        if let Some(moving) = moving::Moving::decode(bytes) {
            assert_eq!(moving.encode(), bytes);
        }
    }
}

/// Reads and verifies what a pack and its index hold, as the only ones below `git_dir`, which is a directory to write to.
#[cfg(fuzzing)]
#[allow(clippy::disallowed_methods)]
pub fn fuzz_pack(git_dir: &std::path::Path, pack: &[u8], index: &[u8]) {
    let path = git_dir.join("objects/pack/pack-1.idx");
    for (path, bytes) in [(&path, index), (&path.with_extension("pack"), pack)] {
        std::fs::write(path, bytes).expect("the directory can be written to");
    }
    let verify = |before| Git::at(git_dir).verify_objects(&|_| true, before, &[]);
    let nothing = verify::Sound::default();
    let verified = verify(&nothing);
    let is_sound = verified.as_ref().is_ok_and(|verified| verified.wanted.is_some() && verified.damaged.is_empty());
    if let Ok(verified) = verified {
        let again = verify(&verified.sound).expect("it was read before");
        // Threads find what is damaged in any order.
        let found = |verified: verify::Verified| (verified.wanted, verified.damaged.len(), verified.sound);
        assert_eq!(found(again), found(verified));
    }
    let files = inflate::OpenFiles::default();
    let Ok(names) = packindex::PackIndex::open(&path, 1 << 20) else { return assert!(!is_sound) };
    let objects = Objects::open(git_dir).expect("the directory can be read");
    for rank in 0..names.n_objects().min(100) as u32 {
        let Ok(oid) = names.name(rank, &files).map(object::oid_from) else { break };
        let (found, _) = (objects.find(&oid), objects.blob_size(&oid));
        let is_found = found.is_ok_and(|found| found.is_some());
        assert!(is_found || !is_sound, "{oid} is in order and cannot be read");
    }
}
