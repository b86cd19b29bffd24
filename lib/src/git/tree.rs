//! Building the nested trees of a commit from a sorted list of paths, in one pass.

use std::collections::HashMap;

use super::object::{DIR, TreeEntry, check_mode, encode_tree_entry};
use super::{Oid, PackWriter, name};
use crate::error::{Error, Kind, Result};

/// Writes the trees for `entries` (stored path, mode, object), sorted by path as bytes, and returns the root.
///
/// Holds one open tree per level, whatever the number of entries. A path that is both a file and a directory is refused.
pub fn write_tree<P: AsRef<[u8]>>(entries: impl IntoIterator<Item = (P, u32, Oid)>, writer: &PackWriter) -> Result<Oid> {
    let mut open = vec![OpenTree::default()];
    write(entries, writer, &mut open)?;
    writer.tree(&open[0].body)
}

/// Does what [`write_tree`] does, for a commit after the one that has the tree `before`.
///
/// A tree that the repository has, but not at the same place in `before`, may be one that nothing leads to and that somebody's gc is about to remove:
/// it is written once more, with all such trees below it. Of `before` only those directories are read in which something changed.
pub fn write_tree_after<P: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = (P, u32, Oid)>,
    writer: &PackWriter,
    before: Option<Oid>,
) -> Result<Oid> {
    let mut open = vec![OpenTree { before: Before::Root(before), ..OpenTree::default() }];
    write(entries, writer, &mut open)?;
    let root = writer.tree(&open[0].body)?;
    if before != Some(root) {
        match writer.has(&root) {
            true => secure_dirs(&mut open, writer)?,
            false => secure(&root, before, writer)?,
        }
    }
    Ok(root)
}

fn write<P: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = (P, u32, Oid)>,
    writer: &PackWriter,
    open: &mut Vec<OpenTree>,
) -> Result<()> {
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
        enter(path, open, writer)?;
        let file = path.rsplit(|&b| b == b'/').next().expect("BUG: a split has one part");
        innermost(open).add(mode, file, &oid).map_err(|error| error.wrap(clash(path)))?;
        last.clear();
        last.extend_from_slice(path);
    }
    while open.len() > 1 {
        close(open, writer)?;
    }
    Ok(())
}

/// A tree that can still get entries.
#[derive(Default)]
struct OpenTree {
    name: Vec<u8>,
    body: Vec<u8>,
    /// Files whose names start the last name, shortest first: one of them could still turn up as a directory.
    files: Vec<Vec<u8>>,
    /// Its directories that the repository had already.
    stored_dirs: Vec<(Vec<u8>, Oid)>,
    before: Before,
}

/// What the commit before has in the place of a tree.
#[derive(Default)]
enum Before {
    /// Nobody asked, and nobody will.
    #[default]
    Unknown,
    /// This is the top, and it has that tree.
    Root(Option<Oid>),
    /// Its directories; none if there is no such tree.
    Dirs(Dirs),
}

/// The directories in a tree, by name.
type Dirs = HashMap<Vec<u8>, Oid>;

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
    let is_guarded = !matches!(open[0].before, Before::Unknown);
    let oid = writer.tree(&innermost(open).body)?;
    let is_new = writer.has(&oid);
    if is_guarded && is_new {
        secure_dirs(open, writer)?;
    }
    let tree = open.pop().expect("BUG: the root tree is closed last");
    let parent = innermost(open);
    if is_guarded && !is_new {
        parent.stored_dirs.push((tree.name.clone(), oid));
    }
    parent.add(DIR, &tree.name, &oid).map_err(|error| error.wrap(clash(&tree.name)))
}

/// Secures the directories of the innermost tree, which is new, that the repository had already.
fn secure_dirs(open: &mut [OpenTree], writer: &PackWriter) -> Result<()> {
    let dirs = std::mem::take(&mut innermost(open).stored_dirs);
    if dirs.is_empty() {
        return Ok(());
    }
    let before = dirs_before(open, writer)?;
    dirs.iter().try_for_each(|(name, oid)| secure(oid, before.get(name).copied(), writer))
}

