//! What a commit would do to this host, and what stands against it: all of it before anything is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dpkg::Packages;
use super::halt::{Halt, Why};
use super::history::History;
use super::rendered;
use crate::error::{Context, Error, Kind, Result};
use crate::git::{ObjectKind, Oid, empty_tree};
use crate::journal::{Entry, EntryId, HANDLER, JOURNAL, MAX_ENTRY, When};
use crate::progress::Progress;
use crate::repo::attributes::{Attributes, Ownership};
use crate::repo::restore::{Action, ExchangeOptions, exchange};
use crate::repo::scan::{Change, What, join, shown, split};
use crate::repo::seen::Seen;
use crate::repo::tree::{Listing, StoredDir};
use crate::repo::{Repo, status};
use crate::safepath::{Dir, FileKind, Room};

/// So many deletions are never too many.
const FEW_DELETIONS: usize = 50;
/// Of a filesystem's size, or so many bytes if that is less, so much is left free: one part of twenty.
const RESERVE: (u64, u64) = (20, 64 << 20);
/// So many paths a halt names.
const MAX_NAMED: usize = 20;

/// What is in the way of going on: an error, or something that a person decides.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be done.
    Error(Error),
    /// It is not done before a person decided.
    Halt(Halt),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Stop {
    /// Returns what a person decides; what cannot be done is an error.
    pub fn into_halt(self) -> Result<Halt> {
        match self {
            Self::Error(error) => Err(error),
            Self::Halt(halt) => Ok(halt),
        }
    }

    /// Returns a halt as an error, for what is not a replay.
    pub fn into_error(self) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Halt(halt) => {
                let details = halt.details.iter().map(|line| format!("; {line}")).collect::<String>();
                Error::new(Kind::Halted, format!("{}{details}", halt.what))
            }
        }
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

/// What comes of a step.
pub type Step<T> = std::result::Result<T, Stop>;

/// What a commit is for this host.
pub struct CommitPlan {
    /// The commit.
    pub commit: Oid,
    /// The tree before it; that of no files for the first commit.
    pub before: Oid,
    /// Its tree.
    pub tree: Oid,
    /// Paths of the work tree that it changes and that are not left to the host.
    pub changes: Vec<Change>,
    /// Entries that it adds, in the order in which they run; those that are over on this host, too.
    pub entries: Vec<(EntryId, Entry)>,
    /// Handlers that its changes ask for.
    pub handlers: BTreeSet<String>,
    /// The policies of its tree.
    pub attributes: Attributes,
    effects: BTreeSet<Vec<u8>>,
    /// Those of its changes that are directories.
    dirs: BTreeSet<Vec<u8>>,
    /// What is put aside, beside what is removed.
    n_aside: usize,
    /// The command that does all this.
    command: &'static str,
}

impl CommitPlan {
    /// Works out what `commit`, which follows `last`, is.
    pub fn of(repo: &Repo, history: &History, last: Option<Oid>, commit: Oid) -> Step<Self> {
        let tree = repo.objects.commit(&commit)?.tree;
        let before = last.map(|last| repo.objects.commit(&last).map(|data| data.tree)).transpose()?;
        let before = match before {
            Some(tree) => tree,
            None => empty_tree(),
        };
        let attributes = attributes_of(repo, tree)?;
        let entries = new_entries(repo, last, before, commit, tree)?;
        // An entry that ran before this commit was begun came by another one, and does nothing for this one's files.
        let pending = history.pending.as_ref().filter(|pending| pending.commit == commit);
        let is_here = |id: &EntryId| !history.is_over(id) || pending.is_some_and(|pending| pending.entries.contains(id));
        let effects: BTreeSet<Vec<u8>> =
            entries.iter().filter(|(id, _)| is_here(id)).flat_map(|(_, entry)| entry.effects.iter().cloned()).collect();
        let mut look = Look::new(repo, tree)?;
        let mut changes = Vec::new();
        let (mut handlers, mut dirs) = (BTreeSet::new(), BTreeSet::new());
        for change in status::compare_work_trees(repo, before, tree)? {
            let policy = match look.kind(&change.path)? {
                Some(FileKind::Dir) => {
                    dirs.insert(change.path.clone());
                    attributes.policy_of_dir(&change.path)
                }
                _ => attributes.policy(&change.path),
            };
            let is_hosts =
                policy.ownership == Ownership::Local || policy.ownership == Ownership::Seed && change.what != What::Added;
            if !is_hosts {
                handlers.extend(policy.handlers);
                changes.push(change);
            }
        }
        Ok(Self { commit, before, tree, changes, entries, handlers, attributes, effects, dirs, n_aside: 0, command: "gdo up" })
    }

