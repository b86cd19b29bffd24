//! Ways back: this host takes an earlier commit of its type again, and is held there.

use std::collections::BTreeMap;

use super::Host;
use super::history::{Model, Progress};
use super::plan::{Stop, check_drift, entries, journal_of, line_to, read_entry};
use super::replay::{is_ok, job};
use super::run::Ground;
use crate::error::{Error, Kind, Reason, Result};
use crate::git::Oid;
use crate::journal::{Entry, EntryId, Kind as EntryKind};
use crate::progress;
use crate::repo::scan::Change;
use crate::repo::{next, status, wip};

/// What a rollback does, or would do.
#[derive(Debug)]
pub struct Back {
    /// Where the host is.
    pub from: Oid,
    /// Where it goes.
    pub to: Oid,
    /// Entries that are undone, the last one first.
    pub undone: Vec<EntryId>,
    /// Entries that cannot be: what they did stays.
    pub stuck: Vec<String>,
    /// Entries that failed or were interrupted: whatever they did stays.
    pub failed: Vec<String>,
    /// Files that differ between the two.
    pub changes: Vec<Change>,
    /// What runs after these were changed.
    pub handlers: Vec<String>,
}

impl Host<'_> {
    /// Returns the commit `n` commits before the one that is applied; one that is applied by half counts.
    pub fn earlier(&self, n: u64) -> Result<Oid> {
        wip::must_not_be(self.repo)?;
        let nothing = || Error::new(Kind::NotFound, "so many commits were not applied here; 'gdo log' shows those that were");
        let mut at = self.half().map_or_else(|| self.repo.head(), |half| Ok(Some(half)))?.ok_or_else(nothing)?;
        for _ in 0..n {
            at = self.repo.objects.commit(&at)?.parents.first().copied().ok_or_else(nothing)?;
        }
        Ok(at)
    }

    /// Returns the commit that is applied by half.
    fn half(&self) -> Option<Oid> {
        self.history().pending.as_ref().map(|pending| pending.commit)
    }

    /// Looks what a rollback to `to` would do; changes nothing.
    pub fn plan_back(&self, to: Oid) -> Result<Back> {
        let head = self.repo.head()?.ok_or_else(|| Error::new(Kind::NotFound, "nothing is applied here"))?;
        let from = self.half().unwrap_or(head);
        let line = line_to(self.repo, Some(to), from)?;
        let line = line.ok_or_else(|| {
            Error::refused(Reason::Fork, format!("the first parents of what is applied here do not lead to commit {to}"))
        })?;
        let ran = self.ran_since(Some(to), &line)?;
        let (ran, failed): (Vec<Ran>, Vec<Ran>) = ran.into_iter().partition(|ran| self.is_done(ran));
        let (stuck, failed) = (stuck(&ran), failed.iter().filter(|ran| !ran.is_start()).map(Ran::told).collect());
        let undone = ran.into_iter().rev().filter(|ran| ran.entry.undo.is_some()).map(|ran| ran.id).collect();
        let trees = [from, to].map(|commit| self.repo.objects.commit(&commit).map(|data| data.tree));
        let [old, new] = trees;
        let (old, new) = (old?, new?);
        let changes = status::compare_work_trees(self.repo, old, new)?;
        let handlers = self.handlers_of(new, &changes)?;
        Ok(Back { from, to, undone, stuck, failed, changes, handlers })
    }

    /// Takes the content of the commit `to`, which was applied before, again, after undoing what ran since; and holds this host there.
    ///
    /// Where something cannot be undone, nothing is done, unless only the content matters.
    pub fn back(&mut self, to: Oid, content_only: bool, hold: Option<&str>, progress: &progress::Progress) -> Result<Back> {
        wip::must_not_be(self.repo)?;
        self.follow(Model::Congruent)?;
        self.must_be_alone()?;
        let plan = self.plan_back(to)?;
        let head = self.repo.head()?.unwrap_or(plan.from);
        if head == to && self.half().is_none() && self.history().backing.is_some() {
            // Killed just before its end.
            self.repo.note_refs(&self.lock)?;
            self.end_back(head, to, progress)?;
            return Ok(plan);
        }
        if plan.from == to {
            return Err(Error::new(Kind::Usage, "this host is there already"));
        }
        let tree = |commit| self.repo.objects.commit(&commit).map(|data| data.tree);
        let (half, old, new) = (tree(plan.from)?, tree(head)?, tree(to)?);
        if !plan.stuck.is_empty() && !content_only {
            return Err(stuck_error(&plan.stuck));
        }
        // What a killed rollback, or a replay that halted, did already is no obstacle.
        let is_begun = self.history().backing.is_some() || self.half().is_some();
        let mut looks = Vec::new();
        for (from, to) in [(half, old), (old, new)] {
            let changes = status::compare_work_trees(self.repo, from, to)?;
            // What the half commit changed, too, is looked at in its own step.
            let both = status::compare_work_trees(self.repo, half, old)?;
            let is_first = (from, to) == (half, old);
            let is_looked_at = |path: &Vec<u8>| !is_first && both.iter().any(|change| change.path == *path);
            let changes: Vec<Change> = changes.into_iter().filter(|change| !is_looked_at(&change.path)).collect();
            looks.push(check_drift(self.repo, (from, to), &changes, is_begun).map_err(Stop::into_error)?.seen);
        }
        let line = line_to(self.repo, Some(to), plan.from)?.unwrap_or_default();
        // First, so that nothing applies it anew, whatever happens from here on.
        if let Some(at) = hold {
            let by = self.call.by.clone();
            self.note("hold", &[("at", at), ("by", &by)])?;
        }
        let content = if content_only { "only" } else { "and-commands" };
        let handlers = plan.handlers.join(",");
        let (branch, commit) = (self.kind()?, to.to_string());
        self.note("backing", &[("branch", &branch), ("to", &commit), ("content", content), ("handlers", &handlers)])?;
        self.undo(Some(to), &line, content_only)?;
        // Commands may have changed what was looked at.
        let is_seen = content_only || plan.undone.is_empty();
        let mut looks = looks.iter().map(|seen| is_seen.then_some(seen));
        let (first, second) = (looks.next().flatten(), looks.next().flatten());
        if let Some(half) = self.half() {
            self.lay_back((tree(half)?, old), first, progress)?;
            self.note("given-up", &[("commit", &half.to_string())])?;
        }
        if head != to {
            self.lay_back((old, new), second, progress)?;
            self.move_to(to, old, new, Some(head))?;
        }
        self.end_back(head, to, progress)?;
        Ok(plan)
    }

    fn end_back(&mut self, from: Oid, to: Oid, progress: &progress::Progress) -> Result<()> {
        self.note("back", &[("from", &from.to_string()), ("to", &to.to_string())])?;
        // A merge or revert that this took back by half is not to be applied any more.
        next::remove(self.repo, &self.lock)?;
        status::refresh(self.repo, progress)?;
        let tree = self.repo.objects.commit(&to)?.tree;
        self.owe_nothing_unknown(tree)?;
        let ran = self.run_handlers(&[tree], &mut |_, _| Ok(())).map_err(Stop::into_error);
        ran.map_err(|error| error.wrap(format!("went back to commit {to}, and that is done; its handlers are still owed")))
    }

    /// Returns the handlers that changes to the files of `tree` ask for, as far as it has them.
    fn handlers_of(&self, tree: Oid, changes: &[Change]) -> Result<Vec<String>> {
        let attributes = super::plan::attributes_of(self.repo, tree)?;
        let known = super::plan::handlers(self.repo, tree)?;
        let asked: std::collections::BTreeSet<String> = changes
            .iter()
            .flat_map(|change| attributes.policy(&change.path).handlers)
            .filter(|name| known.contains_key(name))
            .collect();
        Ok(asked.into_iter().collect())
    }

    /// Undoes the entries that `commits` added to `base` and that ran here, the last one first; returns those that cannot be.
    ///
    /// Where there is one of those, nothing is done, and that is an error, unless only the content matters: then no command runs.
    pub(super) fn undo(&mut self, base: Option<Oid>, commits: &[Oid], content_only: bool) -> Result<Vec<String>> {
        if let Some(id) = &self.history().undoing {
            let message = format!(
                "the undoing of entry {id} was interrupted, and nobody knows how far it came; 'gdo resume --done' takes it for undone, 'gdo resume \
                 --rerun' undoes it again"
            );
            return Err(Error::new(Kind::Halted, message));
        }
        let (starts, mut ran): (Vec<Ran>, Vec<Ran>) = self.ran_since(base, commits)?.into_iter().partition(Ran::is_start);
        ran.retain(|ran| self.is_done(ran));
        let stuck = stuck(&ran);
        if !stuck.is_empty() && !content_only {
            return Err(stuck_error(&stuck));
        }
        // The machine was started with files that go now: when they come again, it is to be started again.
        for start in starts {
            self.note("undone", &[("entry", &start.id.to_string())])?;
        }
        if content_only {
            return Ok(stuck);
        }
        let ground = Ground::of(&self.repo.places);
        for Ran { entry, id, tree } in ran.into_iter().rev() {
            let Some(undo) = &entry.undo else { continue };
            let here = self.lay_inputs(tree, &id, &entry)?;
            let name = id.to_string();
            let (ended, sequence, _) =
                self.run_logged(&ground, &job(&ground, &entry, undo, &id, &here), ("undo", &[("entry", &name)]))?;
            self.remove_inputs(&id)?;
            if !is_ok(&entry, ended) {
                let message = format!(
                    "undoing entry {id} failed: {}; 'gdo log --output {sequence}' shows what it said, 'gdo resume --rerun' tries again, 'gdo resume \
                     --done' takes it for undone",
                    ended.told()
                );
                return Err(Error::new(Kind::Halted, message));
            }
            self.note("undone", &[("entry", &id.to_string())])?;
        }
        Ok(Vec::new())
    }

    /// Says whether an entry that ran came to its end, and did what it should.
    fn is_done(&self, ran: &Ran) -> bool {
        self.history().entry(&ran.id) == Some(&Progress::Over)
    }

    /// Returns the entries that `commits` added to `base` and whose commands were begun here, in that order.
    fn ran_since(&self, base: Option<Oid>, commits: &[Oid]) -> Result<Vec<Ran>> {
        let mut ran = Vec::new();
        let mut old = match base {
            Some(base) => journal_of(self.repo, self.repo.objects.commit(&base)?.tree)?,
            None => BTreeMap::new(),
        };
        for commit in commits {
            let tree = self.repo.objects.commit(commit)?.tree;
            let new = journal_of(self.repo, tree)?;
            for (id, oid) in new.iter().filter(|(id, _)| !old.contains_key(*id)) {
                if !matches!(self.history().entry(id), None | Some(Progress::Spared)) {
                    ran.push(Ran { entry: read_entry(self.repo, oid, id)?, id: id.clone(), tree });
                }
            }
            old = new;
        }
        Ok(ran)
    }

    /// Lets no release up to `at` be applied by itself.
    pub fn hold(&mut self, at: &str) -> Result<()> {
        let by = self.call.by.clone();
        self.note("hold", &[("at", at), ("by", &by)]).map(drop)
    }

    /// Lifts that.
    pub fn unhold(&mut self) -> Result<()> {
        if self.history().hold.is_none() {
            return Err(Error::new(Kind::NotFound, "this host is not held"));
        }
        let by = self.call.by.clone();
        self.note("unhold", &[("by", &by)]).map(drop)
    }
}

/// An entry whose command ran here.
struct Ran {
    entry: Entry,
    id: EntryId,
    /// The tree that has its inputs.
    tree: Oid,
}

impl Ran {
    fn is_start(&self) -> bool {
        self.entry.kind == EntryKind::Reboot
    }

    fn told(&self) -> String {
        format!("{} {}", self.id, self.entry.shown())
    }
}

/// Names the commands that cannot be undone.
fn stuck(ran: &[Ran]) -> Vec<String> {
    let is_stuck = |ran: &&Ran| ran.entry.undo.is_none() && ran.entry.kind == EntryKind::Exec;
    ran.iter().filter(is_stuck).map(Ran::told).collect()
}

fn stuck_error(stuck: &[String]) -> Error {
    let message = format!(
        "{} cannot be undone ({}); '--content-only' takes back the files and leaves what these commands did",
        entries(stuck.len()),
        stuck.join("; ")
    );
    Error::new(Kind::Halted, message)
}
