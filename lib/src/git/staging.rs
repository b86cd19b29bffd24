//! What git's index is to become, and how it gets there: entries to put in, and the new index, which is never in memory as a whole.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sha1dc::Hasher;

use super::index::{self, CachedStat, Checksum, Index, IndexEntry, IndexStamp};
use super::locks::told_holder;
use super::object::GITLINK;
use super::{Oid, name};
use crate::durable::Temp;
use crate::error::{Context, Error, Kind, Result};
use crate::strings::Strings;

/// Entries that are to be put into an index, in any order: little more than the bytes that they will have in the file.
#[derive(Clone, Debug, Default)]
pub struct Staging(Strings);

impl Staging {
    /// Adds an entry.
    pub fn push(&mut self, entry: &IndexEntry<'_>) {
        let mut bytes = Vec::with_capacity(index::len_of(entry));
        index::encode_entry(entry, &mut bytes);
        self.0.push(&bytes);
    }

    /// Adds all of `others`.
    pub fn append(&mut self, others: &Self) {
        self.0.append(&others.0);
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the entries.
    pub fn iter(&self) -> impl Iterator<Item = IndexEntry<'_>> {
        self.0.iter().map(index::decode_entry)
    }

    /// Leaves out the entries for which `is_kept` does not hold.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&IndexEntry<'_>) -> bool) {
        self.0.retain(|bytes| is_kept(&index::decode_entry(bytes)));
    }
}

/// An index that is to be: another one with some entries put in and some left out. It holds only what differs.
#[derive(Debug)]
pub struct NewIndex<'a> {
    old: &'a Index,
    /// What others stage after this one was read stays staged.
    replaced: &'a Index,
    /// Sorted by path.
    staging: Staging,
    /// Positions in the old index.
    gone: &'a [usize],
    /// The path of an entry that need not be on the disk.
    absent: Option<&'a [u8]>,
    n_entries: usize,
    tree: Option<Oid>,
}

impl<'a> NewIndex<'a> {
    /// Returns the index `old` as it is, but for what a doubted one remembers of files.
    pub fn of(old: &'a Index) -> Self {
        let staging = Staging::default();
        Self { old, replaced: old, staging, gone: &[], absent: None, n_entries: old.len(), tree: old.tree() }
    }

    /// Returns `old` with the entries of `staging` put in and those at the ascending positions `gone` left out.
    ///
    /// Fails if an entry cannot be staged, or if it is more than an index can hold.
    pub fn new(old: &'a Index, staging: impl Into<Staging>, gone: &'a [usize]) -> Result<Self> {
        let mut staging = staging.into();
        staging.0.sort_by_key(index::path_in);
        let (mut n_entries, mut n_bytes) = (old.len() - gone.len(), old.entries_len());
        n_bytes -= gone.iter().map(|position| old.entry_len(*position)).sum::<usize>();
        let (mut last, mut from): (&[u8], _) = (b"", 0);
        for entry in staging.iter() {
            index::check_new(&entry, last)?;
            from = old.position_from(from, entry.path);
            if old.is_at(from, entry.path) && gone.binary_search(&from).is_err() {
                n_entries -= 1;
                n_bytes -= old.entry_len(from);
            }
            n_entries += 1;
            n_bytes += index::len_of(&entry);
            last = entry.path;
        }
        if n_bytes > index::MAX_ENTRIES {
            return Err(index::too_large());
        }
        let tree = old.tree().filter(|_| staging.is_empty() && gone.is_empty());
        Ok(Self { old, replaced: old, staging, gone, absent: None, n_entries, tree })
    }

    /// Notes the tree that the entries make, or that nobody knows.
    #[must_use]
    pub fn with_tree(self, tree: Option<Oid>) -> Self {
        Self { tree, ..self }
    }

    /// Says that it comes in the place of `replaced`, which was read: what others stage after that stays staged.
    #[must_use]
    pub fn in_place_of(self, replaced: &'a Index) -> Self {
        Self { replaced, ..self }
    }

    /// Makes the entry at `path`, if one is given, one that need not be on the disk.
    #[must_use]
    pub fn with_absent(self, path: Option<&'a [u8]>) -> Self {
        Self { absent: path, ..self }
    }

    /// Returns the tree that the entries make, if that is known.
    pub fn tree(&self) -> Option<Oid> {
        self.tree
    }

