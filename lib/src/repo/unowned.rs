//! What was given up with `rm --cached` in a directory that is owned as a whole: it stays on the disk, and no snapshot takes it again by itself.
//!
//! Format: `docs/formats/tree-layout.md`. Stored in commits at `.git-devops/unowned`, so that whoever gets the commit owns the same.

use std::collections::BTreeSet;

use super::Repo;
use super::pathset::PathSet;
use super::scan::Staged;
use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;
use crate::git::index::{CachedStat, Index};
use crate::git::object::FILE;
use crate::metadata::{escaped, unescaped};
use crate::safepath::check_path;

/// Where the list stands in a commit; an empty one has no file.
pub const PATH: &[u8] = b".git-devops/unowned";

const HEAD: &[u8] = b"git-devops unowned 1\n";
const HEAD_OF_ANY: &[u8] = b"git-devops unowned ";

/// Paths that are not owned, although the directory that holds them is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unowned {
    paths: BTreeSet<Vec<u8>>,
}

impl Unowned {
    /// Reads the list that `index` holds; one that is not there is empty.
    pub fn of(repo: &Repo, index: &Index) -> Result<Self> {
        match index.lookup(PATH) {
            Some(position) => Self::decode(&repo.objects.blob(&index.entry(position).oid)?),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of a list; a line that [`Unowned::encode`] would not have written there is refused with its number.
    pub fn decode(text: &[u8]) -> Result<Self> {
        let Some(lines) = text.strip_prefix(HEAD) else {
            return Err(match text.starts_with(HEAD_OF_ANY) {
                true => Error::new(Kind::Unsupported, "the list of unowned paths has a format newer than 1; use a newer program"),
                false => Error::new(Kind::Corrupt, "this is not a list of unowned paths"),
            });
        };
        let mut paths = BTreeSet::new();
        for (at, line) in lines.split_inclusive(|&b| b == b'\n').enumerate() {
            let what = || format!("the list of unowned paths has a bad line {}", at + 2);
            let path = decode_line(line).context(what)?;
            if paths.last().is_some_and(|last| *last >= path) {
                return Err(Error::new(Kind::Corrupt, "it is a duplicate or out of order").wrap(what()));
            }
            paths.insert(path);
        }
        Ok(Self { paths })
    }

    /// Returns the text of the list.
    pub fn encode(&self) -> Vec<u8> {
        let lines = self.paths.iter().flat_map(|path| [escaped(path), b"\n".to_vec()]);
        std::iter::once(HEAD.to_vec()).chain(lines).collect::<Vec<_>>().concat()
    }

    /// Puts the list in the place of the one that `index` holds: among the `updates`, or, if it is empty, among the ascending positions that are `gone`.
    pub(super) fn stage(
        &self,
        index: &Index,
        updates: &mut Vec<Staged>,
        gone: &mut Vec<usize>,
        store: impl FnOnce(&[u8]) -> Result<Oid>,
    ) -> Result<()> {
        if !self.paths.is_empty() {
            let stat = CachedStat::default();
            updates.push(Staged { path: PATH.to_vec(), oid: store(&self.encode())?, mode: FILE, stat });
        } else if let Some(position) = index.lookup(PATH)
            && let Err(at) = gone.binary_search(&position)
        {
            gone.insert(at, position);
        }
        Ok(())
    }

    /// Says whether `path` itself is on the list; what lies below it is not asked.
    pub fn names(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }

    /// Puts `path` on the list.
    pub fn add(&mut self, path: &[u8]) {
        self.paths.insert(path.to_vec());
    }

    /// Takes all that `paths` cover off the list; says whether there was anything.
    pub(super) fn remove(&mut self, paths: &PathSet) -> bool {
        let before = self.paths.len();
        self.paths.retain(|path| !paths.covers(path));
        self.paths.len() < before
    }
}

fn decode_line(line: &[u8]) -> Result<Vec<u8>> {
    let escaped_path = line.strip_suffix(b"\n").ok_or_else(|| Error::new(Kind::Corrupt, "it is cut short"))?;
    let path = unescaped(escaped_path)?;
    check_path(&path)?;
    match escaped(&path) == escaped_path {
        true => Ok(path),
        false => Err(Error::new(Kind::Corrupt, "it is not in the one valid form")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_format_page_holds() {
        let page = include_str!("../../../docs/formats/tree-layout.md");
        let example = page.split("```\n").find(|block| block.starts_with("git-devops unowned")).unwrap();
        let list = Unowned::decode(example.as_bytes()).unwrap();
        assert!(list.names(b"etc/ssl/private") && list.names(b"home/u/my notes") && !list.names(b"etc/ssl/private/key"));
        assert_eq!(list.encode(), example.as_bytes());
    }

    #[test]
    fn a_line_that_we_would_not_write_is_refused_with_its_number() {
        for (lines, problem) in [
            ("a\na\n", "bad line 3: it is a duplicate or out of order"),
            ("b\na\n", "bad line 3: it is a duplicate or out of order"),
            ("a", "bad line 2: it is cut short"),
            ("a b\n", "bad line 2: it is not in the one valid form"),
            ("%61\n", "bad line 2: it is not in the one valid form"),
            ("a%2\n", "bad line 2: bad escape in 'a%2'"),
            ("../a\n", "bad line 2: name '..' leads out of its directory"),
            ("<<<<<<< ours\n", "bad line 2: it is not in the one valid form"),
            ("\n", "bad line 2: name '' is empty"),
        ] {
            let error = Unowned::decode(&[HEAD, lines.as_bytes()].concat()).expect_err(lines);
            assert!(format!("{error:#}").contains(problem), "{lines}: {error:#}");
        }
        assert_eq!(Unowned::decode(b"git-devops unowned 2\n").unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(Unowned::decode(b"a\n").unwrap_err().kind(), Kind::Corrupt);
        // What two merged lists may come down to.
        assert_eq!(Unowned::decode(HEAD).unwrap(), Unowned::default());
    }
}
