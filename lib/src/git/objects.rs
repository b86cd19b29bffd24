//! Reading objects: from any thread, verified, in bounded memory.
//!
//! Where objects are is found in `objects/pack`, the loose objects, and those of the repositories that
//! `objects/info/alternates` names. Others repack while we read: whatever is not found is looked for again
//! after the directories were listed anew.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use super::inflate::Reader;
use super::loose::Loose;
use super::object::{CommitData, ObjectKind, TreeEntry, decode_tree, object_id};
use super::packed::{Pack, Shared};
use super::{Oid, object};
use crate::durable;
use crate::error::{Context, Error, Kind, Reason, Result};

/// The object database of one repository; shared by reference between threads.
///
/// What it returns has the hash it is named by: every object is hashed when it is read. Memory: the object asked for
/// (with its base and the delta, where it is stored as one), at most 16 MiB of bases, at most 32 MiB of pack indexes,
/// and 1 KiB for each further pack.
pub struct Objects {
    dir: PathBuf,
    listing: RwLock<Arc<Listing>>,
    /// Held while the directories are listed, so that threads that miss together list them once.
    lister: Mutex<()>,
    shared: Shared,
    /// Readers that no call is using.
    idle: Mutex<Vec<Reader>>,
}

impl Objects {
    /// Opens the object database of the repository at `git_dir`.
    pub fn open(git_dir: &Path) -> Result<Self> {
        let dir = git_dir.join("objects");
        durable::list(&dir).context(|| format!("cannot open object database '{}'", dir.display()))?;
        let listing = RwLock::new(Arc::new(Listing::read(&dir, &Listing::default())));
        Ok(Self { dir, listing, lister: Mutex::new(()), shared: Shared::default(), idle: Mutex::new(Vec::new()) })
    }

    /// Returns the object `oid`, or `None` if it is not here.
    pub fn find(&self, oid: &Oid) -> Result<Option<(ObjectKind, Vec<u8>)>> {
        self.search(oid, |place, reader| {
            let (found, what) = match place {
                Place::Packed(pack, offset) => (Some(pack.read(offset, &self.shared, reader)?), pack.damage(offset)),
                Place::Loose(loose) => (loose.read(oid, reader)?, "the loose object is damaged".to_owned()),
            };
            match found {
                Some((kind, content)) if object_id(kind, &content)? != *oid => {
                    Err(Error::new(Kind::Corrupt, format!("{what}: its content has another hash")))
                }
                found => Ok(found),
            }
        })
    }

    /// Returns the content of the blob `oid`.
    pub fn blob(&self, oid: &Oid) -> Result<Vec<u8>> {
        self.expect(oid, ObjectKind::Blob)
    }

    /// Returns the entries of the tree `oid`; refuses a tree with names or modes that we don't write.
    pub fn tree(&self, oid: &Oid) -> Result<Vec<TreeEntry>> {
        // Git knows it, whether it is stored or not.
        if *oid == super::empty_tree() {
            return Ok(Vec::new());
        }
        let bytes = self.expect(oid, ObjectKind::Tree)?;
        decode_tree(&bytes).map_err(|error| error.or_refused(Reason::TreeEntry)).context(|| format!("cannot use tree '{oid}'"))
    }

    /// Returns the commit `oid`.
    pub fn commit(&self, oid: &Oid) -> Result<CommitData> {
        CommitData::decode(&self.expect(oid, ObjectKind::Commit)?).context(|| format!("cannot use commit '{oid}'"))
    }

    /// Says whether the object `oid` is here, without reading it.
    pub fn contains(&self, oid: &Oid) -> bool {
        let found = self.search(oid, |place, _| {
            Ok(match place {
                Place::Packed(..) => Some(()),
                Place::Loose(loose) => loose.contains(oid).then_some(()),
            })
        });
        matches!(found, Ok(Some(())))
    }

    /// Returns the length of the blob `oid` without reading its content, or `None` if it is not here.
    pub fn blob_size(&self, oid: &Oid) -> Result<Option<u64>> {
        self.size(oid, ObjectKind::Blob)
    }

    /// Returns the object `oid`, which must be a `wanted` of at most `most` bytes: nothing longer is read.
    pub fn short(&self, oid: &Oid, wanted: ObjectKind, most: u64) -> Result<Vec<u8>> {
        match self.size(oid, wanted)? {
            Some(size) if size > most => {
                Err(Error::new(Kind::Refused, format!("{wanted} '{oid}' has {size} bytes; at most {most} are read")))
            }
            _ => self.expect(oid, wanted),
        }
    }

    fn size(&self, oid: &Oid, wanted: ObjectKind) -> Result<Option<u64>> {
        let header = self.search(oid, |place, reader| match place {
            Place::Packed(pack, offset) => pack.header(offset, &self.shared, reader).map(Some),
            Place::Loose(loose) => loose.header(oid, reader),
        })?;
        match header {
            Some((kind, size)) if kind == wanted => Ok(Some(size)),
            Some((kind, _)) => Err(wrong_kind(oid, kind, wanted)),
            None => Ok(None),
        }
    }

