//! `merge=3way`: a file that was changed here and in the commit gets both changes, if git can tell how.

use std::io::Read;

use crate::durable::{self, Scratch};
use crate::error::{Error, Kind, Result};
use crate::file::index::ChunkIndex;
use crate::git::{Oid, name};
use crate::repo::Repo;
use crate::repo::scan::split;
use crate::safepath::Dir;

/// What becomes of a file that differs.
pub(super) enum Merged {
    /// What the commit says: nobody changed it here.
    Theirs,
    /// What is there, which is this: the commit did not change it.
    Ours(Vec<u8>),
    /// This text.
    Both(Vec<u8>),
    /// A person decides.
    Conflict,
}

/// Merges the file at `path` with what the tree `new` has, where `old` has the version that was laid down last.
pub(super) fn merged(repo: &Repo, path: &[u8], old: Oid, new: Oid) -> Result<Merged> {
    let stored = name::stored_path(path);
    let blob =
        |tree: &Oid| -> Result<Option<Vec<u8>>> { repo.blob_in(tree, &stored)?.map(|oid| repo.objects.blob(&oid)).transpose() };
    let (base, theirs, ours) = (blob(&old)?, blob(&new)?.unwrap_or_default(), local(repo, path)?);
    let Some(ours) = ours else { return Ok(Merged::Theirs) };
    let Some(base) = base else { return Ok(Merged::Conflict) };
    if base == ours {
        return Ok(Merged::Theirs);
    }
    if base == theirs {
        return Ok(Merged::Ours(ours));
    }
    if [&base, &theirs].iter().any(|text| ChunkIndex::is_index(text)) {
        return Ok(Merged::Conflict);
    }
    let scratch = Scratch::make(&repo.places.state, "incoming-")?;
    let mut args = vec!["merge-file".into(), "-p".into(), "-q".into()];
    for (name, text) in [("ours", &ours), ("base", &base), ("theirs", &theirs)] {
        let file = scratch.path().join(name);
        durable::publish(&file, text, 0o600)?;
        args.push(file.into_os_string());
    }
    let output = repo.git.output(&args, b"")?;
    match output.status.code() {
        Some(0) => Ok(Merged::Both(output.stdout)),
        Some(1..=127) => Ok(Merged::Conflict),
        // git says so of content that is no text.
        Some(255) => Ok(Merged::Conflict),
        _ => Err(Error::new(Kind::Io, "git merge-file failed")),
    }
}

/// Reads what is there; `None` if that is not a regular file, or a large one.
fn local(repo: &Repo, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let root = Dir::open(&repo.places.work_tree)?;
    let (parent, name) = split(path);
    let Ok(file) = root.open_path(parent).and_then(|dir| dir.open_file(name)) else { return Ok(None) };
    let mut text = Vec::new();
    file.take(repo.settings.threshold).read_to_end(&mut text)?;
    Ok((text.len() as u64 != repo.settings.threshold).then_some(text))
}