    /// Returns the entries, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = IndexEntry<'_>> {
        let mut gone = self.gone.iter().peekable();
        let is_there = move |position: &usize| gone.next_if(|gone| *gone == position).is_none();
        let mut old = (0..self.old.len()).filter(is_there).map(|position| self.old.entry(position)).peekable();
        let mut staged = self.staging.iter().peekable();
        std::iter::from_fn(move || {
            let Some(new) = staged.next_if(|new| old.peek().is_none_or(|old| new.path <= old.path)) else {
                return old.next().map(|entry| self.old.believed(entry));
            };
            old.next_if(|old| old.path == new.path);
            Some(new)
        })
        .map(|entry| {
            // Whoever else wrote the index may have left it out of what is ours, which is never on the disk.
            let is_off_disk = name::is_ours(entry.path) || self.absent == Some(entry.path);
            IndexEntry { skip_worktree: entry.skip_worktree || is_off_disk, ..entry }
        })
    }

    /// Returns what a tree is written from: path, mode and object of each entry, but of what is only announced.
    pub fn files(&self) -> impl Iterator<Item = (&[u8], u32, Oid)> {
        self.iter().filter(|entry| !entry.intent_to_add).map(|entry| (entry.path, entry.mode, entry.oid))
    }

    /// Returns the index in memory.
    pub fn build(&self) -> Result<Index> {
        let mut built = index::IndexBuilder::default();
        self.iter().try_for_each(|entry| built.push(&entry))?;
        Ok(built.build().with_tree(self.tree))
    }

    /// Replaces the index file of the repository at `git_dir`, durably, or not at all; git's own lock is respected.
    ///
    /// What others staged since the old one was read stays staged: all is as if they had done it just after this.
    pub fn write(&self, git_dir: &Path) -> Result<Written> {
        IndexLock::take(git_dir)?.write(self)
    }

    /// Returns the objects that this names and that others took out of the index since it was read: for whoever commits it without writing it.
    pub fn unguarded(&self, git_dir: &Path) -> Result<Vec<Oid>> {
        let path = git_dir.join("index");
        Ok(self.changed_meanwhile(&path)?.map_or_else(Vec::new, |now| self.staged_by_others(&now).unguarded))
    }

    /// Returns the index that stands at `path`, if others put it in the place of the one that was read.
    fn changed_meanwhile(&self, path: &Path) -> Result<Option<Index>> {
        let now = Index::read_checksum(path).context(|| format!("cannot read index '{}'", path.display()))?;
        let is_as_read = now.is_none() || now == self.replaced.checksum() || !self.replaced.is_read();
        if is_as_read { Ok(None) } else { Index::read(path).map(Some) }
    }

    /// Returns what others did to the index that is replaced: it has become the one that is there `now`.
    fn staged_by_others<'t>(&'t self, now: &'t Index) -> ByOthers<'t> {
        // Where there was no file they began with nothing, and took nothing out.
        let before = Some(self.replaced).filter(|before| before.checksum().is_some());
        let was = |path: &[u8]| before.and_then(|before| Some(before.entry(before.lookup(path)?)));
        // Not what they noted of files: git takes one for clean that has another owner. Nor whether it need be there, which git changes by itself.
        let staged = |entry: IndexEntry<'_>| (entry.oid, entry.mode, entry.intent_to_add);
        let mut changes = BTreeMap::new();
        for entry in now.iter().filter(|entry| was(entry.path).map(staged) != Some(staged(*entry))) {
            changes.insert(entry.path, Some(IndexEntry { stat: CachedStat::default(), ..entry }));
        }
        let removed = before.iter().flat_map(|before| before.iter()).filter(|entry| now.lookup(entry.path).is_none());
        changes.extend(removed.map(|entry| (entry.path, None)));
        let left: HashSet<Oid> = changes.keys().filter_map(|path| was(path)).map(|entry| entry.oid).collect();
        let mut unguarded = Vec::new();
        for entry in self.iter() {
            if left.contains(&entry.oid) && entry.mode != GITLINK {
                unguarded.push(entry.oid);
            }
            // What is announced is here by now.
            let is_announced = changes.get(entry.path).is_some_and(|theirs| theirs.is_some_and(|theirs| theirs.intent_to_add));
            if is_announced && was(entry.path).is_none() {
                changes.remove(entry.path);
            }
        }
        unguarded.sort_unstable();
        unguarded.dedup();
        ByOthers { changes, unguarded }
    }

    /// Writes the file, a few entries at a time, and returns its checksum.
    fn write_to(&self, file: &mut File) -> Result<Checksum> {
        let is_extended = self.iter().any(|entry| entry.is_extended());
        let mut hasher = Hasher::new();
        let mut bytes = index::header(is_extended, self.n_entries).to_vec();
        let (mut n_left, mut n_written) = (self.n_entries, 0);
        for entry in self.iter() {
            index::encode_entry(&entry, &mut bytes);
            n_left = n_left.checked_sub(1).ok_or_else(miscounted)?;
            if bytes.len() >= BUFFER {
                hasher.update(&bytes);
                file.write_all(&bytes)?;
                n_written += bytes.len();
                bytes.clear();
            }
            // An old entry can have become longer by a flag.
            if n_written + bytes.len() > index::MAX_ENTRIES {
                return Err(index::too_large());
            }
        }
        if n_left > 0 {
            return Err(miscounted());
        }
        hasher.update(&bytes);
        let checksum = index::digest(hasher);
        bytes.extend_from_slice(&checksum);
        file.write_all(&bytes)?;
        Ok(checksum)
    }
}

