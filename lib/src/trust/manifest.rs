//! The SHA-256 over all files of a tree, so that a release does not rest on SHA-1. Format: `docs/formats/release.md`.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::object::GITLINK;
use crate::git::{Objects, Oid};

/// Names the files of a tree: paths, modes and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest([u8; 32]);

const HEAD: &[u8] = b"git-devops manifest 1\n";
/// Longest content of one file, in bytes: it is read whole.
const MAX_CONTENT: u64 = 128 << 20;
/// Directories may be nested so deep.
const MAX_DEPTH: usize = 2000;

impl Manifest {
    /// Returns the manifest of the tree `tree`. Memory: the longest blob, and the entries of the directories on the way to it.
    pub fn of_tree(objects: &Objects, tree: Oid) -> Result<Self> {
        let mut hasher = Sha256::new_with_prefix(HEAD);
        // Each with its path, the next one last.
        let mut open = vec![(Vec::new(), reversed(objects, &tree)?)];
        while let Some((path, entries)) = open.last_mut() {
            let Some(entry) = entries.pop() else {
                open.pop();
                continue;
            };
            let path = [&path[..], &entry.name].concat();
            let what = || format!("cannot make the manifest of '{}'", path.escape_ascii());
            if entry.is_dir() {
                let entries = reversed(objects, &entry.oid).context(what)?;
                if open.len() > MAX_DEPTH {
                    return Err(Error::refused(Reason::TreeDepth, "directories are nested too deep")).context(what);
                }
                open.push(([&path[..], b"/"].concat(), entries));
                continue;
            }
            if entry.mode == GITLINK {
                return Err(Error::refused(Reason::Mode, "a submodule has no content here")).context(what);
            }
            let content = content(objects, &entry.oid).context(what)?;
            hasher.update(format!("{:o} {} {} ", entry.mode, Self(Sha256::digest(&content).into()), path.len()));
            hasher.update(&path);
            hasher.update(b"\n");
        }
        Ok(Self(hasher.finalize().into()))
    }
}

fn reversed(objects: &Objects, tree: &Oid) -> Result<Vec<crate::git::TreeEntry>> {
    let mut entries = objects.tree(tree)?;
    entries.reverse();
    Ok(entries)
}

fn content(objects: &Objects, oid: &Oid) -> Result<Vec<u8>> {
    match objects.blob_size(oid)? {
        Some(size) if size > MAX_CONTENT => {
            Err(Error::new(Kind::Refused, format!("it has {size} bytes, which no small file and no chunk index has")))
        }
        _ => objects.blob(oid),
    }
}

impl FromStr for Manifest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hash = blake3::Hash::from_hex(text).ok().filter(|hash| hash.to_hex().as_str() == text);
        let wrong = || Error::new(Kind::Usage, format!("'{}' is no SHA-256", text.escape_debug()));
        Ok(Self(*hash.ok_or_else(wrong)?.as_bytes()))
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Git, PackWriter, write_tree};

    #[test]
    fn the_manifest_is_what_a_shell_computes_from_git() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let pack = PackWriter::new(dir.path(), &objects).unwrap();
        let blob = |text: &str| pack.blob(text.as_bytes()).unwrap();
        let mut files = vec![
            ("a", 0o100_644, blob("")),
            ("a-b", 0o100_755, blob("x")),
            ("a/b", 0o120_000, blob("../a")),
            ("z z/y/x", 0o100_644, blob("hello\n")),
        ];
        files.remove(0); // 'a' is a directory here
        let tree = write_tree(files, &pack).unwrap();
        let other = write_tree([("a-b", 0o100_644, blob("x"))], &pack).unwrap();
        let empty = write_tree(Vec::<(&str, u32, Oid)>::new(), &pack).unwrap();
        pack.finish().unwrap().unwrap().release().unwrap();
        let manifest = Manifest::of_tree(&objects, tree).unwrap();
        let script = "
            { printf 'git-devops manifest 1\\n'
              git ls-tree -r $1 | while IFS=' \t' read -r mode kind oid path; do
                printf '%s %s %s %s\\n' $mode $(git cat-file blob $oid | sha256sum | cut -c-64) ${#path} \"$path\"
              done; } | sha256sum | cut -c-64";
        let mut shell = std::process::Command::new("sh");
        let shell = shell.args(["-ec", script, "sh", &tree.to_string()]).env("GIT_DIR", git.git_dir()).output().unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap().trim(), manifest.to_string());
        assert_ne!(Manifest::of_tree(&objects, other).unwrap(), manifest);
        assert_eq!(manifest.to_string().parse::<Manifest>().unwrap(), manifest);
        let nothing = Manifest(Sha256::digest(HEAD).into());
        assert_eq!(Manifest::of_tree(&objects, empty).unwrap(), nothing);
    }
}
