//! Reading objects: from any thread, verified.

use std::path::Path;
use std::sync::{Arc, Mutex};

use gix_object::Find;
use gix_odb::Header;
use gix_odb::store::init::Options;

use super::object::{CommitData, ObjectKind, TreeEntry, decode_tree, object_id};
use super::{Oid, object};
use crate::error::{Context, Error, Kind, Result};

/// The object database of one repository; shared by reference between threads.
///
/// What it returns has the hash it is named by: every object is hashed when it is read.
pub struct Objects {
    store: Arc<gix_odb::Store>,
    /// Handles that no call is using; each caches what one thread lately read.
    idle: Mutex<Vec<gix_odb::HandleArc>>,
}

impl Objects {
    /// Opens the object database of the repository at `git_dir`.
    pub fn open(git_dir: &Path) -> Result<Self> {
        let path = git_dir.join("objects");
        let what = || format!("cannot open object database '{}'", path.display());
        path.metadata().context(what)?;
        let options = Options { alloc_limit_bytes: Some(MAX_OBJECT), ..Options::default() };
        let store =
            gix_odb::Store::at_opts(path.clone(), gix_hash::Kind::Sha1, &mut std::iter::empty(), options).context(what)?;
        Ok(Self { store: Arc::new(store), idle: Mutex::new(Vec::new()) })
    }

    /// Returns the object `oid`, or `None` if it is not here.
    pub fn find(&self, oid: &Oid) -> Result<Option<(ObjectKind, Vec<u8>)>> {
        let mut buffer = Vec::new();
        let found = self.with_handle(|handle| handle.try_find(oid, &mut buffer).map(|found| found.map(|data| data.kind)));
        let Some(kind) = found.map_err(|error| unreadable(oid, error))? else { return Ok(None) };
        if object_id(kind, &buffer)? != *oid {
            return Err(unreadable(oid, "its content has another hash"));
        }
        Ok(Some((kind, buffer)))
    }

    /// Returns the content of the blob `oid`.
    pub fn blob(&self, oid: &Oid) -> Result<Vec<u8>> {
        self.expect(oid, ObjectKind::Blob)
    }

    /// Returns the entries of the tree `oid`; refuses a tree with names or modes that we don't write.
    pub fn tree(&self, oid: &Oid) -> Result<Vec<TreeEntry>> {
        decode_tree(&self.expect(oid, ObjectKind::Tree)?).context(|| format!("cannot use tree '{oid}'"))
    }

    /// Returns the commit `oid`.
    pub fn commit(&self, oid: &Oid) -> Result<CommitData> {
        CommitData::decode(&self.expect(oid, ObjectKind::Commit)?).context(|| format!("cannot use commit '{oid}'"))
    }

    /// Says whether the object `oid` is here, without reading it.
    pub fn contains(&self, oid: &Oid) -> bool {
        self.with_handle(|handle| gix_object::Exists::exists(handle, oid))
    }

    /// Returns the length of the blob `oid` without reading its content, or `None` if it is not here.
    pub fn blob_size(&self, oid: &Oid) -> Result<Option<u64>> {
        let header = self.with_handle(|handle| handle.try_header(oid)).map_err(|error| unreadable(oid, error))?;
        match header {
            Some(header) if header.kind() == ObjectKind::Blob => Ok(Some(header.size())),
            Some(header) => Err(wrong_kind(oid, header.kind(), ObjectKind::Blob)),
            None => Ok(None),
        }
    }

    /// Lists the packs again.
    pub fn refresh(&self) {
        // Looking for what cannot be there is how the database is made to look at the disk.
        self.contains(&Oid::null(gix_hash::Kind::Sha1));
    }

    /// Says whether `oid` was here when the packs were last listed: a miss costs little and may be wrong.
    pub(super) fn contains_quickly(&self, oid: &Oid) -> bool {
        self.with_handle(|handle| handle.exists_without_refresh(oid))
    }

    fn expect(&self, oid: &Oid, wanted: ObjectKind) -> Result<Vec<u8>> {
        match self.find(oid)? {
            Some((kind, data)) if kind == wanted => Ok(data),
            Some((kind, _)) => Err(wrong_kind(oid, kind, wanted)),
            None => {
                Err(Error::new(Kind::NotFound, format!("{wanted} '{oid}' is missing; fetch it from a peer, or see 'gdo check'")))
            }
        }
    }

    fn with_handle<T>(&self, work: impl FnOnce(&gix_odb::HandleArc) -> T) -> T {
        let idle = || self.idle.lock().expect("BUG: a thread panicked while it held the idle handles");
        let taken = idle().pop();
        let handle = taken.unwrap_or_else(|| self.store.to_cache_arc());
        let result = work(&handle);
        idle().push(handle);
        result
    }
}

/// No object of ours comes near it; one that claims more is not read.
const MAX_OBJECT: usize = 2 << 30;

fn unreadable(oid: &Oid, why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("cannot read object '{oid}': {why}; see 'gdo check'"))
}

fn wrong_kind(oid: &Oid, kind: object::ObjectKind, wanted: ObjectKind) -> Error {
    Error::new(Kind::Corrupt, format!("object '{oid}' is a {kind} where a {wanted} is expected"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Git;

    #[test]
    fn objects_of_a_stock_git_are_read_loose_and_packed() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let put = |kind: &str, data: &[u8]| {
            Oid::from_hex(git.run_with_input(&["hash-object", "-w", "-t", kind, "--stdin"], data).unwrap().trim_ascii()).unwrap()
        };
        let blob = put("blob", b"hello\n");
        let mut bytes = Vec::new();
        object::encode_tree_entry(0o100644, b"a", &blob, &mut bytes);
        let tree = put("tree", &bytes);
        let check = || {
            assert_eq!(objects.blob(&blob).unwrap(), b"hello\n");
            assert_eq!(objects.blob_size(&blob).unwrap(), Some(6));
            assert_eq!(objects.tree(&tree).unwrap(), [TreeEntry { mode: 0o100644, name: b"a".to_vec(), oid: blob }]);
            assert!(objects.contains(&blob) && objects.contains(&tree));
        };
        check();
        git.run(&["update-ref", "refs/heads/x", &blob.to_string()]).unwrap_err();
        git.run(&["update-ref", "refs/tags/x", &tree.to_string()]).unwrap();
        git.run(&["repack", "-adq"]).unwrap();
        git.run(&["prune-packed"]).unwrap();
        check();
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(check))));
        let missing = object::oid_from([9; 20]);
        assert!(objects.find(&missing).unwrap().is_none() && !objects.contains(&missing));
        assert_eq!(objects.blob(&missing).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(objects.blob(&tree).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn an_object_with_other_content_than_its_name_says_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let put = |data: &[u8]| String::from_utf8(git.run_with_input(&["hash-object", "-w", "--stdin"], data).unwrap()).unwrap();
        let (one, two) = (put(b"one").trim().to_owned(), put(b"two").trim().to_owned());
        let path = |hex: &str| dir.path().join("objects").join(&hex[..2]).join(&hex[2..]);
        std::fs::remove_file(path(&one)).unwrap();
        std::fs::copy(path(&two), path(&one)).unwrap();
        assert_eq!(objects.blob(&Oid::from_hex(one.as_bytes()).unwrap()).unwrap_err().kind(), Kind::Corrupt);
        std::fs::remove_file(path(&two)).unwrap();
        std::fs::write(path(&two), b"garbage").unwrap();
        assert_eq!(objects.blob(&Oid::from_hex(two.as_bytes()).unwrap()).unwrap_err().kind(), Kind::Corrupt);
    }
}