    /// Returns what a convergence from `before` to the tree of `commit` would do: `found` is what differs on the disk, and what it removes.
    pub(super) fn of_convergence(
        repo: &Repo,
        (commit, before): (Oid, Oid),
        found: &[Change],
        n_aside: usize,
        attributes: &Attributes,
    ) -> Result<Self> {
        let tree = repo.objects.commit(&commit)?.tree;
        let mut after = Look::new(repo, tree)?;
        let mut changes = found.to_vec();
        for change in &mut changes {
            // What the disk lacks is made.
            let is_missing = change.what == What::Deleted && after.kind(&change.path)?.is_some();
            change.what = if is_missing { What::Added } else { change.what };
        }
        Ok(Self {
            commit,
            before,
            tree,
            changes,
            entries: Vec::new(),
            handlers: BTreeSet::new(),
            attributes: attributes.clone(),
            effects: BTreeSet::new(),
            dirs: BTreeSet::new(),
            n_aside,
            command: "gdo converge",
        })
    }

    /// Returns the entries that run before, or after, the files are laid down.
    pub fn entries(&self, when: When) -> impl Iterator<Item = &(EntryId, Entry)> {
        self.entries.iter().filter(move |(_, entry)| entry.when == when)
    }

    /// Returns the paths that are laid down, without those that entries make.
    pub fn laid(&self) -> Vec<Vec<u8>> {
        self.changes.iter().map(|change| &change.path).filter(|path| !self.effects.contains(*path)).cloned().collect()
    }

    /// Returns the paths that entries make; those whose content is made from other files are not compared.
    pub fn made(&self) -> Vec<Vec<u8>> {
        let is_compared = |path: &Vec<u8>| !self.attributes.policy(path).is_derived;
        self.changes
            .iter()
            .map(|change| &change.path)
            .filter(|path| self.effects.contains(*path))
            .filter(|path| is_compared(path))
            .cloned()
            .collect()
    }

    /// Says whether its tree has a directory at `path`.
    pub fn is_dir(&self, path: &[u8]) -> bool {
        self.dirs.contains(path)
    }

    /// Halts if anything stands against this commit; writes nothing, and returns what lay there. Files that are in place already are no obstacle, and
    /// neither are those that an interrupted run left half done, where one had begun.
    pub fn check(&self, repo: &Repo, yes_delete: usize, is_begun: bool) -> Step<Seen> {
        // What was begun was looked at before that.
        if !is_begun {
            let mut before = Look::new(repo, self.before)?;
            self.check_protected(repo, &mut |path| before.kind(path))?;
            self.check_diverted(repo)?;
            self.check_deletions(repo, yes_delete)?;
        }
        let Looked { writes, seen } = check_drift(repo, (self.before, self.tree), &self.changes, is_begun)?;
        self.check_room(repo, &writes)?;
        Ok(seen)
    }

    /// Halts if a convergence must not do this before a person says so, or has no room for it; what lies there need not be what was applied last.
    pub(super) fn check_converging(&self, repo: &Repo, yes_delete: usize) -> Step<()> {
        let root = Dir::open(&repo.places.work_tree)?;
        self.check_protected(repo, &mut |path| kind_on_disk(&root, path))?;
        self.check_deletions(repo, yes_delete)?;
        self.check_room(repo, &self.laid())
    }

