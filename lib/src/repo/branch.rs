//! Branches, each of them a machine type.

use super::Repo;
use crate::error::{Error, Kind, Result};
use crate::git::refs::check_ref_name;
use crate::git::{Identity, Oid};

const BRANCHES: &str = "refs/heads/";

/// Returns the full name of the ref of a branch; a name that none can have is refused.
pub fn full_name(name: &str) -> Result<String> {
    let full = format!("{BRANCHES}{name}");
    check_ref_name(&full)?;
    Ok(full)
}

/// Returns the branches, sorted by name, each with its commit.
pub fn list(repo: &Repo) -> Result<Vec<(String, Oid)>> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", BRANCHES])?;
    let read = |line: &str| {
        let (oid, name) = line.split_once(' ')?;
        Some((name.strip_prefix(BRANCHES)?.to_owned(), Oid::from_hex(oid.as_bytes()).ok()?))
    };
    Ok(String::from_utf8_lossy(&listed).lines().filter_map(read).collect())
}

/// Makes a branch at `commit`; durable on return.
pub fn create(repo: &Repo, name: &str, commit: Oid, by: Identity) -> Result<()> {
    let full = full_name(name)?;
    let lock = repo.lock()?;
    if repo.git.read_ref(&full)?.is_some() {
        return Err(Error::new(Kind::Conflict, format!("there is a branch '{name}' already")));
    }
    repo.git.clone().with_identity(by).update_ref(&full, commit, None, "branch")?;
    repo.note_refs(&lock)
}

/// Removes a branch, whose commits another ref must lead to unless `is_meant` says that they may be lost; durable on return.
pub fn remove(repo: &Repo, name: &str, is_meant: bool) -> Result<Oid> {
    let full = full_name(name)?;
    let lock = repo.lock()?;
    let Some(at) = repo.git.read_ref(&full)? else {
        return Err(Error::new(Kind::NotFound, format!("there is no branch '{name}'; 'gdo branch' lists them")));
    };
    if repo.git.head_ref()?.as_ref() == Some(&full) {
        return Err(Error::new(Kind::Conflict, format!("this host is of type '{name}'; 'gdo switch' takes another first")));
    }
    if !is_meant && !is_kept_elsewhere(repo, &full, at)? {
        let message = format!("no other branch, tag or remote leads to what '{name}' has; '--force' removes it all the same");
        return Err(Error::new(Kind::Conflict, message));
    }
    repo.git.delete_ref(&full, at)?;
    repo.note_refs(&lock)?;
    Ok(at)
}

/// Says whether another ref than `full` leads to `commit`.
pub fn is_kept_elsewhere(repo: &Repo, full: &str, commit: Oid) -> Result<bool> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(refname)", "--contains", &commit.to_string()])?;
    Ok(listed.split(|&b| b == b'\n').any(|line| !line.is_empty() && line != full.as_bytes()))
}
