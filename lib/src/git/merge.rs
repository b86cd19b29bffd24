//! Merges trees, with the git program; writes objects, no ref and no work tree.

use super::command::Git;
use super::object::{CommitData, Signature};
use super::{Identity, Oid};
use crate::error::{Error, Kind, Result};

/// What came of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedTree {
    /// The merged tree; a text in conflict has git's markers in it, named after the two commits.
    pub tree: Oid,
    /// What git could not decide, by path.
    pub conflicts: Vec<Conflict>,
}

/// A path that git could not decide about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflict {
    /// Its path in a commit.
    pub path: Vec<u8>,
    /// Mode and blob on our side; `None` if it is not there.
    pub ours: Option<(u32, Oid)>,
    /// The same on the other side.
    pub theirs: Option<(u32, Oid)>,
}

impl Git {
    /// Merges the commit `theirs` into the commit `ours`.
    ///
    /// Renames are not followed: the metadata of a file stands in that of its directory, and would not come along.
    pub fn merge_commits(&self, ours: Oid, theirs: Oid) -> Result<MergedTree> {
        let (ours, theirs) = (ours.to_string(), theirs.to_string());
        let args = ["-c", "merge.renames=false", "merge-tree", "--write-tree", "-z", "--no-messages", &ours, &theirs];
        let output = self.output(&args, b"")?;
        match output.status.code() {
            Some(0 | 1) => decode(&output.stdout).ok_or_else(|| Error::new(Kind::Bug, "BUG: git merge-tree is not understood")),
            _ => {
                let words = String::from_utf8_lossy(&output.stderr);
                let words = words.trim().trim_start_matches("fatal: ").escape_debug().to_string();
                Err(Error::new(Kind::Conflict, format!("cannot merge {theirs}: {words}")))
            }
        }
    }

    /// Merges what the tree `theirs` has changed since `base` into the tree `ours`.
    pub fn merge_trees(&self, base: Oid, ours: Oid, theirs: Oid) -> Result<MergedTree> {
        // An older git finds the base by the history alone, so there is one for the occasion.
        let base = self.passing_commit(base, &[])?;
        self.merge_commits(self.passing_commit(ours, &[base])?, self.passing_commit(theirs, &[base])?)
    }

    /// Writes a commit that nothing will refer to.
    fn passing_commit(&self, tree: Oid, parents: &[Oid]) -> Result<Oid> {
        let nobody = Signature::new(&Identity { name: "git-devops".into(), email: "nobody@localhost".into() }, 0, 0);
        let data =
            CommitData { tree, parents: parents.to_vec(), author: nobody.clone(), committer: nobody, message: b"merge\n".into() };
        let oid = self.run_with_input(&["hash-object", "-t", "commit", "-w", "--stdin"], &data.encode()?)?;
        Oid::from_hex(oid.trim_ascii())
            .map_err(|_| Error::new(Kind::Bug, "BUG: git hash-object did not print the name of an object"))
    }
}

/// Decodes `<tree> NUL (<mode> <blob> <stage> TAB <path> NUL)*`.
fn decode(output: &[u8]) -> Option<MergedTree> {
    let mut fields = output.split(|&b| b == 0).filter(|field| !field.is_empty());
    let tree = Oid::from_hex(fields.next()?).ok()?;
    let mut conflicts: Vec<Conflict> = Vec::new();
    for field in fields {
        let tab = field.iter().position(|&b| b == b'\t')?;
        let words: Vec<&str> = std::str::from_utf8(&field[..tab]).ok()?.split(' ').collect();
        let &[mode, blob, stage] = words.as_slice() else { return None };
        let side = Some((u32::from_str_radix(mode, 8).ok()?, Oid::from_hex(blob.as_bytes()).ok()?));
        let path = field[tab + 1..].to_vec();
        if conflicts.last().is_none_or(|last| last.path != path) {
            conflicts.push(Conflict { path, ..Conflict::default() });
        }
        let conflict = conflicts.last_mut()?;
        match stage {
            "1" => (),
            "2" => conflict.ours = side,
            "3" => conflict.theirs = side,
            _ => return None,
        }
    }
    Some(MergedTree { tree, conflicts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_prints_is_read_strictly() {
        let oid = "0123456789012345678901234567890123456789";
        let text = format!("{oid}\0100644 {oid} 1\ta b\0100644 {oid} 2\ta b\0100755 {oid} 3\tc\0");
        let merged = decode(text.as_bytes()).unwrap();
        let side = |mode| Some((mode, Oid::from_hex(oid.as_bytes()).unwrap()));
        let conflicts = [
            Conflict { path: b"a b".to_vec(), ours: side(0o100_644), theirs: None },
            Conflict { path: b"c".to_vec(), ours: None, theirs: side(0o100_755) },
        ];
        assert_eq!(merged.conflicts, conflicts);
        for wrong in
            ["", "x", &format!("{oid}\0100644 {oid} 4\ta\0"), &format!("{oid}\0100644 {oid}\ta\0"), &format!("{oid}\0a\0")]
        {
            assert_eq!(decode(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