    fn check_protected(&self, repo: &Repo, was: &mut dyn FnMut(&[u8]) -> Result<Option<FileKind>>) -> Step<()> {
        let mut hurt = Vec::new();
        let mut after = Look::new(repo, self.tree)?;
        for Change { path, what } in &self.changes {
            if *what == What::Added || !self.attributes.policy(path).is_protected {
                continue;
            }
            let (was, is) = (was(path)?, after.kind(path)?);
            let is_emptied = *what == What::Content && after.size(path)? == Some(0);
            if was != is || is_emptied {
                hurt.push(named(path, None));
            }
        }
        if hurt.is_empty() {
            return Ok(());
        }
        let what = format!("{} protected, and would go, become empty, or change type", are(hurt.len()));
        let ways = [
            ("gdo revert COMMIT", "on the origin: releases the change taken back"),
            ("gdo attributes PATTERN -protect", "on the origin, in an earlier release: lifts the protection"),
        ];
        Err(Halt::new(Why::Protected, what, &ways).with(first(hurt)).into())
    }

    fn check_diverted(&self, repo: &Repo) -> Step<()> {
        let Some(packages) = Packages::of(repo)? else { return Ok(()) };
        let laid = self.laid();
        let theirs: Vec<String> =
            laid.iter().filter(|path| packages.is_diverted_to(path)).map(|path| named(path, None)).collect();
        if theirs.is_empty() {
            return Ok(());
        }
        let what = format!("{} a package's, which a diversion put there", are(theirs.len()));
        let ways = [
            ("dpkg-divert --list", "shows the names that are diverted: lay the file down there"),
            ("gdo revert COMMIT", "on the origin: releases the change taken back"),
        ];
        Err(Halt::new(Why::Packages, what, &ways).with(first(theirs)).into())
    }

    fn check_deletions(&self, repo: &Repo, yes_delete: usize) -> Step<()> {
        let n = self.changes.iter().filter(|change| change.what == What::Deleted).count() + self.n_aside;
        if n <= FEW_DELETIONS.max(yes_delete) {
            return Ok(());
        }
        let n_owned = repo.index()?.len();
        if n * 10 <= n_owned {
            return Ok(());
        }
        let what = format!("{} of {n_owned} would be removed", files(n));
        let (look, go_on) = (format!("{} -n", self.command), format!("{} --yes-delete {n}", self.command));
        Err(Halt::new(Why::Deletions, what, &[(&look, "shows which"), (&go_on, "removes them")]).into())
    }

