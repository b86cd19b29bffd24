//! Work in progress: commits that were made and applied on this host, and are not on its branch yet. Design: `docs/replay.md`.

use super::stage::Line;
use super::{Repo, next};
use crate::durable::Lock;
use crate::error::{Error, Kind, Result};
use crate::git::Oid;

/// The ref that leads to the last of them.
pub const WIP: &str = "refs/devops/wip";

/// Returns the last commit of the work in progress, if there is any.
pub fn tip(repo: &Repo) -> Result<Option<Oid>> {
    repo.git.read_ref(WIP)
}

/// Fails if there is work in progress.
pub fn must_not_be(repo: &Repo) -> Result<()> {
    match tip(repo)? {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Conflict, "there is work in progress; end it with 'gdo ci' or 'gdo abort' first")),
    }
}

/// Returns where the next commit of the work in progress goes.
pub fn line(repo: &Repo) -> Result<Line> {
    next::must_not_be(repo)?;
    let at = tip(repo)?;
    let tip = at.map_or_else(|| repo.head(), |at| Ok(Some(at)))?;
    Ok(Line { name: WIP.to_owned(), at, tip })
}

/// Moves HEAD's branch to the end of the work in progress, which there is none of then; durable on return.
pub fn publish(repo: &Repo, lock: &Lock) -> Result<Oid> {
    let nothing = || Error::new(Kind::NotFound, "nothing to check in; 'gdo snap', 'gdo exec' and 'gdo reboot' begin something");
    let tip = tip(repo)?.ok_or_else(nothing)?;
    let branch = repo.git.head_ref()?.ok_or_else(|| Error::new(Kind::Conflict, "HEAD is on no branch; 'gdo fork' makes one"))?;
    let head = repo.head()?;
    let mut next = Some(tip);
    while let Some(oid) = next.filter(|oid| Some(*oid) != head) {
        next = repo.objects.commit(&oid)?.parents.first().copied();
    }
    if next != head {
        return Err(Error::new(Kind::Conflict, "the branch went on meanwhile; 'gdo abort', 'gdo up', and do it again"));
    }
    // A kill in between leaves a work in progress that has nothing more than the branch, and is removed by the next call.
    repo.git.update_ref(&branch, tip, head, "ci")?;
    repo.git.delete_ref(WIP, tip)?;
    repo.note_refs(lock)?;
    Ok(tip)
}
