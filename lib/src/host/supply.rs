//! Everything that a replay needs, before it begins: from then on it needs no other host.

use super::plan::files;
use crate::error::{Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::file::read::{for_each_chunk, for_each_list};
use crate::git::name::{Stored, work_path};
use crate::git::{Oid, empty_tree};
use crate::repo::scan::shown;
use crate::repo::{Policy, Repo, status};
use crate::store::MAX_CHUNK;

/// What a commit needs of the chunk store.
pub struct Need {
    /// Its tree.
    pub tree: Oid,
    /// Files of the work tree that it brings and that are cut into chunks.
    pub paths: Vec<Vec<u8>>,
    /// The chunk indexes of these, and of the inputs of its entries.
    indexes: Vec<(Vec<u8>, Oid)>,
}

/// Returns what the commits of `line`, which follow `last`, need; those that need nothing are left out.
pub fn needs(repo: &Repo, last: Option<Oid>, line: &[Oid]) -> Result<Vec<Need>> {
    let tree = |commit: &Oid| repo.objects.commit(commit).map(|data| data.tree);
    let mut before = last.as_ref().map(tree).transpose()?.unwrap_or_else(empty_tree);
    let mut needs = Vec::new();
    for commit in line {
        let after = tree(commit)?;
        let (mut paths, mut indexes) = (Vec::new(), Vec::new());
        for (stored, oid) in status::new_blobs(repo, before, after)? {
            let path = match work_path(&stored) {
                Stored::File(path) => Some(path.to_vec()),
                Stored::Alt(path) => Some(path),
                Stored::Other => None,
                Stored::Meta(_) => continue,
            };
            if ChunkIndex::is_index(&repo.objects.blob(&oid)?) {
                indexes.push((path.clone().unwrap_or(stored), oid));
                paths.extend(path);
            }
        }
        if !indexes.is_empty() {
            needs.push(Need { tree: after, paths, indexes });
        }
        before = after;
    }
    Ok(needs)
}

/// Brings here what inputs of entries need, and fails unless all of `needs` is here; a host that keeps nothing gets content when it is written.
pub fn check(repo: &Repo, needs: &[Need]) -> Result<()> {
    if repo.settings.policy != Policy::Holder && repo.chunks.has_hosts() {
        return Ok(());
    }
    let mut missing: Vec<&[u8]> = Vec::new();
    for Need { indexes, .. } in needs {
        for (path, oid) in indexes {
            let index = ChunkIndex::decode(&repo.objects.blob(oid)?)?;
            let take = |id| -> Result<()> {
                match repo.store.contains(&id)? || repo.chunks.has_hosts() && repo.chunks.read(&id, MAX_CHUNK).is_ok() {
                    true => Ok(()),
                    false => Err(Error::new(Kind::NotFound, "a chunk is not here")),
                }
            };
            let all = for_each_list(&repo.chunks, &index, &mut { take })
                .and_then(|()| for_each_chunk(&repo.chunks, &index, &mut { take }));
            match all {
                Err(error) if error.kind() == Kind::NotFound => missing.push(path),
                other => other?,
            }
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!(
                "{} of the commits to apply lack content here, '{}' for one, and nothing was begun; 'gdo remote add' names a host that has it, 'gdo whereis PATH' says who may",
                files(missing.len()),
                shown(first)
            );
            Err(Error::new(Kind::NotFound, message))
        }
    }
}
