//! What a host looks like, in 32 bytes, and in what two of them differ. Format: `docs/formats/report.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::git::name::{self, Stored};
use crate::git::{Index, NewIndex, Oid};
use crate::metadata::{DirMetadata, Metadata, encode_entry};
use crate::progress::Progress;
use crate::repo::Repo;
use crate::repo::attributes::{Attributes, Ownership, Policy};
use crate::repo::exclude::{ExcludeOptions, Excludes};
use crate::repo::scan::{ScanOptions, Scope, Sink, join, scan};

/// The digests of paths.
pub type Digests = BTreeMap<Vec<u8>, [u8; 32]>;

/// Paths that differ, ascending, each with its digest; `None` where it has none.
pub type Differing = Vec<(Vec<u8>, Option<[u8; 32]>)>;

/// Who is handed the items of a look: path and digest.
type Take<'a> = &'a mut dyn FnMut(&[u8], [u8; 32]);

/// What a commit, or a host as it is now, looks like.
pub struct Look<'a> {
    repo: &'a Repo,
    index: Index,
    attributes: Attributes,
    /// Metadata that is not stored.
    fresh: HashMap<Oid, DirMetadata>,
    /// Whether not everything could be looked at.
    pub is_partial: bool,
}

impl<'a> Look<'a> {
    /// Looks at a tree.
    pub fn of_tree(repo: &'a Repo, tree: Oid) -> Result<Self> {
        let index = repo.index_of(&tree)?;
        Ok(Self { repo, attributes: repo.attributes(&index)?, index, fresh: HashMap::new(), is_partial: false })
    }

    /// Looks at what this host owns, as it is now. A file that did not change is not read, and nothing is written.
    pub fn here(repo: &'a Repo, progress: &Progress) -> Result<Self> {
        repo.with_index(|index| Self::of_index(repo, index, progress))
    }

    fn of_index(repo: &'a Repo, index: &Index, progress: &Progress) -> Result<Self> {
        let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
        let options = ScanOptions { scope: Scope::Owned, excludes, one_file_system: false, by_reference: false };
        let texts = Mutex::new(HashMap::new());
        let mut found = scan(repo, index, &options, Sink::Look { metadata: &texts }, progress)?;
        // What is beside it is nobody's business.
        found.updates.retain(|update| index.lookup(update.path).is_some());
        let texts: HashMap<Oid, Vec<u8>> = texts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::new();
        for update in found.updates.iter() {
            let (Stored::Meta(dir), Some(text)) = (name::work_path(update.path), texts.get(&update.oid)) else { continue };
            let known = index.lookup(update.path).map(|at| repo.read_dir_metadata(&index.entry(at).oid, &dir)).transpose()?;
            let mut recorded = DirMetadata::decode(text)?;
            recorded.entries.retain(|entry_name, _| {
                let is_file = index.lookup(&name::stored_path(&join(&dir, entry_name))).is_some();
                is_file || known.as_ref().is_some_and(|known| known.entries.contains_key(entry_name))
            });
            fresh.insert(update.oid, recorded);
        }
        let index = NewIndex::new(index, found.updates, &found.gone)?.build()?;
        Ok(Self { repo, attributes: repo.attributes(&index)?, index, fresh, is_partial: found.is_partial })
    }

    /// Returns the fingerprint, and how many items went into it.
    pub fn fingerprint(&self) -> Result<([u8; 32], u64)> {
        let mut hasher = blake3::Hasher::new();
        let mut n_items = 0;
        self.items(&mut |_, digest| {
            hasher.update(&digest);
            n_items += 1;
        })?;
        Ok((*hasher.finalize().as_bytes(), n_items))
    }

    /// Returns the digests of those of `paths` that are there and count.
    pub fn digests(&self, paths: &BTreeSet<Vec<u8>>) -> Result<Digests> {
        let mut digests = Digests::new();
        self.items(&mut |path, digest| {
            if paths.contains(path) {
                let all = digests.entry(path.to_vec()).or_default();
                all.iter_mut().zip(digest).for_each(|(all, one)| *all ^= one);
            }
        })?;
        Ok(digests)
    }

    /// Returns the paths whose digest is another in `new`, each with that.
    pub fn differing(&self, new: &Look<'_>) -> Result<Differing> {
        let mut paths = BTreeSet::new();
        self.changed(new, &mut paths)?;
        new.changed(self, &mut paths)?;
        let (was, is) = (self.digests(&paths)?, new.digests(&paths)?);
        let differs = |path: &Vec<u8>| was.get(path) != is.get(path);
        Ok(paths.into_iter().filter(differs).map(|path| (path.clone(), is.get(&path).copied())).collect())
    }

    /// Adds the paths of which `other` has something else stored, or nothing.
    fn changed(&self, other: &Look<'_>, paths: &mut BTreeSet<Vec<u8>>) -> Result<()> {
        for entry in self.index.iter() {
            let there = other.index.lookup(entry.path).map(|at| other.index.entry(at));
            if there.is_some_and(|there| (there.oid, there.mode) == (entry.oid, entry.mode)) {
                continue;
            }
            match name::work_path(entry.path) {
                Stored::File(path) => drop(paths.insert(path.to_vec())),
                Stored::Alt(path) => drop(paths.insert(path)),
                Stored::Meta(dir) => {
                    paths.extend(self.metadata(&entry.oid, &dir)?.entries.keys().map(|entry_name| join(&dir, entry_name)));
                    paths.insert(dir);
                }
                Stored::Other => (),
            }
        }
        Ok(())
    }

    /// Hands each item to `take`, in the order of a commit.
    fn items(&self, take: Take<'_>) -> Result<()> {
        for entry in self.index.iter() {
            match name::work_path(entry.path) {
                Stored::File(path) => self.content(path, entry.mode, entry.oid, take),
                Stored::Alt(path) => self.content(&path, entry.mode, entry.oid, take),
                Stored::Meta(dir) => self.directory(&dir, &self.metadata(&entry.oid, &dir)?, take),
                Stored::Other => (),
            }
        }
        Ok(())
    }

    fn metadata(&self, oid: &Oid, dir: &[u8]) -> Result<DirMetadata> {
        self.fresh.get(oid).map_or_else(|| self.repo.read_dir_metadata(oid, dir), |fresh| Ok(fresh.clone()))
    }

    fn content(&self, path: &[u8], mode: u32, oid: Oid, take: Take<'_>) {
        if counts(&self.attributes.policy(path)) {
            take(path, digest(b'c', path, format!("{mode:o} {oid}").as_bytes()));
        }
    }

    fn directory(&self, dir: &[u8], recorded: &DirMetadata, take: Take<'_>) {
        let mut tell = |path: &[u8], metadata: &Metadata| {
            let mut line = Vec::new();
            encode_entry(b".", &Metadata { mtime: None, ..metadata.clone() }, &mut line);
            // A directory without anything to say is there all the same.
            if path == dir || !line.is_empty() {
                take(path, digest(b'm', path, &line));
            }
        };
        if counts(&self.attributes.policy_of_dir(dir)) {
            tell(dir, &recorded.dir);
        }
        for (entry_name, entry) in &recorded.entries {
            let path = join(dir, entry_name);
            if counts(&self.attributes.policy(&path)) {
                tell(&path, entry);
            }
        }
    }
}

/// Says whether the type decides what is at a path.
fn counts(policy: &Policy) -> bool {
    policy.ownership == Ownership::Own && !policy.is_volatile && !policy.is_derived
}

fn digest(kind: u8, path: &[u8], value: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]).update(&(path.len() as u64).to_le_bytes()).update(path).update(value);
    *hasher.finalize().as_bytes()
}