impl Index {
    /// Replaces the index file of a repository by this one, as [`NewIndex::write`] does.
    pub fn write(&self, git_dir: &Path) -> Result<Written> {
        NewIndex::of(self).write(git_dir)
    }
}

/// What others did to an index while a new one was made from it.
struct ByOthers<'a> {
    /// The entry that they staged at a path; `None` where they took one out.
    changes: BTreeMap<&'a [u8], Option<IndexEntry<'a>>>,
    /// Objects that the new index was to name, and that theirs has no more where the old one had them.
    unguarded: Vec<Oid>,
}

impl ByOthers<'_> {
    /// Returns what is to be put into the index that `new` is made from, and the positions that are to go, so that both is done.
    fn added_to(&self, new: &NewIndex<'_>) -> (Staging, Vec<usize>) {
        let mut staging = new.staging.clone();
        staging.retain(|entry| !self.changes.contains_key(entry.path) && !self.is_in_the_way(entry.path));
        self.changes.values().flatten().for_each(|entry| staging.push(entry));
        let removed = self.changes.iter().filter(|(_, staged)| staged.is_none());
        let removed = removed.filter_map(|(path, _)| new.old.lookup(path));
        // Where it is not made from the one that they had, what it is made from can be in the way, too.
        let in_the_way = (0..new.old.len()).filter(|at| self.is_in_the_way(new.old.entry(*at).path));
        let mut gone: Vec<usize> = removed.chain(in_the_way).chain(new.gone.iter().copied()).collect();
        gone.sort_unstable();
        gone.dedup();
        (staging, gone)
    }

    /// Says whether they staged something that makes a directory of the file at `path`, or a file of a directory that it is in.
    fn is_in_the_way(&self, path: &[u8]) -> bool {
        let is_staged = |path: &[u8]| self.changes.get(path).is_some_and(Option::is_some);
        let mut above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
        let dir = [path, b"/"].concat();
        let mut below = self.changes.range(&dir[..]..).take_while(|(path, _)| path.starts_with(&dir));
        above.any(is_staged) || below.any(|(_, staged)| staged.is_some())
    }
}

/// What became of an index that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its file.
    pub stamp: IndexStamp,
    /// The tree that its entries make, if that is known.
    pub tree: Option<Oid>,
    /// Objects that the new index was to name, and that others took out of the old one meanwhile: nothing leads to them now.
    pub unguarded: Vec<Oid>,
}

/// Bytes collected before they are written to the disk.
const BUFFER: usize = 64 * 1024;

fn miscounted() -> Error {
    Error::new(Kind::Bug, "BUG: the entries of an index are not as many as were counted")
}

/// So long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Git's lock on the index of one repository: whoever made `index.lock` may replace the index.
#[derive(Debug)]
pub struct IndexLock(Temp);

impl IndexLock {
    /// Takes the lock, or fails if another one holds it for longer than a `git status` at somebody's prompt does.
    pub fn take(git_dir: &Path) -> Result<Self> {
        let lock = git_dir.join("index.lock");
        let start = Instant::now();
        let mut taken = Temp::as_lock(&lock, 0o600);
        while start.elapsed() < PATIENCE && taken.as_ref().is_err_and(|error| error.kind() == Kind::Locked) {
            std::thread::sleep(PATIENCE / 100);
            taken = Temp::as_lock(&lock, 0o600);
        }
        match taken {
            Err(error) if error.kind() == Kind::Locked => {
                let who = told_holder(&lock, git_dir).unwrap_or_else(|| "git".to_owned());
                let message = format!("'{}' exists: {who} is changing the index; try again when that is done", lock.display());
                Err(Error::new(Kind::Locked, message))
            }
            other => other.map(Self),
        }
    }

