//! Who has the chunks of a file, by what holders tell: also of those that cannot be reached now.

use std::collections::BTreeMap;

use super::Repo;
use super::holders::{self, Known};
use super::pathset::PathSet;
use super::tree::StoredDir;
use crate::error::{Kind, Result};
use crate::file::read;
use crate::git::Oid;
use crate::id::ChunkId;
use crate::placement::HolderId;
use crate::placement::ledger::Ledger;
use crate::placement::record::prefix;

/// A holder, and what it has of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Who.
    pub id: HolderId,
    /// What it calls itself.
    pub name: String,
    /// Until when it promises, in seconds since 1970.
    pub until: u64,
    /// Whether that is not over.
    pub is_promised: bool,
    /// How many of the chunks it has.
    pub n_chunks: u64,
}

/// Who has one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// The file.
    pub path: Vec<u8>,
    /// How many chunks it has, lists included, each counted once.
    pub n_chunks: u64,
    /// How many of them are here.
    pub n_here: u64,
    /// Lists that are not here, so that what they list is not counted.
    pub n_unknown: u64,
    /// The other holders that have some.
    pub holders: Vec<Part>,
    /// The fewest promised copies that any chunk has, this host's own included.
    pub fewest: u64,
    /// Chunks with fewer promised copies than there are to be.
    pub n_under: u64,
}

/// Tells who has the large files of `tree` at and below `paths` (all, if there are none), at the time `now`.
pub fn whereis(repo: &Repo, tree: Oid, paths: &[Vec<u8>], now: u64) -> Result<Vec<Whereabouts>> {
    let files = files(repo, tree, paths)?;
    let ledger = Ledger::read(repo.store.dir())?;
    let mut known = holders::known(repo)?;
    if let Some(ledger) = &ledger {
        known.remove(&ledger.holder);
    }
    let mut all: Vec<ChunkId> = files.iter().flat_map(|file| file.chunks.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let prefixes: Vec<u64> = all.iter().map(prefix).collect();
    let held: Vec<(HolderId, &Known, Vec<bool>)> =
        known.iter().map(|(id, known)| Ok((*id, known, known.holds(&repo.objects, &prefixes)?))).collect::<Result<_>>()?;
    let mut copies: Vec<u64> = vec![0; all.len()];
    for (_, _, is_held) in held.iter().filter(|(_, known, _)| known.record.until >= now) {
        copies.iter_mut().zip(is_held).for_each(|(n, is_held)| *n += u64::from(*is_held));
    }
    let is_here: Vec<bool> = all.iter().map(|id| repo.store.contains(id)).collect::<Result<_>>()?;
    for (at, id) in all.iter().enumerate() {
        copies[at] += u64::from(is_here[at] && ledger.as_ref().is_some_and(|ledger| ledger.promise_of(id) >= now));
    }
    let terms = holders::terms(repo)?;
    let place = |id: &ChunkId| all.binary_search(id).expect("BUG: all chunks are listed");
    let tell = |file: File| {
        let places: Vec<usize> = file.chunks.iter().map(place).collect();
        let count = |is: &dyn Fn(usize) -> bool| places.iter().filter(|at| is(**at)).count() as u64;
        let parts = held.iter().map(|(id, known, is_held)| Part {
            id: *id,
            name: known.record.name.clone(),
            until: known.record.until,
            is_promised: known.record.until >= now,
            n_chunks: count(&|at| is_held[at]),
        });
        Whereabouts {
            n_chunks: places.len() as u64,
            n_here: count(&|at| is_here[at]),
            n_unknown: file.n_unknown,
            holders: parts.filter(|part| part.n_chunks > 0).collect(),
            fewest: places.iter().map(|at| copies[*at]).min().unwrap_or(0),
            n_under: count(&|at| copies[at] < terms.copies as u64),
            path: file.path,
        }
    };
    Ok(files.into_iter().map(tell).collect())
}

/// A holder, as it told of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who.
    pub id: HolderId,
    /// What it calls itself.
    pub name: String,
    /// Whether it is this host.
    pub is_own: bool,
    /// How much it can take, in GiB.
    pub capacity: u64,
    /// How many chunks it has.
    pub n_chunks: u64,
    /// When it told, by its clock, in seconds since 1970.
    pub issued: u64,
    /// Until when it promises.
    pub until: u64,
    /// Whether that is not over.
    pub is_promised: bool,
}

/// Tells which holders there are, as they told last, at the time `now`.
pub fn holders(repo: &Repo, now: u64) -> Result<Vec<Told>> {
    let own = Ledger::read(repo.store.dir())?.map(|ledger| ledger.holder);
    let told = |(id, known): (HolderId, Known)| {
        let record = known.record;
        let count = |is_held: bool| -> u64 {
            record.lists.iter().filter(|line| line.is_held == is_held).map(|line| line.n_chunks as u64).sum()
        };
        Told {
            id,
            is_own: own == Some(id),
            n_chunks: count(true).saturating_sub(count(false)),
            name: record.name.clone(),
            capacity: record.capacity,
            issued: record.issued,
            until: record.until,
            is_promised: record.until >= now,
        }
    };
    Ok(holders::known(repo)?.into_iter().map(told).collect())
}

/// A large file, with its chunks and lists, each once.
struct File {
    path: Vec<u8>,
    chunks: Vec<ChunkId>,
    n_unknown: u64,
}

fn files(repo: &Repo, tree: Oid, paths: &[Vec<u8>]) -> Result<Vec<File>> {
    let selected = match paths {
        [] => PathSet::new(&[Vec::new()]),
        paths => PathSet::new(paths),
    };
    let mut files = BTreeMap::new();
    let mut todo = vec![StoredDir::root(repo, tree)?];
    while let Some(node) = todo.pop() {
        let listing = node.list(repo)?;
        for (name, item) in &listing.files {
            let path = super::scan::join(&node.path, name);
            let Some(blob) = item.content.filter(|_| selected.covers(&path)) else { continue };
            let Some(index) = repo.chunk_index(&blob)? else { continue };
            let (mut chunks, mut n_unknown) = (Vec::new(), 0);
            let walked = read::for_each_id(&repo.chunks, &index, &mut |id| {
                chunks.push(id);
                Ok(())
            });
            match walked {
                Err(error) if error.kind() == Kind::NotFound => n_unknown += 1,
                other => other?,
            }
            chunks.sort_unstable();
            chunks.dedup();
            files.insert(path.clone(), File { path, chunks, n_unknown });
        }
        todo.extend(listing.dirs.into_values().filter(|dir| selected.covers(&dir.path) || selected.leads_to(&dir.path)));
    }
    Ok(files.into_values().collect())
}
