//! Building the nested trees of a commit from a sorted list of paths, in one pass.

use super::object::{DIR, check_mode, encode_tree_entry};
use super::{Oid, PackWriter, name};
use crate::error::{Error, Kind, Result};

/// Writes the trees for `entries` (stored path, mode, object), sorted by path as bytes, and returns the root.
///
/// Holds one open tree per level, whatever the number of entries. A path that is both a file and a directory is refused.
pub fn write_tree<P: AsRef<[u8]>>(entries: impl IntoIterator<Item = (P, u32, Oid)>, writer: &PackWriter) -> Result<Oid> {
    let mut open = vec![OpenTree::default()];
    let mut last: Vec<u8> = Vec::new();
    for (path, mode, oid) in entries {
        let path = path.as_ref();
        if path <= last.as_slice() {
            return Err(Error::new(Kind::Bug, format!("BUG: path '{}' is out of order", path.escape_ascii())));
        }
        if !check_mode(mode) || mode == DIR || !path.split(|&b| b == b'/').all(name::is_stored_name) {
            return Err(Error::new(
                Kind::Refused,
                format!("path '{}' with mode {mode:o} cannot be in a commit", path.escape_ascii()),
            ));
        }
        enter(path, &mut open, writer)?;
        let file = path.rsplit(|&b| b == b'/').next().expect("BUG: a split has one part");
        innermost(&mut open).add(mode, file, &oid).map_err(|error| error.wrap(clash(path)))?;
        last.clear();
        last.extend_from_slice(path);
    }
    while open.len() > 1 {
        close(&mut open, writer)?;
    }
    writer.tree(&open[0].body)
}

/// A tree that can still get entries.
#[derive(Default)]
struct OpenTree {
    name: Vec<u8>,
    body: Vec<u8>,
    /// Files whose names start the last name, shortest first: one of them could still turn up as a directory.
    files: Vec<Vec<u8>>,
}

impl OpenTree {
    fn add(&mut self, mode: u32, name: &[u8], oid: &Oid) -> Result<()> {
        while self.files.pop_if(|file| !name.starts_with(file)).is_some() {}
        if self.files.last().is_some_and(|file| file == name) {
            return Err(Error::new(Kind::Refused, "a file of this name is there too"));
        }
        if mode != DIR {
            self.files.push(name.to_vec());
        }
        encode_tree_entry(mode, name, oid, &mut self.body);
        Ok(())
    }
}

/// Closes the trees that `path` is not in and opens those that it is in.
fn enter(path: &[u8], open: &mut Vec<OpenTree>, writer: &PackWriter) -> Result<()> {
    let dirs: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    let dirs = &dirs[..dirs.len() - 1];
    let n_shared = open[1..].iter().zip(dirs).take_while(|(tree, dir)| tree.name == **dir).count();
    while open.len() > n_shared + 1 {
        close(open, writer)?;
    }
    open.extend(dirs[n_shared..].iter().map(|dir| OpenTree { name: dir.to_vec(), ..OpenTree::default() }));
    Ok(())
}

fn close(open: &mut Vec<OpenTree>, writer: &PackWriter) -> Result<()> {
    let tree = open.pop().expect("BUG: the root tree is closed last");
    let oid = writer.tree(&tree.body)?;
    innermost(open).add(DIR, &tree.name, &oid).map_err(|error| error.wrap(clash(&tree.name)))
}

fn innermost(open: &mut [OpenTree]) -> &mut OpenTree {
    open.last_mut().expect("BUG: the root tree is always open")
}

