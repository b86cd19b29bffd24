//! What a host looks like, in 32 bytes, and in what two of them differ. Format: `docs/formats/report.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::git::Oid;
use crate::git::name::{self, Stored};
use crate::metadata::{Metadata, encode_entry};
use crate::progress::Progress;
use crate::repo::attributes::{Attributes, Ownership, Policy};
use crate::repo::diff::{self, Side};
use crate::repo::scan::join;
use crate::repo::{Repo, status};

/// The digests of paths.
pub type Digests = BTreeMap<Vec<u8>, [u8; 32]>;

/// Paths that differ, ascending, each with its digest; `None` where it has none.
pub type Differing = Vec<(Vec<u8>, Option<[u8; 32]>)>;

/// Who is handed the items of a tree: path and digest.
type Take<'a> = &'a mut dyn FnMut(&[u8], [u8; 32]);

/// What a tree looks like on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The fingerprint.
    pub hash: [u8; 32],
    /// Files, symlinks and metadata that went into it.
    pub n_items: u64,
}

/// The work tree as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Here {
    /// As a tree; nothing refers to it.
    pub tree: Oid,
    /// Whether not everything could be looked at.
    pub is_partial: bool,
}

impl Here {
    /// Looks at the work tree; a file that did not change is not read.
    pub fn look(repo: &Repo, progress: &Progress) -> Result<Self> {
        let prepared = diff::prepare(repo, &Side::Index, &Side::WorkTree, progress)?;
        Ok(Self { tree: prepared.b, is_partial: prepared.is_partial })
    }
}

/// Returns the fingerprint of a tree.
pub fn fingerprint(repo: &Repo, tree: Oid) -> Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    let mut n_items = 0;
    items(repo, tree, &mut |_, digest| {
        hasher.update(&digest);
        n_items += 1;
    })?;
    Ok(Fingerprint { hash: *hasher.finalize().as_bytes(), n_items })
}

/// Returns the digests of those of `paths` that a tree has and that count.
pub fn digests(repo: &Repo, tree: Oid, paths: &BTreeSet<Vec<u8>>) -> Result<Digests> {
    let mut digests = Digests::new();
    items(repo, tree, &mut |path, digest| {
        if paths.contains(path) {
            let all = digests.entry(path.to_vec()).or_default();
            all.iter_mut().zip(digest).for_each(|(all, one)| *all ^= one);
        }
    })?;
    Ok(digests)
}

/// Returns the paths whose digest is another in `new` than in `old`, each with that; `None` where it has none.
pub fn differing(repo: &Repo, old: Oid, new: Oid) -> Result<Differing> {
    if old == new {
        return Ok(Vec::new());
    }
    let paths = status::compare_work_trees(repo, old, new)?.into_iter().map(|change| change.path).collect();
    let (was, is) = (digests(repo, old, &paths)?, digests(repo, new, &paths)?);
    let differs = |path: &Vec<u8>| was.get(path) != is.get(path);
    Ok(paths.into_iter().filter(differs).map(|path| (path.clone(), is.get(&path).copied())).collect())
}

/// Hands each item of a tree, as its path and digest, to `take`, in the order of a commit.
fn items(repo: &Repo, tree: Oid, take: Take<'_>) -> Result<()> {
    let index = repo.index_of(&tree)?;
    let attributes = repo.attributes(&index)?;
    for entry in index.iter() {
        match name::work_path(entry.path) {
            Stored::File(path) => content(&attributes, path, entry.mode, entry.oid, take),
            Stored::Alt(path) => content(&attributes, &path, entry.mode, entry.oid, take),
            Stored::Meta(dir) => metadata(repo, &attributes, &dir, &entry.oid, take)?,
            Stored::Other => (),
        }
    }
    Ok(())
}

fn content(attributes: &Attributes, path: &[u8], mode: u32, oid: Oid, take: Take<'_>) {
    if counts(&attributes.policy(path)) {
        take(path, digest(b'c', path, format!("{mode:o} {oid}").as_bytes()));
    }
}

fn metadata(repo: &Repo, attributes: &Attributes, dir: &[u8], oid: &Oid, take: Take<'_>) -> Result<()> {
    let recorded = repo.read_dir_metadata(oid, dir)?;
    let mut tell = |path: &[u8], metadata: &Metadata| {
        let mut line = Vec::new();
        encode_entry(b".", &Metadata { mtime: None, ..metadata.clone() }, &mut line);
        // A directory without anything to say is there all the same.
        if path == dir || !line.is_empty() {
            take(path, digest(b'm', path, &line));
        }
    };
    if counts(&attributes.policy_of_dir(dir)) {
        tell(dir, &recorded.dir);
    }
    for (entry_name, entry) in &recorded.entries {
        let path = join(dir, entry_name);
        if counts(&attributes.policy(&path)) {
            tell(&path, entry);
        }
    }
    Ok(())
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