    /// Lists the packs again.
    pub fn refresh(&self) {
        self.list_again(&self.listing());
    }

    /// Says whether `oid` was here when the packs were last listed: a miss costs little and may be wrong.
    pub(super) fn contains_quickly(&self, oid: &Oid) -> bool {
        let listing = self.listing();
        listing.packs.iter().any(|pack| matches!(pack.find(oid, &self.shared), Ok(Some(_))))
            || listing.loose.iter().any(|loose| loose.contains(oid))
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

    /// Returns what `visit` makes of the first place that has `oid` undamaged.
    ///
    /// Lists the directories again until that brings no news, as a gc may move an object while we look for it.
    fn search<T>(&self, oid: &Oid, visit: impl Fn(Place<'_>, &mut Reader) -> Result<Option<T>>) -> Result<Option<T>> {
        let mut reader = self.idle().pop().unwrap_or_else(Reader::new);
        let mut listing = self.listing();
        let mut n_listings = 0;
        let result = loop {
            let result = listing.search(oid, &self.shared, |place| visit(place, &mut reader));
            if matches!(result, Ok(Some(_))) || n_listings == MAX_LISTINGS {
                break result;
            }
            let newer = self.list_again(&listing);
            if *newer == *listing {
                break result;
            }
            (listing, n_listings) = (newer, n_listings + 1);
        };
        self.idle().push(reader);
        result.context(|| format!("cannot read object '{oid}'; fetch it from a peer, or see 'gdo check'"))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().expect("BUG: a thread panicked while it held the idle readers")
    }

    fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.read().expect("BUG: a thread panicked while it held the listing"))
    }

    /// Returns a listing that is newer than `seen`.
    fn list_again(&self, seen: &Arc<Listing>) -> Arc<Listing> {
        let _lister = self.lister.lock().expect("BUG: a thread panicked while it listed packs");
        let current = self.listing();
        if !Arc::ptr_eq(&current, seen) {
            return current;
        }
        let newer = Arc::new(Listing::read(&self.dir, &current));
        *self.listing.write().expect("BUG: a thread panicked while it held the listing") = Arc::clone(&newer);
        newer
    }
}

/// So many times in a row somebody may repack just while we look; then it is more likely that we are wrong.
const MAX_LISTINGS: usize = 8;

/// Where an object is, or may be.
enum Place<'a> {
    Packed(&'a Pack, u64),
    Loose(&'a Loose),
}

/// What was in the object directories at one moment.
#[derive(Default)]
struct Listing {
    packs: Vec<Listed>,
    loose: Vec<Loose>,
    /// What could not be used: reported when an object is not found, as it may be just there.
    problems: Vec<(Kind, String)>,
}

/// A pack with what tells its index from a later one of the same name.
struct Listed {
    path: PathBuf,
    identity: Identity,
    pack: Arc<Pack>,
}

/// Device, inode, length and time of change.
type Identity = (u64, u64, u64, i64, i64);

impl std::ops::Deref for Listed {
    type Target = Pack;

    fn deref(&self) -> &Pack {
        &self.pack
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pack, &other.pack)
    }
}

impl PartialEq for Listing {
    fn eq(&self, other: &Self) -> bool {
        self.packs == other.packs && self.loose == other.loose && self.problems == other.problems
    }
}

impl Listing {
    /// Lists the object directory `dir` and its alternates; a pack that `old` had already is not opened again.
    fn read(dir: &Path, old: &Self) -> Self {
        let mut listing = Self::default();
        let mut n_bytes = old.packs.iter().map(|listed| listed.size_in_memory()).sum();
        let dirs = listing.add_alternates(dir);
        for dir in &dirs {
            match Loose::open(dir) {
                Ok(loose) => listing.loose.push(loose),
                Err(error) => listing.note(error.wrap(format!("cannot list '{}'", dir.display()))),
            }
            // A gc may replace packs while we list them; then those that replace them are there already.
            let is_stable = (0..MAX_LISTINGS).any(|_| listing.add_packs(dir, old, &mut n_bytes));
            if !is_stable {
                listing.note(Error::new(Kind::Conflict, format!("the packs in '{}' change all the time", dir.display())));
            }
        }
        listing
    }