/// Writes the tree `oid` once more, unless it is `before`; and so on below it.
fn secure(oid: &Oid, before: Option<Oid>, writer: &PackWriter) -> Result<()> {
    if before.as_ref() == Some(oid) || writer.has(oid) {
        return Ok(());
    }
    writer.copy(oid)?;
    let before = dirs_of(before, writer)?;
    dirs_of(Some(*oid), writer)?.iter().try_for_each(|(name, oid)| secure(oid, before.get(name).copied(), writer))
}

/// Returns the directories that the commit before has in the place of the innermost tree.
fn dirs_before<'o>(open: &'o mut [OpenTree], writer: &PackWriter) -> Result<&'o Dirs> {
    let (tree, above) = open.split_last_mut().expect("BUG: the root tree is always open");
    let dirs = match std::mem::take(&mut tree.before) {
        Before::Dirs(dirs) => dirs,
        Before::Root(oid) => dirs_of(oid, writer)?,
        Before::Unknown => dirs_of(dirs_before(above, writer)?.get(&tree.name).copied(), writer)?,
    };
    tree.before = Before::Dirs(dirs);
    match &tree.before {
        Before::Dirs(dirs) => Ok(dirs),
        Before::Unknown | Before::Root(_) => Err(Error::new(Kind::Bug, "BUG: what was put there is not there")),
    }
}

/// Returns the directories in a tree that the repository has; none if there is no tree.
fn dirs_of(tree: Option<Oid>, writer: &PackWriter) -> Result<Dirs> {
    let entries = tree.map_or(Ok(Vec::new()), |tree| writer.stored_tree(&tree))?;
    Ok(entries.into_iter().filter(TreeEntry::is_dir).map(|entry| (entry.name, entry.oid)).collect())
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
    use crate::git::object::object_id;
    use crate::git::{Git, ObjectKind, Objects};

    #[test]
    fn a_stored_tree_is_written_again_unless_the_commit_before_has_it_at_the_same_place() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let before = write(&git, &["a/x/1", "a/x/deep/2", "a/y/1", "b/1", "c"]).unwrap();
        write(&git, &["a/x/1", "a/x/deep/2", "a/y/1", "a/z/deep/4", "b/1", "c", "dropped/x/3"]).unwrap();
        // The paths of the commit after, and how many trees it writes that are not at the same place in the one before.
        let cases: &[(&[&str], usize)] = &[
            (&["a/x/1", "a/x/deep/2", "a/y/1", "b/1", "c"], 0),
            (&["a/x/1", "a/x/deep/2", "a/y/1", "b/1"], 1),
            (&["a/x/1", "a/x/deep/2", "a/y/1", "b/1", "c", "dropped/x/3"], 3),
            (&["a/x/1", "a/x/deep/2", "a/y/1", "a/z/deep/4", "b/1", "c", "dropped/x/3"], 6),
            (&["a/x/1", "a/x/deep/2", "a/y/1", "b/1", "moved/x/1", "moved/x/deep/2"], 4),
            (&["a/x/1", "a/x/deep/2"], 2),
            (&["dropped/x/3"], 3),
        ];
        for (paths, n_trees) in cases {
            let objects = Objects::open(git.git_dir()).unwrap();
            let writer = PackWriter::new(git.git_dir(), &objects).unwrap();
            let blob = object_id(ObjectKind::Blob, b"x").unwrap();
            let entries = || paths.iter().map(|path| (path, 0o100644, blob));
            let root = write_tree_after(entries(), &writer, Some(before)).unwrap();
            assert_eq!(writer.n_objects(), *n_trees, "{paths:?}");
            assert_eq!(root, write_tree(entries(), &writer).unwrap());
        }
    }

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