    /// Replaces the index file as [`NewIndex::write`] does, and gives the lock back.
    pub fn write(self, new: &NewIndex<'_>) -> Result<Written> {
        let path = self.0.path().with_extension("");
        let what = || format!("cannot write index '{}'", path.display());
        // As long as this is held nobody else writes it.
        let Some(now) = new.changed_meanwhile(&path)? else {
            let stamp = self.publish(new, &path).context(what)?;
            return Ok(Written { stamp, tree: new.tree, unguarded: Vec::new() });
        };
        let others = new.staged_by_others(&now);
        let (staging, gone) = others.added_to(new);
        let tree = new.tree.filter(|_| others.changes.is_empty());
        let both = NewIndex::new(new.old, staging, &gone).context(what)?.with_absent(new.absent).with_tree(tree);
        let stamp = self.publish(&both, &path).context(what)?;
        Ok(Written { stamp, tree, unguarded: others.unguarded })
    }

    fn publish(mut self, new: &NewIndex<'_>, path: &Path) -> Result<IndexStamp> {
        let checksum = new.write_to(&mut self.0.file)?;
        let file = self.0.file.try_clone()?;
        self.0.publish(path)?;
        // Asked of the file itself: under its name another one may stand already.
        let stat = file.metadata()?;
        Ok(IndexStamp { checksum, mtime: (stat.mtime(), stat.mtime_nsec()) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::git::Git;
    use crate::git::index::{CachedStat, IndexBuilder};
    use crate::git::object::oid_from;

    fn entry(path: &str, version: u8) -> IndexEntry<'_> {
        let stat = CachedStat { size: version.into(), ..CachedStat::default() };
        let (oid, path) = (oid_from([version; 20]), path.as_bytes());
        IndexEntry { path, oid, mode: 0o100644, stat, skip_worktree: path.starts_with(b".git-devops/"), intent_to_add: false }
    }

    fn index(entries: &BTreeMap<&str, u8>) -> Index {
        let mut builder = IndexBuilder::default();
        entries.iter().for_each(|(path, version)| builder.push(&entry(path, *version)).unwrap());
        builder.build()
    }

    #[test]
    fn a_new_index_has_what_is_put_in_and_not_what_is_gone() {
        const PATHS: [&str; 6] = [".git-devops/meta/.m", "a", "a-b", "a/b", "a/c", "b"];
        let dir = tempfile::tempdir().unwrap();
        // Each path is there or not, put in or not, and gone or not, by the bits of two numbers.
        for (there, change) in (0..64_usize).flat_map(|there| (0..64_usize).map(move |change| (there, change))) {
            let at = |bits: usize, n: usize| bits & (1 << n) != 0;
            let there: Vec<usize> = (0..PATHS.len()).filter(|n| at(there, *n)).collect();
            let new: Vec<usize> = (0..PATHS.len()).filter(|n| at(change, *n)).collect();
            let old: BTreeMap<&str, u8> = there.iter().map(|n| (PATHS[*n], 1)).collect();
            let old_index = index(&old);
            let gone: Vec<usize> = (0..there.len()).filter(|position| at(change, there[*position] / 2)).collect();
            let mut staging = Staging::default();
            new.iter().rev().for_each(|n| staging.push(&entry(PATHS[*n], 2)));
            let mut want: BTreeMap<&str, u8> =
                there.iter().enumerate().filter(|(position, _)| !gone.contains(position)).map(|(_, n)| (PATHS[*n], 1)).collect();
            want.extend(new.iter().map(|n| (PATHS[*n], 2)));
            let new_index = NewIndex::new(&old_index, staging, &gone).unwrap();
            assert!(new_index.iter().eq(index(&want).iter()), "{old:?} {gone:?} {new:?}");
            assert!(new_index.build().unwrap().iter().eq(index(&want).iter()));
            if change % 5 == 0 {
                new_index.write(dir.path()).unwrap();
                assert!(Index::read(&dir.path().join("index")).unwrap().iter().eq(index(&want).iter()));
            }
        }
    }

    #[test]
    fn what_others_staged_of_ours_is_not_to_be_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap().with_work_tree(dir.path());
        let blob = git.run_with_input(&["hash-object", "-w", "--stdin"], b"x").unwrap();
        let blob = String::from_utf8(blob).unwrap();
        for path in [".git-devops/attributes", "a"] {
            git.run(&["update-index", "--add", "--cacheinfo", &format!("100644,{},{path}", blob.trim())]).unwrap();
        }
        let read = || Index::read(&dir.path().join("index")).unwrap();
        assert!(read().iter().all(|entry| !entry.skip_worktree));
        let stale = read();
        let mut staging = Staging::default();
        staging.push(&entry("b", 1));
        NewIndex::new(&stale, staging, &[]).unwrap().write(dir.path()).unwrap();
        assert_eq!(read().iter().map(|entry| entry.skip_worktree).collect::<Vec<_>>(), [true, false, false]);
    }

    /// Makes a repository with the index `old`, and the file `n` in its work tree.
    fn repository(dir: &Path, old: Option<&Index>) -> Git {
        let (git_dir, tree) = (dir.join("repo"), dir.join("tree"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("n"), "").unwrap();
        let git = Git::init(&git_dir, "main").unwrap().with_work_tree(&tree);
        if let Some(old) = old {
            old.write(&git_dir).unwrap();
        }
        git
    }

    #[test]
    fn what_others_stage_meanwhile_is_as_if_they_did_it_just_after() {
        let old = index(&[(".git-devops/meta/.m", 4), ("a", 1), ("b", 2), ("d/x", 3)].into());
        let seven = |path| format!("100644,{},{path}", "07".repeat(20));
        let stage = |path| vec!["update-index".to_owned(), "--add".into(), "--replace".into(), "--cacheinfo".into(), seven(path)];
        let take_out = |path: &str| ["update-index", "--force-remove", path].map(str::to_owned).to_vec();
        let announce = ["add", "-N", "n"].map(str::to_owned).to_vec();
        // Whether there was a file; what they do; the versions of objects that nothing leads to then.
        let cases: [(bool, Vec<String>, &[u8]); 12] = [
            (true, ["update-index", "--force-write-index", "--index-version=4"].map(str::to_owned).to_vec(), &[]),
            (true, stage("a"), &[]),
            (true, stage("b"), &[]),
            (true, stage("c"), &[]),
            (true, stage("d/x"), &[3]),
            (true, stage("n/y"), &[]),
            (true, stage("m"), &[]),
            (true, take_out("a"), &[]),
            (true, take_out("d/x"), &[3]),
            (true, announce, &[]),
            (false, stage("c"), &[]),
            (false, stage("d/x/y"), &[]),
        ];
        for (is_there, theirs, left) in cases {
            let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
            let read = |git: &Git| Index::read(&git.git_dir().join("index")).unwrap();
            let write = |git: &Git, old: &Index| {
                let mut staging = Staging::default();
                [("a", 5), ("m/z", 8), ("n", 6)].iter().for_each(|(path, version)| staging.push(&entry(path, *version)));
                let gone = [old.lookup(b"b").unwrap()];
                let new = NewIndex::new(old, staging, &gone).unwrap().with_tree(Some(oid_from([9; 20])));
                new.write(git.git_dir()).unwrap()
            };
            let git = repository(dir.path(), is_there.then_some(&old));
            let old = if is_there { read(&git) } else { old.clone().of_no_file() };
            git.run(&theirs).unwrap();
            let written = write(&git, &old);
            let (ours, other) = (read(&git), repository(after.path(), None));
            write(&other, &old);
            other.run(&theirs).unwrap();
            let staged = |index: &Index| {
                let staged = index.iter().map(|entry| (entry.path.to_vec(), entry.oid, entry.mode, entry.intent_to_add));
                staged.collect::<Vec<_>>()
            };
            assert_eq!(staged(&ours), staged(&read(&other)), "{theirs:?}");
            assert_eq!((ours.stamp(), written.unguarded), (written.stamp, left.iter().map(|n| oid_from([*n; 20])).collect()));
            let has_news = theirs[1] != "--force-write-index" && theirs[1] != "-N";
            assert_eq!(written.tree.is_none(), has_news, "{theirs:?}");
            let known = ours.lookup(b".git-devops/meta/.m").map(|at| ours.entry(at).stat.size);
            assert_eq!(known, Some(4), "what was known of the others is known still: {theirs:?}");
        }
    }

    #[test]
    fn what_is_only_announced_is_not_in_the_tree_as_with_git_write_tree() {
        let dir = tempfile::tempdir().unwrap();
        let git = repository(dir.path(), None);
        for sub_dir in ["d", "only"] {
            std::fs::create_dir(dir.path().join("tree").join(sub_dir)).unwrap();
        }
        for path in ["a", "d/x", "d/y", "only/z"] {
            std::fs::write(dir.path().join("tree").join(path), path).unwrap();
        }
        for (staged, announced) in [(&["a"][..], &["n"][..]), (&["d/x"], &["d/y", "only/z"]), (&["only/z"], &[]), (&["n"], &[])] {
            git.run(&[&["add", "--"], staged].concat()).unwrap();
            git.run(&[&["add", "-N", "--"], announced].concat()).unwrap();
            let index = Index::read(&git.git_dir().join("index")).unwrap();
            let objects = crate::git::Objects::open(git.git_dir()).unwrap();
            let pack = crate::git::PackWriter::new(git.git_dir(), &objects).unwrap();
            let ours = crate::git::write_tree(NewIndex::of(&index).files(), &pack).unwrap();
            let theirs = git.run(&["write-tree"]).unwrap();
            assert_eq!(ours.to_string().as_bytes(), theirs.trim_ascii(), "{staged:?} {announced:?}");
        }
    }

    #[test]
    fn an_index_from_elsewhere_takes_the_place_of_any_other_but_not_of_what_came_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let old = index(&[("a", 1), ("b", 2)].into());
        let elsewhere = index(&[("a", 3)].into());
        let git = repository(dir.path(), Some(&old));
        let read = || Index::read(&git.git_dir().join("index")).unwrap();
        let paths = || read().iter().map(|entry| entry.path.escape_ascii().to_string()).collect::<Vec<_>>();
        let here = read();
        git.run(&["update-index", "--add", "--cacheinfo", &format!("100644,{},c", "07".repeat(20))]).unwrap();
        NewIndex::of(&elsewhere).in_place_of(&here).write(git.git_dir()).unwrap();
        assert_eq!(paths(), ["a", "c"]);
        elsewhere.write(git.git_dir()).unwrap();
        assert_eq!(paths(), ["a"]);
        // What is a file of it is a directory for them, who never had that file.
        index(&[("b", 2)].into()).write(git.git_dir()).unwrap();
        let here = read();
        git.run(&["update-index", "--add", "--cacheinfo", &format!("100644,{},a/x", "07".repeat(20))]).unwrap();
        NewIndex::of(&elsewhere).in_place_of(&here).write(git.git_dir()).unwrap();
        assert_eq!(paths(), ["a/x"]);
    }

    #[test]
    fn a_lock_that_is_held_for_a_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = IndexLock::take(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| IndexLock::take(dir.path()));
            std::thread::sleep(PATIENCE / 10);
            drop(held);
            taken.join().unwrap().unwrap();
        });
        let _held = IndexLock::take(dir.path()).unwrap();
        assert_eq!(IndexLock::take(dir.path()).unwrap_err().kind(), Kind::Locked);
    }

    #[test]
    fn what_is_not_to_be_on_the_disk_and_what_nobody_may_stage() {
        let old = index(&[("a", 1), ("b", 1)].into());
        let absent = NewIndex::new(&old, Staging::default(), &[]).unwrap().with_absent(Some(b"a"));
        assert_eq!(absent.iter().map(|entry| entry.skip_worktree).collect::<Vec<_>>(), [true, false]);
        for (paths, kind) in [(["x", "x"], Kind::Bug), (["x", "x/../y"], Kind::Refused), ([".git/x", "x"], Kind::Refused)] {
            let mut staging = Staging::default();
            paths.iter().for_each(|path| staging.push(&entry(path, 2)));
            assert_eq!(NewIndex::new(&old, staging, &[]).unwrap_err().kind(), kind, "{paths:?}");
        }
    }

    #[test]
    fn an_index_of_many_entries_comes_back_as_it_was_written() {
        let paths: Vec<String> = (0..5000).map(|n| format!("dir-{:03}/file-{n:05}", n / 100)).collect();
        let dir = tempfile::tempdir().unwrap();
        let none = Index::default();
        let mut staging = Staging::default();
        paths.iter().rev().for_each(|path| staging.push(&entry(path, 3)));
        let new = NewIndex::new(&none, staging, &[]).unwrap();
        let stamp = new.write(dir.path()).unwrap().stamp;
        let read = Index::read(&dir.path().join("index")).unwrap();
        assert_eq!(read.stamp(), stamp);
        assert!(read.iter().eq(new.iter()) && read.len() == paths.len());
        // Of a doubted one nothing is believed.
        let mut doubted = read;
        doubted.doubt();
        assert!(NewIndex::of(&doubted).iter().all(|entry| entry.stat == CachedStat::default()));
    }
}