    /// Looks whether all of `paths` can be written where they go.
    fn check_room(&self, repo: &Repo, paths: &[Vec<u8>]) -> Step<()> {
        let root = Dir::open(&repo.places.work_tree)?;
        let mut after = Look::new(repo, self.tree)?;
        let mut by_parent: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        for path in paths.iter().filter(|path| !path.is_empty()) {
            let (parent, name) = split(path);
            by_parent.entry(parent).or_default().push(name);
        }
        let mut needs: BTreeMap<(u32, u32), RoomNeeded> = BTreeMap::new();
        let mut problems = Vec::new();
        for (parent, names) in by_parent {
            let (dir, at) = nearest(&root, parent)?;
            for name in &names {
                let path = join(parent, name);
                if at == parent && dir.is_mount_point(name)? && after.kind(&path)? != Some(FileKind::Dir) {
                    problems.push(format!("'{}': something is mounted on it", shown(&path)));
                }
            }
            let room = dir.room()?;
            let need =
                needs.entry(dir.stat_self()?.dev).or_insert_with(|| RoomNeeded { at: at.to_vec(), room, bytes: 0, inodes: 0 });
            for name in names {
                need.bytes += after.size(&join(parent, name))?.unwrap_or(0).next_multiple_of(4096);
                need.inodes += 1;
            }
        }
        for RoomNeeded { at, room, bytes, inodes } in needs.into_values() {
            let reserve = (room.size / RESERVE.0).min(RESERVE.1);
            let at = if at.is_empty() { ".".to_owned() } else { shown(&at).to_string() };
            if room.is_read_only {
                problems.push(format!("'{at}': the filesystem is mounted read-only"));
            } else if bytes > 0 && room.bytes < bytes.saturating_add(reserve) {
                let needed = bytes.saturating_add(reserve);
                problems
                    .push(format!("'{at}': {needed} bytes are needed, with a reserve of {reserve}, and {} are free", room.bytes));
            } else if room.inodes < inodes {
                problems.push(format!("'{at}': {inodes} files are to be made, and there are inodes for {}", room.inodes));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let ways = [("df -h; df -i", "shows what is full"), (self.command, "goes on when there is room")];
        Err(Halt::new(Why::Room, "there is no room for the files of this commit, or they cannot be written", &ways)
            .with(problems)
            .into())
    }
}

fn kind_on_disk(root: &Dir, path: &[u8]) -> Result<Option<FileKind>> {
    if path.is_empty() {
        return Ok(Some(FileKind::Dir));
    }
    let (parent, name) = split(path);
    let dir = root.open_path_if_there(parent)?;
    Ok(dir.map_or(Ok(None), |dir| dir.stat(name))?.map(|stat| stat.kind))
}

/// Returns the owned directories in which the names of `laid` change, and whose times do so with them, if they are as recorded otherwise.
pub(super) fn parents(repo: &Repo, (before, tree): (Oid, Oid), laid: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let laid: BTreeSet<&[u8]> = laid.iter().map(Vec::as_slice).collect();
    let above: BTreeSet<&[u8]> = laid.iter().filter(|path| !path.is_empty()).map(|path| split(path).0).collect();
    let (mut old, mut new) = (Look::new(repo, before)?, Look::new(repo, tree)?);
    let mut found = Vec::new();
    for path in above.into_iter().filter(|path| !laid.contains(path)) {
        if old.kind(path)? == Some(FileKind::Dir) && new.kind(path)? == Some(FileKind::Dir) {
            found.push(path.to_vec());
        }
    }
    let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
    let differ = exchange(repo, (tree, tree), &found, &*repo.laying, how, &Progress::default())?.steps;
    found.retain(|path| !differ.iter().any(|step| step.path == *path));
    Ok(found)
}

/// What a look at the disk showed, before it is changed.
pub(super) struct Looked {
    /// What would be written.
    pub writes: Vec<Vec<u8>>,
    /// What lay there.
    pub seen: Seen,
}

/// Returns what would be written, if all of it is on the disk as before or as after; where it `is_begun`, metadata may be half of each.
pub(super) fn check_drift(repo: &Repo, (before, tree): (Oid, Oid), changes: &[Change], is_begun: bool) -> Step<Looked> {
    let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
    let owned: Vec<Vec<u8>> =
        changes.iter().filter(|change| change.what != What::Added).map(|change| change.path.clone()).collect();
    let all: Vec<Vec<u8>> = changes.iter().map(|change| change.path.clone()).collect();
    let look = |(from, to), paths: &[Vec<u8>]| -> Result<(Differences, Seen)> {
        let progress = Progress::default();
        // A directory that is to take the place of '/bin' is refused here, before anything is begun.
        let how = ExchangeOptions { allow_type_change: from == to, ..how };
        let found = exchange(repo, (from, to), paths, &*repo.laying, how, &progress)?;
        let steps = found.steps.into_iter().map(|step| (step.path, step.action)).collect();
        let failed = progress.take_warnings().into_iter().map(|warning| (warning.path, warning.message)).collect();
        Ok(((steps, failed), found.seen))
    };
    let ((not_old, failed_old), seen_first) = look((before, before), &owned)?;
    let ((not_new, failed_new), seen_later) = look((before, tree), &all)?;
    let (mut drift, mut collisions, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for Change { path, what } in changes {
        let why = failed_new.get(path).or_else(|| failed_old.get(path));
        let is_new = !not_new.contains_key(path) && why.is_none();
        if is_new {
            continue;
        }
        let is_old = match what {
            What::Added => not_new.get(path) == Some(&Action::Create),
            _ => !not_old.contains_key(path),
        };
        let is_half = is_begun && [not_old.get(path), not_new.get(path)].contains(&Some(&Action::Metadata));
        let is_expected = is_old || is_half || rendered::is_untouched(repo, path)?;
        match (is_expected && why.is_none(), what) {
            (true, _) => writes.push(path.clone()),
            (false, What::Added) => collisions.push(named(path, why)),
            (false, _) => drift.push(named(path, why)),
        }
    }
    if !drift.is_empty() {
        let what = format!("{} not as applied last, and this commit changes them", are(drift.len()));
        let ways = [
            ("gdo diff -- PATH", "shows how"),
            ("gdo fix PATH", "brings back what was applied, and keeps what lies there; 'gdo up' goes on then"),
            ("gdo up --theirs PATH", "does both"),
        ];
        return Err(Halt::new(Why::Drift, what, &ways).with(first(drift)).into());
    }
    if !collisions.is_empty() {
        let what = format!("{} in the place of new ones, and not owned", are(collisions.len()));
        let ways = [
            ("gdo diff COMMIT -- PATH", "shows in what one differs; what has the very content and metadata is taken over"),
            ("mv PATH ELSEWHERE", "moves one out of the way; a directory may rather get the owner and mode of the new one"),
            ("gdo up", "goes on then"),
        ];
        return Err(Halt::new(Why::Collision, what, &ways).with(first(collisions)).into());
    }
    Ok(Looked { writes, seen: seen_first.or(seen_later) })
}

/// What is to be written to one filesystem.
struct RoomNeeded {
    /// A directory on it.
    at: Vec<u8>,
    room: Room,
    bytes: u64,
    inodes: u64,
}

/// What differs on the disk, by path, and what could not be looked at.
type Differences = (HashMap<Vec<u8>, Action>, BTreeMap<Vec<u8>, String>);

/// Returns the deepest directory on the way to `path` that is there, and its path.
fn nearest<'p>(root: &Dir, path: &'p [u8]) -> Result<(Dir, &'p [u8])> {
    let mut at = path;
    loop {
        if at.is_empty() {
            return Ok((root.try_clone()?, at));
        }
        match root.open_path(at) {
            Ok(dir) => return Ok((dir, at)),
            Err(_) => at = split(at).0,
        }
    }
}

fn named(path: &[u8], why: Option<&String>) -> String {
    let shown = format!("'{}'", shown(path));
    why.map_or(shown.clone(), |why| format!("{shown}: {why}"))
}

/// Says how many.
pub(super) fn files(n: usize) -> String {
    if n == 1 { "1 file".to_owned() } else { format!("{n} files") }
}

/// Says how many, as the beginning of a sentence about them.
pub(super) fn are(n: usize) -> String {
    if n == 1 { "1 file is".to_owned() } else { format!("{n} files are") }
}

/// Says how many entries.
pub(super) fn entries(n: usize) -> String {
    if n == 1 { "1 entry".to_owned() } else { format!("{n} entries") }
}

/// Returns the first of many, and how many are left.
pub(super) fn first(mut named: Vec<String>) -> Vec<String> {
    let n_left = named.len().saturating_sub(MAX_NAMED);
    named.truncate(MAX_NAMED);
    if n_left > 0 {
        named.push(format!("and {n_left} more"));
    }
    named
}

/// What a tree holds, asked path by path.
pub(super) struct Look<'a> {
    repo: &'a Repo,
    root: StoredDir,
    listed: HashMap<Vec<u8>, Option<Listing>>,
}

impl<'a> Look<'a> {
    pub(super) fn new(repo: &'a Repo, tree: Oid) -> Result<Self> {
        Ok(Self { repo, root: StoredDir::root(repo, tree)?, listed: HashMap::new() })
    }

