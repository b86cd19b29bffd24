//! Brings a host towards a commit from whatever it is: owned files first, then handlers, then promises, and looks again whether all of it holds.
//!
//! What is owned by nobody is not touched. A second run finds nothing to do, and writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::adopt::n_owned;
use super::dpkg::Packages;
use super::halt::Halt;
use super::handlers::Tell;
use super::history::{Model, Stopped};
use super::laying::Checked;
use super::plan::{CommitPlan, Stop, journal_of, read_entry};
use super::preimage::{Over, blocked, differing, handlers_of, index_of};
use super::promise::{Promise, promises};
use super::replay::{guarded, has_guard, is_ok};
use super::run::{Ended, Ground};
use super::{Host, merge};
use crate::durable;
use crate::error::{Kind, Result};
use crate::git::{Index, NewIndex, Oid, empty_tree};
use crate::journal::{Entry, EntryId};
use crate::progress::Progress;
use crate::repo::attributes::{Attributes, Ownership};
use crate::repo::restore::{ExchangeOptions, Laying, exchange};
use crate::repo::scan::{Change, What, split};
use crate::repo::seen::Seen;
use crate::repo::tree::StoredDir;
use crate::repo::{status, wip};
use crate::safepath::Dir;

/// How to converge.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConvergeOptions {
    /// Tell what would be done, and do nothing.
    pub dry_run: bool,
    /// So many removals are meant.
    pub yes_delete: usize,
}

/// What a convergence did, or would do.
#[derive(Debug)]
pub struct Converged {
    /// The commit.
    pub commit: Oid,
    /// Files and directories that it has.
    pub n_owned: usize,
    /// Those that differed and are, or would be, right now; and what is not part of it any more, and gone.
    pub repaired: Vec<Change>,
    /// What was put aside, out of directories that hold only what is owned.
    pub aside: Vec<Vec<u8>>,
    /// What is not as the commit says, and why.
    pub left: Vec<(Vec<u8>, String)>,
    /// Promises, and guarded commands that may be repeated, in their order.
    pub promises: Vec<(String, State)>,
    /// What is there and not owned, in directories that are owned as a whole.
    pub n_unowned: usize,
    /// The number under which what lay there is kept.
    pub undo: Option<u64>,
    /// The directory that has what was put aside.
    pub quarantine: Option<std::path::PathBuf>,
    /// Where it stopped.
    pub halt: Option<Halt>,
    /// Whether nothing was written, and all of this would be done: by a dry run, or by one that halted before it began.
    pub is_planned: bool,
}

/// How a promise stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was kept.
    Kept,
    /// It is kept now, or would be tried.
    Repaired,
    /// It is not kept, for this reason.
    NotKept(String),
}

impl Converged {
    /// Says whether all is as it should be, or would be tried.
    pub fn is_whole(&self) -> bool {
        let is_kept = |(_, state): &(String, State)| !matches!(state, State::NotKept(_));
        self.left.is_empty() && self.halt.is_none() && self.promises.iter().all(is_kept)
    }

    /// Says whether anything was, or would be, done.
    pub fn has_news(&self) -> bool {
        let is_repaired = |(_, state): &(String, State)| *state == State::Repaired;
        !self.repaired.is_empty() || !self.aside.is_empty() || self.promises.iter().any(is_repaired)
    }

    /// Returns how much of what is owned is as the commit says.
    pub fn percent(&self) -> f64 {
        let n_wrong = self.left.len() + if self.is_planned { self.repaired.len() } else { 0 };
        let right = self.n_owned.saturating_sub(n_wrong);
        if self.n_owned == 0 { 100.0 } else { (right as f64 * 1000.0 / self.n_owned as f64).floor() / 10.0 }
    }
}

/// What is to be done about files.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    aside: Vec<Vec<u8>>,
    left: Vec<(Vec<u8>, String)>,
    merged: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Directories that differ only in their time: names in them changed, which is no reason to write anything.
    only_times: Vec<Vec<u8>>,
    n_unowned: usize,
    /// What lay there.
    seen: Seen,
}

/// Content as the host has it, but for what was merged.
struct WithMerged<'a> {
    inner: Checked<'a>,
    merged: &'a BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Laying for WithMerged<'_> {
    fn content(&self, path: &[u8], ownership: Ownership, stored: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.merged.get(path) {
            Some(merged) => Ok(Some(merged.clone())),
            None => self.inner.content(path, ownership, stored),
        }
    }

    fn is_as_stored(&self, path: &[u8], ownership: Ownership) -> bool {
        !self.merged.contains_key(path) && self.inner.is_as_stored(path, ownership)
    }

    fn check(&self, path: &[u8]) -> Option<String> {
        self.inner.check(path)
    }

    fn validate(&self, path: &[u8], command: &str, dir: &Dir, temp: &[u8]) -> Result<()> {
        self.inner.validate(path, command, dir, temp)
    }
}

