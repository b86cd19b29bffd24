//! Making a repository: the same files in the same state everywhere, whatever templates the host has.

use std::path::Path;

use super::command::Git;
use super::{config, refs};
use crate::durable;
use crate::error::{Error, Kind, Result};

impl Git {
    /// Makes an empty repository at `git_dir` with `branch` as its first branch, readable by the owner only.
    ///
    /// Durable on return. A run that was cut short is simply repeated; an existing repository is refused.
    pub fn init(git_dir: &Path, branch: &str) -> Result<Self> {
        let head = format!("refs/heads/{branch}");
        refs::check_ref_name(&head)?;
        let git_dir = std::path::absolute(git_dir)?;
        if durable::is_there(&git_dir.join("HEAD")) {
            let message = format!("'{}' already is a repository", git_dir.display());
            return Err(Error::new(Kind::Refused, message));
        }
        durable::create_dir_all(&git_dir, 0o700)?;
        // It holds what only root may read, also where the directory was there before.
        durable::make_private(&git_dir)?;
        for dir in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "info"] {
            durable::create_dir_all(&git_dir.join(dir), 0o700)?;
        }
        durable::publish(&git_dir.join("config"), config::initial().as_bytes(), 0o600)?;
        durable::publish(&git_dir.join("info/attributes"), ATTRIBUTES, 0o600)?;
        durable::publish(&git_dir.join("info/sparse-checkout"), SPARSE_CHECKOUT, 0o600)?;
        // HEAD comes last: it is what makes the directory a repository.
        durable::publish(&git_dir.join("HEAD"), format!("ref: {head}\n").as_bytes(), 0o600)?;
        Ok(Self::at(&git_dir))
    }
}

/// No content is ever converted, whatever a tree says, and metadata is merged by our driver.
const ATTRIBUTES: &[u8] = b"* -text -eol -ident -working-tree-encoding\n/.git-devops/meta/** merge=devops-meta\n";

/// Hides our own directory from every work tree.
const SPARSE_CHECKOUT: &[u8] = b"/*\n!/.git-devops/\n";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_repository_is_an_ordinary_one_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/repo");
        let git = Git::init(&path, "web").unwrap();
        assert_eq!(git.run(&["symbolic-ref", "HEAD"]).unwrap(), b"refs/heads/web\n");
        assert_eq!(git.run(&["fsck", "--strict"]).unwrap(), b"");
        assert_eq!(git.run(&["rev-parse", "--is-bare-repository"]).unwrap(), b"true\n");
        for name in ["", "objects", "objects/pack", "refs/heads", "info"] {
            assert_eq!(path.join(name).metadata().unwrap().permissions().mode() & 0o7777, 0o700, "{name}");
        }
        Git::open(&path).unwrap();
        assert_eq!(Git::init(&path, "web").unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn a_cut_short_init_is_repeated_and_a_bad_branch_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Git::init(dir.path(), "../x").unwrap_err().kind(), Kind::Refused);
        std::fs::create_dir_all(dir.path().join("objects/pack")).unwrap();
        std::fs::write(dir.path().join("config"), "half").unwrap();
        Git::init(dir.path(), "main").unwrap();
        Git::open(dir.path()).unwrap();
    }
}