    /// Returns `dir` and the object directories that it and they name as alternates.
    fn add_alternates(&mut self, dir: &Path) -> Vec<PathBuf> {
        let mut dirs = vec![(dir.to_owned(), 0)];
        let mut seen: HashSet<_> = durable::real_path(dir).into_iter().collect();
        let mut at = 0;
        while at < dirs.len() {
            let (dir, depth) = dirs[at].clone();
            at += 1;
            let path = dir.join("info/alternates");
            let found = read_alternates(&path, &dir).context(|| format!("cannot use '{}'", path.display()));
            let named = found.unwrap_or_else(|error| {
                self.note(error);
                Vec::new()
            });
            for alternate in named {
                match durable::real_path(&alternate) {
                    Ok(real) if !seen.insert(real.clone()) => (),
                    Ok(real) if depth < MAX_ALTERNATE_DEPTH => dirs.push((real, depth + 1)),
                    Ok(_) => self.note(Error::new(Kind::Unsupported, format!("'{}' is nested too deep", path.display()))),
                    Err(error) => {
                        let what = format!("cannot use '{}', which '{}' names", alternate.display(), path.display());
                        self.note(error.wrap(what));
                    }
                }
            }
        }
        dirs.into_iter().map(|(dir, _)| dir).collect()
    }

    /// Adds the packs of the object directory `dir`; `false` if one of them vanished meanwhile.
    fn add_packs(&mut self, dir: &Path, old: &Self, n_bytes: &mut u64) -> bool {
        let dir = dir.join("pack");
        let paths = match list_packs(&dir) {
            Ok(paths) => paths,
            Err(error) if error.kind() == Kind::NotFound => return true,
            Err(error) => {
                self.note(error.wrap(format!("cannot list '{}'", dir.display())));
                return true;
            }
        };
        self.packs.retain(|listed| listed.path.parent() != Some(&dir));
        let mut is_stable = true;
        for path in paths {
            match add_pack(&path, old, MAX_INDEX_BYTES.saturating_sub(*n_bytes)) {
                Ok(listed) => {
                    let is_new = !old.packs.contains(&listed);
                    *n_bytes += if is_new { listed.size_in_memory() } else { 0 };
                    self.packs.push(listed);
                }
                Err(error) if error.kind() == Kind::NotFound => is_stable = false,
                Err(error) => self.note(error),
            }
        }
        is_stable
    }

    fn note(&mut self, error: Error) {
        let problem = (error.kind(), format!("{error:#}"));
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Returns what `visit` makes of the first place that has `oid` undamaged, or the first error.
    fn search<T>(&self, oid: &Oid, shared: &Shared, mut visit: impl FnMut(Place<'_>) -> Result<Option<T>>) -> Result<Option<T>> {
        let mut first_error = None;
        let packed = self.packs.iter().map(|listed| match listed.find(oid, shared) {
            Ok(Some(offset)) => Ok(Some(Place::Packed(listed, offset))),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        });
        for place in packed.chain(self.loose.iter().map(|loose| Ok(Some(Place::Loose(loose))))) {
            match place.and_then(|place| place.map_or(Ok(None), &mut visit)) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => (),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let problem = self.problems.first().map(|(kind, message)| Error::new(*kind, message.clone()));
        first_error.or(problem).map_or(Ok(None), Err)
    }
}

const MAX_ALTERNATE_DEPTH: usize = 5;

/// Indexes in memory; what is beyond is read when it is needed.
const MAX_INDEX_BYTES: u64 = 32 << 20;

fn add_pack(path: &Path, old: &Listing, budget: u64) -> Result<Listed> {
    let what = || format!("cannot open '{}'", path.display());
    let meta = durable::look(path).context(what)?;
    let identity = (meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec());
    let known = old.packs.iter().find(|listed| listed.path == path && listed.identity == identity);
    let pack = match known {
        Some(listed) => Arc::clone(&listed.pack),
        None => Arc::new(Pack::open(path, budget)?),
    };
    Ok(Listed { path: path.to_owned(), identity, pack })
}

/// Returns the indexes in `dir` beside which there is a pack, in a fixed order.
fn list_packs(dir: &Path) -> Result<Vec<PathBuf>> {
    let names: HashSet<PathBuf> = durable::list(dir)?.into_iter().map(|listed| listed.path).collect();
    let is_pack =
        |path: &&PathBuf| path.extension().is_some_and(|ext| ext == "idx") && names.contains(&path.with_extension("pack"));
    let mut paths: Vec<_> = names.iter().filter(is_pack).cloned().collect();
    paths.sort_unstable();
    Ok(paths)
}

/// Reads the object directories that the file at `path` names; relative ones are below `dir`.
fn read_alternates(path: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let length = match durable::look(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if length > MAX_ALTERNATES {
        return Err(Error::new(Kind::Refused, "it is too long"));
    }
    let text = durable::read(path)?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines
        .map(|line| match line {
            [b'"', ..] => Err(Error::new(Kind::Unsupported, "it has a quoted path; write it without quotes")),
            line => Ok(dir.join(std::ffi::OsStr::from_bytes(line))),
        })
        .collect()
}

const MAX_ALTERNATES: u64 = 1 << 20;

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
