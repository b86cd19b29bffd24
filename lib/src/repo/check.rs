//! Verifies what is stored: git's objects, the chunk packs, and that every large file has all of its chunks.

use std::collections::HashSet;

use super::Repo;
use crate::error::{Kind, Result};
use crate::file::index::ChunkIndex;
use crate::file::read;
use crate::git::Oid;
use crate::progress::Progress;

/// Something that is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file or object concerned.
    pub what: String,
    /// Where in it, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Verifies the repository and its store; with `read_data` every stored byte is read and its hash computed.
///
/// An error means that the check itself could not be done; what it found is in the list.
pub fn check(repo: &Repo, read_data: bool, progress: &Progress) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    progress.stage("checking git objects", 0, 0);
    fsck(repo, &mut findings)?;
    progress.stage("checking the chunk store", 0, 0);
    for found in repo.store.check(read_data, progress)? {
        findings.push(Finding {
            what: found.file.display().to_string(),
            offset: found.offset,
            problem: match found.chunk {
                Some(chunk) => format!("{} (chunk {chunk})", found.problem),
                None => found.problem,
            },
            remedy: found.remedy.into(),
        });
    }
    progress.stage("checking large files", 0, 0);
    check_files(repo, &mut findings, progress)?;
    Ok(findings)
}

fn fsck(repo: &Repo, findings: &mut Vec<Finding>) -> Result<()> {
    let output = repo.git.output(&["fsck", "--strict", "--no-dangling", "--no-progress"], b"")?;
    let said = [output.stdout, output.stderr].concat();
    for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.starts_with("notice:")) {
        findings.push(Finding {
            what: repo.places.git_dir.display().to_string(),
            offset: None,
            problem: format!("git fsck: {line}"),
            remedy: "fetch the object from another copy, or snapshot again: what the work tree still has is stored anew".into(),
        });
    }
    Ok(())
}

/// Verifies that all chunks of all large files in all commits are there.
fn check_files(repo: &Repo, findings: &mut Vec<Finding>, progress: &Progress) -> Result<()> {
    let mut missing = HashSet::new();
    for_each_index(repo, &mut |oid, decoded| {
        progress.add(1, 0);
        let index = match decoded {
            Ok(index) => index,
            Err(error) => {
                findings.push(Finding {
                    what: format!("git object {oid}"),
                    offset: None,
                    problem: format!("{error:#}"),
                    remedy: "restore an earlier version of the file, or snapshot it again".into(),
                });
                return Ok(());
            }
        };
        let walked = read::for_each_id(&repo.store, &index, &mut |id| {
            if !repo.store.contains(&id)? && missing.insert(id) {
                findings.push(Finding {
                    what: format!("git object {oid}"),
                    offset: None,
                    problem: format!("chunk {id} of this chunk index is not in the store"),
                    remedy: "get the chunk from another copy, or snapshot the file again if the work tree still has it".into(),
                });
            }
            Ok(())
        });
        match walked {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => findings.push(Finding {
                what: format!("git object {oid}"),
                offset: None,
                problem: format!("{error:#}"),
                remedy: "get the chunk from another copy, or snapshot the file again if the work tree still has it".into(),
            }),
            other => other?,
        }
        Ok(())
    })
}

/// Hands every chunk index that the repository has to `take`: those of all commits, also of what nothing refers to (any more, or yet).
pub(super) fn for_each_index(repo: &Repo, take: &mut dyn FnMut(Oid, Result<ChunkIndex>) -> Result<()>) -> Result<()> {
    for oid in repo.git.all_blobs()? {
        let blob = repo.objects.blob(&oid)?;
        if ChunkIndex::is_index(&blob) {
            take(oid, ChunkIndex::decode(&blob))?;
        }
    }
    Ok(())
}