impl Host<'_> {
    /// Brings this host to `commit`, or tells what that would do.
    pub fn converge(&mut self, commit: Oid, how: ConvergeOptions, progress: &Progress, tell: Tell<'_>) -> Result<Converged> {
        let ConvergeOptions { dry_run, yes_delete } = how;
        wip::must_not_be(self.repo)?;
        let is_begun = self.history.begun.is_some();
        if is_begun || !dry_run {
            self.follow(Model::Convergent)?;
        }
        if !dry_run {
            self.must_be_alone()?;
        }
        let head = self.repo.head()?;
        let tree = self.repo.objects.commit(&commit)?.tree;
        let before =
            head.map(|head| self.repo.objects.commit(&head).map(|data| data.tree)).transpose()?.unwrap_or_else(empty_tree);
        let here = self.repo.index()?;
        let index = index_of(self.repo, tree)?;
        let attributes = self.repo.attributes(&index)?;
        let Plan { changes, aside, left, merged, only_times, n_unowned, seen } =
            self.plan_convergence((before, tree), &attributes, progress)?;
        let mut done = Converged {
            commit,
            n_owned: n_owned(&index),
            repaired: changes,
            aside,
            left,
            promises: Vec::new(),
            n_unowned,
            undo: None,
            quarantine: None,
            halt: None,
            is_planned: dry_run,
        };
        let planned = CommitPlan::of_convergence(self.repo, (commit, before), &done.repaired, done.aside.len(), &attributes)?;
        if let Err(stop) = planned.check_converging(self.repo, yes_delete) {
            let halt = stop.into_halt()?;
            if !dry_run {
                self.note_halt(commit, &halt)?;
            }
            (done.halt, done.is_planned) = (Some(halt), true);
            return Ok(done);
        }
        if dry_run {
            done.promises = self.check_promises(tree, false)?;
            return Ok(done);
        }
        if !done.repaired.is_empty() || !done.aside.is_empty() {
            self.lay_converged(&mut done, (before, tree), &attributes, (&merged, &seen), progress)?;
            self.settle_dirs(&done, only_times, tree, progress)?;
        }
        if head != Some(commit) && done.left.is_empty() {
            self.settle(commit, tree, head, &here)?;
        }
        let is_moved = self.repo.head()? != head;
        if is_moved || !done.repaired.is_empty() {
            status::refresh(self.repo, progress)?;
        }
        if let Err(stop) = self.run_handlers(&[tree], tell) {
            done.halt = Some(stop.into_halt()?);
        }
        done.promises = self.check_promises(tree, true)?;
        if is_moved || done.has_news() || !is_begun || self.history.stopped.is_some() {
            let n_left = done.left.len() + usize::from(!done.is_whole());
            let fields =
                [("commit", commit.to_string()), ("repaired", done.repaired.len().to_string()), ("left", n_left.to_string())];
            // A commit that is not reached is not what was applied.
            if done.left.is_empty() {
                self.note("converged", &fields.each_ref().map(|(key, value)| (*key, value.as_str())))?;
            }
        }
        Ok(done)
    }

    /// Writes down where it stopped, once.
    fn note_halt(&mut self, commit: Oid, halt: &Halt) -> Result<()> {
        let is_known = |stopped: &Stopped| stopped.why == halt.why.id() && stopped.what == halt.what;
        if self.history.stopped.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        self.note("halt", &[("why", halt.why.id()), ("commit", &commit.to_string()), ("what", &halt.what)]).map(drop)
    }

    /// Looks what differs, and what can be done about it; changes nothing.
    fn plan_convergence(&self, (before, tree): (Oid, Oid), attributes: &Attributes, progress: &Progress) -> Result<Plan> {
        let index = index_of(self.repo, tree)?;
        let found = differing(self.repo, &index, attributes, progress)?;
        let mut plan = Plan::default();
        let dropped = self.dropped((before, tree), attributes)?;
        let is_dropped = |change: &Change| dropped.iter().any(|gone| gone.path == change.path);
        let mut changes = Vec::new();
        let mut ours = BTreeMap::new();
        for change in found.changes {
            let is_exact = || attributes.policy_of_dir(split(&change.path).0).is_exact;
            match change.what {
                What::Added if is_dropped(&change) => (),
                What::Added if is_exact() && !attributes.policy(&change.path).is_protected => {
                    let is_above = |dir: &Vec<u8>| change.path.starts_with(dir) && change.path.get(dir.len()) == Some(&b'/');
                    if !plan.aside.iter().any(is_above) {
                        plan.aside.push(change.path);
                    }
                }
                What::Added => plan.n_unowned += 1,
                What::Content if attributes.policy(&change.path).merges => {
                    match merge::merged(self.repo, &change.path, before, tree)? {
                        merge::Merged::Theirs => changes.push(change),
                        merge::Merged::Ours(text) => {
                            ours.insert(change.path, text);
                        }
                        merge::Merged::Both(text) => {
                            plan.merged.insert(change.path.clone(), text);
                            changes.push(change);
                        }
                        merge::Merged::Conflict => {
                            let why = "the local change and the new version change the same lines; edit it so that it has both, or 'gdo fix' it";
                            plan.left.push((change.path, why.to_owned()));
                        }
                    }
                }
                _ => changes.push(change),
            }
        }
        for path in self.only_metadata(tree, &ours)? {
            plan.merged.extend(ours.remove_entry(&path));
            changes.push(Change { path, what: What::Metadata });
        }
        changes.extend(dropped);
        let look = blocked(self.repo, (before, tree), &changes)?;
        plan.left.extend(look.blocked);
        plan.seen = look.seen;
        if let Some(packages) = Packages::of(self.repo)? {
            let theirs = changes.iter().filter(|change| packages.is_diverted_to(&change.path));
            let why = "is a package's, which a diversion put there: lay the file down under the name that is diverted";
            plan.left.extend(theirs.map(|change| (change.path.clone(), why.to_owned())));
        }
        changes.retain(|change| !plan.left.iter().any(|(path, _)| *path == change.path));
        plan.only_times = self.only_times(tree, &changes)?;
        changes.retain(|change| !plan.only_times.contains(&change.path));
        plan.changes = changes;
        if found.is_partial {
            let warnings = progress.take_warnings().into_iter().map(|warning| (warning.path, warning.message));
            plan.left.extend(warnings);
        }
        Ok(plan)
    }

    /// Returns the files whose content stays as it is here, and whose owner, mode and the like are not as the commit says; a time is the local change's.
    fn only_metadata(&self, tree: Oid, ours: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let paths: Vec<Vec<u8>> = ours.keys().cloned().collect();
        let laying = WithMerged { inner: self.laying(), merged: ours };
        let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
        let differ = exchange(self.repo, (tree, tree), &paths, &laying, how, &Progress::default())?.steps;
        Ok(differ.into_iter().map(|step| step.path).collect())
    }

    /// Returns those that are directories and differ only in their time.
    fn only_times(&self, tree: Oid, changes: &[Change]) -> Result<Vec<Vec<u8>>> {
        let root = Dir::open(&self.repo.places.work_tree)?;
        let is_dir = |change: &&Change| change.what == What::Metadata && root.open_path(&change.path).is_ok();
        let mut dirs: Vec<Vec<u8>> = changes.iter().filter(is_dir).map(|change| change.path.clone()).collect();
        let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
        let differ = exchange(self.repo, (tree, tree), &dirs, &*self.repo.laying, how, &Progress::default())?.steps;
        dirs.retain(|path| !differ.iter().any(|step| step.path == *path));
        Ok(dirs)
    }

    /// Gives directories their times, in which names changed now or before.
    fn settle_dirs(&self, done: &Converged, only_times: Vec<Vec<u8>>, tree: Oid, progress: &Progress) -> Result<()> {
        let mut dirs: BTreeSet<Vec<u8>> = only_times.into_iter().collect();
        let touched =
            done.repaired.iter().map(|change| &change.path).chain(&done.aside).chain(done.left.iter().map(|(path, _)| path));
        dirs.extend(touched.filter(|path| !path.is_empty()).map(|path| split(path).0.to_vec()));
        let root = StoredDir::root(self.repo, tree)?;
        let mut known = Vec::new();
        for path in dirs {
            if root.clone().descend(self.repo, &path)?.is_some() && !done.left.iter().any(|(left, _)| *left == path) {
                known.push(path);
            }
        }
        let how = ExchangeOptions { allow_type_change: true, ..ExchangeOptions::default() };
        exchange(self.repo, (tree, tree), &known, &*self.repo.laying, how, progress).map(drop)
    }

    /// Returns what the commit before had, this one has not, and nobody modified.
    fn dropped(&self, (before, tree): (Oid, Oid), attributes: &Attributes) -> Result<Vec<Change>> {
        if before == tree {
            return Ok(Vec::new());
        }
        let old = self.repo.attributes_of(&before)?;
        let is_hosts = |path: &[u8]| {
            [&old, attributes].iter().any(|all| matches!(all.policy(path).ownership, Ownership::Local | Ownership::Seed))
        };
        let mut gone = status::compare_work_trees(self.repo, before, tree)?;
        gone.retain(|change| change.what == What::Deleted && !is_hosts(&change.path));
        let paths: Vec<Vec<u8>> = gone.iter().map(|change| change.path.clone()).collect();
        let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: true, seen: None };
        let modified = exchange(self.repo, (before, before), &paths, &*self.repo.laying, how, &Progress::default())?.steps;
        // What is modified stays, and with it the directories above it; what is not there needs no removal.
        gone.retain(|change| !modified.iter().any(|step| step.path.starts_with(&change.path)));
        Ok(gone)
    }

    fn lay_converged(
        &mut self,
        done: &mut Converged,
        trees: (Oid, Oid),
        attributes: &Attributes,
        (merged, seen): (&BTreeMap<Vec<u8>, Vec<u8>>, &Seen),
        progress: &Progress,
    ) -> Result<()> {
        let paths: BTreeSet<Vec<u8>> = done.repaired.iter().map(|change| change.path.clone()).collect();
        let handlers = handlers_of(self.repo, trees.1, attributes, &paths)?;
        let over = Over { commit: done.commit, trees, paths: paths.clone(), handlers };
        let number = self.keep(&over, "converge", progress)?;
        done.undo = Some(number).filter(|_| !paths.is_empty());
        self.put_aside(number, done)?;
        // Each that has to pass a check by itself, so that one that does not stops no other.
        let (checked, rest): (BTreeSet<_>, BTreeSet<_>) =
            paths.into_iter().partition(|path| self.check_of(path, attributes).is_some());
        let laying = || WithMerged { inner: self.laying(), merged };
        self.lay(trees, &rest, &laying(), seen, progress).map_err(Stop::into_error)?;
        for path in checked {
            match self.lay(trees, &BTreeSet::from([path.clone()]), &laying(), seen, progress).map_err(Stop::into_error) {
                Ok(()) => (),
                Err(error) if error.kind() == Kind::Halted => done.left.push((path, format!("{error:#}"))),
                Err(error) => return Err(error),
            }
        }
        let left: BTreeSet<&Vec<u8>> = done.left.iter().map(|(path, _)| path).collect();
        done.repaired.retain(|change| !left.contains(&change.path));
        Ok(())
    }

    /// Moves what is not owned out of directories that hold only what is: below the quarantine, it has the path that it had.
    fn put_aside(&self, number: u64, done: &mut Converged) -> Result<()> {
        let root = Dir::open(&self.repo.places.work_tree)?;
        let aside = self.state().join("quarantine").join(number.to_string());
        let move_one = |path: &[u8]| -> Result<()> {
            let (parent, name) = split(path);
            let from = root.open_path(parent)?;
            durable::create_dir_all(&aside, 0o700)?;
            let mut above = parent.split(|&b| b == b'/').filter(|_| !parent.is_empty());
            let to = above.try_fold(Dir::open(&aside)?, |dir, name| dir.open_or_make_dir(name))?;
            to.take(&from, name)
        };
        for path in std::mem::take(&mut done.aside) {
            match move_one(&path) {
                Ok(()) => {
                    done.quarantine = Some(aside.clone());
                    done.aside.push(path);
                }
                Err(error) => done.left.push((path, format!("is not owned, and cannot be put aside: {error:#}"))),
            }
        }
        // A rename stays on one filesystem: that of the quarantine.
        done.quarantine.as_ref().map_or(Ok(()), |dir| durable::sync_filesystem(dir))
    }

    /// Lets HEAD and index say that `commit` is here.
    ///
    /// What others staged since `here` was read stays staged.
    fn settle(&self, commit: Oid, tree: Oid, head: Option<Oid>, here: &Index) -> Result<()> {
        self.repo.write_index(&NewIndex::of(&*index_of(self.repo, tree)?).in_place_of(here))?;
        let branch = format!("refs/heads/{}", self.kind()?);
        let git = self.repo.git.clone().with_identity(self.call.identity.clone());
        self.repo.turn_ref(&git, (&branch, commit), head, "converge", &self.lock)?;
        self.repo.note_refs(&self.lock)
    }

    /// Checks all promises, and, if they are to be kept, keeps them; then looks whether all still are.
    fn check_promises(&mut self, tree: Oid, is_to_keep: bool) -> Result<Vec<(String, State)>> {
        let mut all: Vec<One> = promises(self.repo, tree)?.into_iter().map(One::Promise).collect();
        for (id, oid) in journal_of(self.repo, tree)? {
            let entry = read_entry(self.repo, &oid, &id)?;
            if entry.is_idempotent && has_guard(&entry) {
                all.push(One::Entry(id, Box::new(entry)));
            }
        }
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let trial = Trial { ground: Ground::of(&self.repo.places), dir: self.promise_dir()?, tree };
        let mut states: Vec<(String, State)> = Vec::new();
        for one in &all {
            let is_missing =
                |need: &&String| !states.iter().any(|(name, state)| name == *need && !matches!(state, State::NotKept(_)));
            let state = match one.needs().iter().find(is_missing) {
                Some(need) => State::NotKept(format!("it needs {need}, which is not kept")),
                None => self.keep_one(&trial, one, is_to_keep)?,
            };
            states.push((one.name(), state));
        }
        if is_to_keep && states.iter().any(|(_, state)| *state == State::Repaired) {
            for (one, (_, state)) in all.iter().zip(&mut states) {
                if !matches!(state, State::NotKept(_)) && self.is_kept(&trial, one)? != Ok(true) {
                    *state = State::NotKept("it was kept, and what came after it undid that".to_owned());
                }
            }
        }
        durable::remove_dir_all(&trial.dir)?;
        Ok(states)
    }

    fn keep_one(&mut self, trial: &Trial, one: &One, is_to_keep: bool) -> Result<State> {
        match self.is_kept(trial, one)? {
            Ok(true) => return Ok(State::Kept),
            Err(why) => return Ok(State::NotKept(why)),
            Ok(false) if !is_to_keep => return Ok(State::Repaired),
            Ok(false) => (),
        }
        let said = match one {
            One::Promise(promise) => {
                let (ended, said) = promise.run(&trial.ground, &trial.dir, "apply")?;
                (ended != Ended::Code(0)).then(|| told("'apply' failed", ended, &said))
            }
            One::Entry(id, entry) => {
                let inputs = self.lay_inputs(trial.tree, id, entry)?;
                let (ended, sequence) = self.run_entry(&trial.ground, id, entry, &inputs)?;
                self.remove_inputs(id)?;
                (!is_ok(entry, ended))
                    .then(|| format!("the command failed: {}; 'gdo log --output {sequence}' shows what it said", ended.told()))
            }
        };
        if let Some(why) = said {
            return Ok(State::NotKept(why));
        }
        Ok(match self.is_kept(trial, one)? {
            Ok(true) => State::Repaired,
            Ok(false) => State::NotKept("it was applied, and is not kept nevertheless".to_owned()),
            Err(why) => State::NotKept(why),
        })
    }

    /// Says whether it is kept, or why that cannot be told.
    fn is_kept(&self, trial: &Trial, one: &One) -> Result<std::result::Result<bool, String>> {
        match one {
            One::Promise(promise) => {
                let (ended, said) = promise.run(&trial.ground, &trial.dir, "check")?;
                Ok(match ended {
                    Ended::Code(0) => Ok(true),
                    Ended::Code(1) => Ok(false),
                    _ => Err(told("'check' failed", ended, &said)),
                })
            }
            One::Entry(id, entry) => {
                let inputs = self.lay_inputs(trial.tree, id, entry)?;
                let guard = guarded(self.repo, &trial.ground, id, entry, &inputs);
                self.remove_inputs(id)?;
                // One of which that cannot be told stops no other.
                Ok(guard.map(|guard| guard.is_some()).map_err(|error| format!("{error:#}")))
            }
        }
    }
}

struct Trial {
    ground: Ground,
    dir: std::path::PathBuf,
    tree: Oid,
}

/// What is checked, and made so.
enum One {
    Promise(Promise),
    Entry(EntryId, Box<Entry>),
}

impl One {
    fn name(&self) -> String {
        match self {
            Self::Promise(promise) => promise.name.clone(),
            Self::Entry(id, _) => id.to_string(),
        }
    }

    fn needs(&self) -> &[String] {
        match self {
            Self::Promise(promise) => &promise.needs,
            Self::Entry(..) => &[],
        }
    }
}

fn told(what: &str, ended: Ended, said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).map(crate::child::told);
    format!("{what}: {}{}", ended.told(), last.map(|last| format!(": {last}")).unwrap_or_default())
}