fn clash(path: &[u8]) -> String {
    format!("'{}' cannot be both a file and a directory", path.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Git, Objects};

    fn write(git: &Git, paths: &[&str]) -> Result<Oid> {
        let objects = Objects::open(git.git_dir()).unwrap();
        let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
        let blob = writer.blob(b"x").unwrap();
        let mut paths = paths.to_vec();
        paths.sort_unstable();
        let root = write_tree(paths.iter().map(|path| (path, 0o100644, blob)), &writer)?;
        if let Some(kept) = writer.finish().unwrap() {
            kept.release().unwrap();
        }
        Ok(root)
    }

    #[test]
    fn the_trees_are_those_of_git_write_tree() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let cases: &[&[&str]] = &[
            &["a"],
            &["a-b", "a/b", "a.b", "a0", "ab/c/d", "ab/c.d", "ab/c/e/f/g", "b"],
            &["a/a/a/a", "a/a/b", "b/a/a/a", "x y/\u{e9}", "z\\x2d"],
            &[".git-devops/meta/.m", ".git-devops/alt/%2egit/config", "etc/x"],
            &["a", "a-/b", "a./a", "a.b"],
        ];
        for paths in cases {
            let root = write(&git, paths).unwrap();
            git.run(&["read-tree", "--empty"]).unwrap();
            let blob = crate::git::object::object_id(crate::git::ObjectKind::Blob, b"x").unwrap();
            let input: String = paths.iter().map(|path| format!("100644 {blob}\t{path}\0")).collect();
            git.run_with_input(&["update-index", "-z", "--index-info"], input.as_bytes()).unwrap();
            let theirs = git.run(&["write-tree"]).unwrap();
            assert_eq!(root.to_string().as_bytes(), theirs.trim_ascii(), "{paths:?}");
        }
        assert_eq!(write(&git, &[]).unwrap(), Oid::empty_tree(gix_hash::Kind::Sha1));
        assert_eq!(git.run(&["fsck", "--strict", "--no-dangling"]).unwrap(), b"");
    }

    #[test]
    fn a_path_that_is_file_and_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        for paths in [&["a", "a/b"][..], &["a", "a-b", "a/b"], &["x/a", "x/a-b", "x/a-c/d", "x/a.b", "x/a/b/c"]] {
            let error = write(&git, paths).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{paths:?}");
            assert_eq!(error.to_string(), "'a' cannot be both a file and a directory");
        }
        for path in ["../x", "a//b", ".git/x", "/a", "a/"] {
            assert_eq!(write(&git, &[path]).unwrap_err().kind(), Kind::Refused, "{path}");
        }
    }

    /// Names that git refuses or reads something into, most of them from the tests of git's own checks.
    const NASTY: [&[u8]; 44] = [
        b".git",
        b".GIT",
        b".Git/config",
        b".g\xe2\x80\x8cit",
        b".git\xe2\x80\x8d",
        b"\xef\xbb\xbf.git",
        b".git\xff",
        b"git~1",
        b"GIT~1/x",
        b"git~2",
        b".git ",
        b".git.",
        b".git...",
        b".git . .",
        b".git::$INDEX_ALLOCATION/x",
        b".git:x",
        b"a\\.git",
        b"a\\.git\\config",
        b"a\\git~1",
        b"\\.git",
        b"a\\.gitmodules",
        b".gitmodules",
        b".GitModules",
        b".gitmodules .",
        b".gitmodules:$DATA",
        b".git\xe2\x80\x8cmodules",
        b"gitmod~1",
        b"GITMOD~4",
        b"gi7eba~1",
        b"gi7eb~10",
        b"g~100000",
        b"~1000000",
        b".gitattributes",
        b".GITATTRIBUTES",
        b"gitatt~1",
        b"gi7d29~1",
        b"sub/.gitattributes",
        b".git-devops/attributes",
        b".git-devops/alt/%2egit",
        b"%2egit",
        b"%",
        b"x/.git/hooks/post-checkout",
        b"x/\xff\xfe\n\x01",
        b"dev\\x2dlabel.swap",
    ];

    /// Returns what `git fsck --strict` says about a tree with `paths`, each once as a file and once as a symlink.
    fn fsck(paths: &[Vec<u8>], encode: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let writer = PackWriter::new(dir.path(), &objects).unwrap();
        // As an attributes file too long a line, as a module file a hostile url.
        let blob = writer.blob(&[&b"x".repeat(5000)[..], b"\n[submodule \"a\"]\n\tpath = -x\n\turl = -u\n"].concat()).unwrap();
        for mode in [0o100644, 0o120000] {
            let sorted: std::collections::BTreeSet<_> = paths.iter().map(|path| encode(path)).collect();
            assert_eq!(sorted.len(), paths.len());
            write_tree_unchecked(&sorted, mode, blob, &writer);
        }
        writer.finish().unwrap().unwrap().release().unwrap();
        let output = git.output(&["fsck", "--strict", "--no-dangling"], b"").unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // It notices that there is no branch yet; no fault.
        said.lines().filter(|line| !line.starts_with("notice: ")).map(|line| format!("{line}\n")).collect()
    }

    /// Writes trees with any names, one component of the path after the other.
    fn write_tree_unchecked(paths: &std::collections::BTreeSet<Vec<u8>>, mode: u32, blob: Oid, writer: &PackWriter) {
        for path in paths {
            let mut entry = (mode, blob);
            for component in path.rsplit(|&b| b == b'/') {
                let mut body = Vec::new();
                encode_tree_entry(entry.0, component, &entry.1, &mut body);
                entry = (DIR, writer.tree(&body).unwrap());
            }
        }
    }

    #[test]
    fn git_finds_no_fault_with_any_name_as_we_store_it() {
        let paths: Vec<_> = NASTY.iter().map(|path| path.to_vec()).collect();
        assert_eq!(fsck(&paths, |path| name::stored_path(path).into_owned()), "");
        assert_eq!(fsck(&paths, name::meta_path), "");
        let raw = fsck(&paths, <[u8]>::to_vec);
        for fault in ["hasDotgit", "gitmodulesSymlink", "gitmodulesUrl", "gitattributesLineLength"] {
            assert!(raw.contains(fault), "the check must find what we avoid: {raw}");
        }
    }

    #[test]
    fn every_name_that_git_faults_is_one_that_we_escape() {
        let atoms =
            [".git", ".GIT", "git", "gitmod", "gi7eba", "~1", "~", ".", " ", ":", "\\", "\u{200c}", "\u{feff}", "modules", "x"];
        let mut names: Vec<Vec<u8>> = Vec::new();
        for a in atoms {
            for b in atoms {
                for c in ["", ".", "~1", "\u{200c}", ":", "\\.git"] {
                    names.push(format!("{a}{b}{c}").into_bytes());
                }
            }
        }
        names.push(b".git\xff".to_vec());
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        names.dedup();
        assert_eq!(fsck(&names, |path| name::stored_path(path).into_owned()), "");
        let plain: Vec<_> =
            names.into_iter().filter(|name| matches!(name::stored_path(name), std::borrow::Cow::Borrowed(_))).collect();
        assert!(plain.len() > 200, "not everything is escaped");
        assert_eq!(fsck(&plain, <[u8]>::to_vec), "");
    }
}