    fn dir(&mut self, path: &[u8]) -> Result<Option<&Listing>> {
        if !self.listed.contains_key(path) {
            let node = self.root.clone().descend(self.repo, path)?;
            let listing = node.map(|node| node.list(self.repo)).transpose()?;
            self.listed.insert(path.to_vec(), listing);
        }
        Ok(self.listed.get(path).and_then(Option::as_ref))
    }

    /// Returns of which type `path` is; `None` if it is not there.
    pub(super) fn kind(&mut self, path: &[u8]) -> Result<Option<FileKind>> {
        if path.is_empty() {
            return Ok(Some(FileKind::Dir));
        }
        let (parent, name) = split(path);
        let Some(listing) = self.dir(parent)? else { return Ok(None) };
        let file = listing.files.get(name).map(|item| item.metadata.kind);
        Ok(file.or_else(|| listing.dirs.contains_key(name).then_some(FileKind::Dir)))
    }

    /// Returns the length of the content of `path`, in bytes, if it has any.
    fn size(&mut self, path: &[u8]) -> Result<Option<u64>> {
        let (parent, name) = split(path);
        let item = self.dir(parent)?.and_then(|listing| listing.files.get(name)).cloned();
        item.map_or(Ok(None), |item| self.repo.content_size(&item))
    }
}

/// Returns the policies of a tree.
pub fn attributes_of(repo: &Repo, tree: Oid) -> Result<Attributes> {
    repo.attributes_of(&tree)
}

/// Returns what stands at `path` in the git tree `tree`.
pub(super) fn blob_at(repo: &Repo, tree: Oid, path: &[u8]) -> Result<Option<Oid>> {
    let mut at = tree;
    let mut components = path.split(|&b| b == b'/').peekable();
    while let Some(component) = components.next() {
        let Some(entry) = repo.objects.tree(&at)?.into_iter().find(|entry| entry.name == component) else { return Ok(None) };
        match (entry.is_dir(), components.peek()) {
            (true, Some(_)) => at = entry.oid,
            (true, None) | (false, Some(_)) => return Ok(None),
            (false, None) => return Ok(Some(entry.oid)),
        }
    }
    Ok(None)
}

/// Returns the entries in a tree, each with its blob.
pub(super) fn journal_of(repo: &Repo, tree: Oid) -> Result<BTreeMap<EntryId, Oid>> {
    let id = |name: &[u8]| EntryId::of_path(&[JOURNAL, name].concat()).expect("BUG: it is in the journal");
    names_in(repo, tree, JOURNAL)?.into_iter().map(|(name, oid)| Ok((id(&name)?, oid))).collect()
}

/// Reads an entry.
pub(super) fn read_entry(repo: &Repo, oid: &Oid, id: &EntryId) -> Result<Entry> {
    let text = repo.objects.short(oid, ObjectKind::Blob, MAX_ENTRY as u64);
    text.and_then(|text| Entry::decode(&text)).context(|| format!("cannot read entry {id}"))
}

/// Reads the handler `name` of a tree.
pub(super) fn read_handler(repo: &Repo, tree: Oid, name: &str) -> Result<Option<Entry>> {
    let what = || format!("cannot read handler '{name}'");
    let Some(oid) = blob_at(repo, tree, &[HANDLER, name.as_bytes()].concat())? else { return Ok(None) };
    let text = repo.objects.short(&oid, ObjectKind::Blob, MAX_ENTRY as u64);
    text.and_then(|text| Entry::decode(&text)).context(what).map(Some)
}

/// Returns the handlers of a tree, by name.
pub fn handlers(repo: &Repo, tree: Oid) -> Result<BTreeMap<String, Entry>> {
    let names = names_in(repo, tree, HANDLER)?.into_iter().map(|(name, _)| String::from_utf8_lossy(&name).into_owned());
    let read = |name: String| Ok(read_handler(repo, tree, &name)?.map(|handler| (name, handler)));
    names.map(read).filter_map(Result::transpose).collect()
}

/// Returns what lies in a directory of ours of a tree.
pub(super) fn names_in(repo: &Repo, tree: Oid, dir: &[u8]) -> Result<Vec<(Vec<u8>, Oid)>> {
    let mut at = tree;
    for component in dir.split(|&b| b == b'/').filter(|component| !component.is_empty()) {
        match repo.objects.tree(&at)?.into_iter().find(|entry| entry.name == component && entry.is_dir()) {
            Some(entry) => at = entry.oid,
            None => return Ok(Vec::new()),
        }
    }
    Ok(repo.objects.tree(&at)?.into_iter().map(|entry| (entry.name, entry.oid)).collect())
}

/// Returns the entries that `commit` adds to its first parent, in the order in which they run.
fn new_entries(repo: &Repo, last: Option<Oid>, before: Oid, commit: Oid, tree: Oid) -> Step<Vec<(EntryId, Entry)>> {
    let (old, new) = (journal_of(repo, before)?, journal_of(repo, tree)?);
    let changed: Vec<String> =
        old.iter().filter(|(id, oid)| new.get(id) != Some(oid)).map(|(id, _)| format!("entry {id}")).collect();
    if !changed.is_empty() {
        let what = format!("commit {commit} changes or removes entries of the journal, which are for ever");
        let ways = [
            ("gdo git show COMMIT -- .git-devops/journal", "shows what it changes there"),
            ("gdo revert COMMIT", "on the origin: takes the commit back; an entry is undone by another one"),
        ];
        return Err(Halt::new(Why::Journal, what, &ways).with(first(changed)).into());
    }
    let fresh: Vec<EntryId> = new.keys().filter(|id| !old.contains_key(*id)).cloned().collect();
    let order = match last {
        Some(last) if fresh.len() > 1 && repo.objects.commit(&commit)?.parents.len() > 1 => {
            side_order(repo, last, commit, fresh)?
        }
        _ => fresh,
    };
    order.into_iter().map(|id| read_entry(repo, &new[&id], &id).map(|entry| (id, entry)).map_err(Stop::Error)).collect()
}

/// Brings the entries that came by a merge into the order of the commits that made them.
fn side_order(repo: &Repo, last: Oid, commit: Oid, fresh: Vec<EntryId>) -> Result<Vec<EntryId>> {
    let range = format!("{last}..{commit}");
    let listed = repo.git.run(&["rev-list", "--topo-order", "--reverse", "--end-of-options", &range])?;
    let mut left: BTreeSet<EntryId> = fresh.into_iter().collect();
    let mut order = Vec::new();
    for line in String::from_utf8_lossy(&listed).lines() {
        let oid = Oid::from_hex(line.as_bytes()).map_err(|_| Error::new(Kind::Bug, "BUG: git rev-list is not understood"))?;
        let here = journal_of(repo, repo.objects.commit(&oid)?.tree)?;
        order.extend(here.into_keys().filter(|id| left.remove(id)));
    }
    order.extend(left);
    Ok(order)
}

/// Returns the commits after `last` up to `target`, oldest first, by first parents; `None` if those do not lead there.
pub fn line_to(repo: &Repo, last: Option<Oid>, target: Oid) -> Result<Option<Vec<Oid>>> {
    let mut line = Vec::new();
    let mut next = Some(target);
    while let Some(oid) = next.filter(|oid| Some(*oid) != last) {
        line.push(oid);
        next = repo.objects.commit(&oid)?.parents.first().copied();
    }
    line.reverse();
    Ok((next == last).then_some(line))
}
